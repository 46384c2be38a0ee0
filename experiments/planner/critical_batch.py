"""Whether a batch still pays: the critical batch from a number, a run or a file of measurements."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from bellwether.experiments.analysis import convergence_points, critical_batch, io
from bellwether.trainer import metrics
from bellwether.trainer.config import ConfigError
from bellwether.trainer.report.facts import SMOOTHED, Facts, about


@dataclass(frozen=True)
class Critical:
    """A critical batch in samples, and where it comes from."""

    size: float
    source: str

    def efficiency(self, batch: float) -> float:
        """The least samples by those that this batch needs, 1 / (1 + B / B_crit) (McCandlish et al. 2018, 1812.06162)."""
        return 1 / (1 + batch / self.size)


def read(given: str) -> Critical:
    """The critical batch that ``--critical-batch`` names.

    A run's is the newest gradient noise scale that it logged, as in its report. A file of measurements is fitted as
    `bellwether fit` does.

    Args:
        given: a number of samples, a run directory, or what `bellwether.experiments.analysis.convergence_points` reads.

    Raises:
        ConfigError: if it is none of these, or does not tell.
    """
    try:
        size = float(given.replace("_", "").replace(",", ""))
    except ValueError:
        return _measured(Path(given))
    if not 0 < size < math.inf:
        raise ConfigError("--critical-batch", given, "is no batch", "write a number of samples above 0")
    return Critical(size, "as given")


def _measured(path: Path) -> Critical:
    if (path / metrics.FILE).is_file():
        return _of_run(path)
    if path.is_dir() and not io.is_measured(path):
        raise ConfigError(
            "--critical-batch",
            str(path),
            f"holds no {metrics.FILE}",
            "give a run's or a sweep's directory, a file or a number",
        )
    try:
        found = convergence_points.read(path)
    except ConfigError as error:
        option = error.key.startswith("--")  # that fit has, and plan has not
        advice = f"fit it with bellwether fit {path} {error.key} ..., and give the number" if option else error.allowed
        raise ConfigError("--critical-batch", str(path), error.problem, advice) from None
    try:
        fit = critical_batch.fit(found.batches, found.samples)
    except ValueError as error:
        raise ConfigError("--critical-batch", str(path), str(error)) from None
    if not math.isfinite(fit.b_crit):
        problem = "the critical batch lies beyond all that was measured"
        raise ConfigError("--critical-batch", str(path), problem, "leave it out, or measure at larger batches")
    high = f"{fit.b_crit_high:,.0f}" if math.isfinite(fit.b_crit_high) else "no bound"
    return Critical(fit.b_crit, f"fit of {path.name}, {fit.b_crit_low:,.0f} to {high} with 90 % confidence")


def _of_run(run: Path) -> Critical:
    noise = Facts.load(run).noise
    if noise is None:
        problem = f"its {metrics.FILE} has no noise_scale above 0"
        raise ConfigError("--critical-batch", str(run), problem, "give a run that logged it, a file or a number")
    if noise.early:
        problem = f"too early to tell: the noise scale is a mean over {SMOOTHED} steps, and this one of {noise.steps:,}"
        raise ConfigError(
            "--critical-batch", str(run), problem, f"give a longer run, or write {noise.scale:.0f} all the same"
        )
    return Critical(noise.scale, f"gradient noise scale of {run.name}, {about(noise.scale, noise.error)}")

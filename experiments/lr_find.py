"""``bellwether lr-find``: learning rate range test (Smith 2015, 1506.01186).

The learning rate rises exponentially until the loss diverges; the rates at which the loss fell suggest a peak rate.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bellwether.trainer.checked_config import load_checked
from bellwether.trainer.config import ConfigError, dump, phases, to_yaml, validate
from bellwether.trainer.divergence import smoothed
from bellwether.trainer.metrics import History, read

DIVERGENCE_FACTOR = 4.0  # the test stops at this multiple of the lowest smoothed loss
_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 60  # of the bars in the terminal
_REACH = 5  # half the window of the slope, in steps: a smoothed loss is still noisy


@dataclass(frozen=True)
class RangeTest:
    """The result of a range test, as stored in ``lr-find.json``.

    Attributes:
        suggestion: a tenth of the rate at the lowest smoothed loss: a peak rate with a margin.
        steepest: the rate at which the smoothed loss falls fastest in log(rate): a cautious choice.
        lowest: the rate at the lowest smoothed loss, at which most runs are about to diverge.
        rates, losses, smooth: learning rate, loss and smoothed loss of each step.
        note: why the suggestion is not reliable, if the lowest loss lies at an end of the tested rates.
    """

    suggestion: float
    steepest: float
    lowest: float
    rates: list[float]
    losses: list[float]
    smooth: list[float]
    note: str = ""


def analyze(rates: Sequence[float], losses: Sequence[float]) -> RangeTest:
    """Suggest a learning rate from the losses at rising rates. Losses from the first non-finite one on are ignored.

    Raises:
        ConfigError: if fewer than ten losses remain.
    """
    count = next((i for i, loss in enumerate(losses) if not math.isfinite(loss)), len(losses))
    if count < 10:
        raise ConfigError(
            "--from", rates[0] if rates else None, f"the loss diverged after {count} steps", "start at a lower rate"
        )
    diverged = count < len(losses)
    rates, losses = list(rates[:count]), list(losses[:count])
    smooth = smoothed(losses)
    bottom = min(range(count), key=smooth.__getitem__)
    slopes = {
        i: (smooth[i + _REACH] - smooth[i - _REACH]) / (math.log(rates[i + _REACH]) - math.log(rates[i - _REACH]))
        for i in range(_REACH, max(_REACH + 1, min(bottom, count - _REACH)))
        if i + _REACH < count
    }
    steepest = min(slopes, key=slopes.__getitem__) if slopes else bottom
    note = ""
    if bottom < _REACH:
        note = "the loss rises from the first steps on: the suggestion is unreliable; lower --from"
    elif bottom == count - 1 and not diverged:
        note = "the loss still falls at the highest rate: the suggestion is unreliable; raise --to"
    return RangeTest(rates[bottom] / 10, rates[steepest], rates[bottom], rates, losses, smooth, note)


def find(config: str, overrides: Sequence[str], nproc: int | None, low: float, high: float, steps: int) -> int:
    """Run the test in a new run directory, plot the loss and print a suggestion. Returns the exit status for the shell.

    Args:
        config, overrides: of the run that the learning rate is for.
        nproc: number of processes; None: one per GPU, or one.
        low, high: first and last learning rate.
        steps: number of steps.

    Raises:
        ConfigError, ConfigErrors: if an option or the config is wrong.
    """
    if not 0 < low < high:
        raise ConfigError("--from", low, f"must be above 0 and below --to {high:g}", "as in --from 1e-6 --to 1")
    if steps < 20:
        raise ConfigError("--steps", steps, "are too few to see a trend", "write a few hundred")
    raw, run = range_test_config(config, overrides, low, high, steps)
    from bellwether.launcher.local import train

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "lr-find.yaml"
        file.write_text(to_yaml(validate(raw)), encoding="utf-8")
        with discard_stdout():  # the summary of the run would report its intended divergence
            status = train(str(file), [], nproc)
    if status:
        return status
    # Checkpoints of nearly diverged weights are useless, and may be large.
    shutil.rmtree(run / "checkpoints")
    history = read(run)
    result = analyze([line["lr"] for line in history.train], [line["loss"] for line in history.train])
    (run / "lr-find.json").write_text(json.dumps(asdict(result), indent=1) + "\n", encoding="utf-8")
    draw(result, run / "lr-find.png")
    print(summary(result, run, _trained(history)))
    return 0


def range_test_config(
    config: str, overrides: Sequence[str], low: float, high: float, steps: int
) -> tuple[dict[str, Any], Path]:
    """(config of the test, its new run directory), based on the first phase of a run's config."""
    first = phases(load_checked(config, overrides))[0]
    raw, batch = dump(first), first.batch.all_sizes[0]
    if len(first.batch.all_sizes) > 1:
        print(f"lr-find: batch.global grows; the test is at its first batch size, {batch:,}", file=sys.stderr)
    name, number = f"{raw['name']}-lr-find", 1
    while (run := Path(raw["runs"]).expanduser() / (name if number == 1 else f"{name}-{number}")).exists():
        number += 1
    raw |= {
        "name": run.name, "resume": "never", "duration": f"{steps} steps", "stop_after": None, "divergence": DIVERGENCE_FACTOR,
        "phases": [], "averaging": {}, "scaling": {}, "trajectory": {}, "checkpoint": {"keep": 1, "export": False},
        "schedule": {"kind": "exponential", "start": low / high, "final": 1.0},
        "evaluate": {"limit": batch},
    }  # fmt: skip
    raw["batch"]["global"] = batch
    if first.optimizer.adam_lr is not None:  # of muon: it rises with the other rate, at the config's ratio
        raw["optimizer"]["adam_lr"] = first.optimizer.adam_lr * high / first.optimizer.lr
    raw["optimizer"]["lr"] = high
    raw["log"] |= {"every": "1 steps", "report": False, "mlperf": {}}
    return raw, run


@contextmanager
def discard_stdout() -> Iterator[None]:
    """Discard the standard output of this process and its children."""
    sys.stdout.flush()
    stdout, null = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    try:
        yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)
        os.close(null)


def draw(result: RangeTest, path: Path) -> None:
    """Plot the raw and the smoothed loss against the learning rate, with the suggestion marked."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    from bellwether.trainer.report.chart import LIGHT, png, style

    with style():
        figure = Figure(figsize=(10.5, 5))
        ax = figure.add_subplot()
        ax.grid(axis="y")
        ax.set_xscale("log")
        ax.plot(result.rates, result.losses, color=LIGHT["blue"], linewidth=0.8, alpha=0.35, label="loss of each step")
        ax.plot(result.rates, result.smooth, color=LIGHT["blue"], linewidth=2, label="smoothed loss")
        for rate, colour, label in (
            (result.suggestion, "orange", f"suggestion, lowest / 10: {result.suggestion:.2g}"),
            (result.steepest, "green", f"steepest descent: {result.steepest:.2g}"),
            (result.lowest, "mark", f"lowest, about to diverge: {result.lowest:.2g}"),
        ):
            ax.axvline(rate, color=LIGHT[colour], linewidth=1.3, linestyle=(0, (5, 3)), label=label)
        # Clip the diverging end, which would flatten the rest.
        bottom, first = min(result.losses), max(result.losses[:10])
        ax.set_ylim(bottom - 0.1 * (first - bottom), first + 0.5 * (first - bottom) + 1e-9)
        ax.xaxis.set_major_formatter(lambda rate, _: f"{rate:g}")
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xlabel("learning rate")
        ax.set_ylabel("training loss")
        ax.set_title(f"{path.parent.name}: learning rate range test")
        ax.legend(loc="best")
        png(figure, path)


def _trained(history: History) -> str:
    """What the rates apply to, by param group: they are those of parameters without a factor of their own."""
    from bellwether.trainer.param_groups import GroupCount, describe

    return describe([GroupCount(**group) for line in history.groups[-1:] for group in line["groups"]])


def summary(result: RangeTest, run: Path, trained: str = "") -> str:
    """Text for the terminal: the smoothed loss as a row of bars, the three rates, and what they apply to."""
    picked = [result.smooth[round(i * (len(result.smooth) - 1) / (_WIDTH - 1))] for i in range(_WIDTH)]
    low, high = min(picked), max(picked[0], min(picked) + 1e-12)
    bars = "".join(_BARS[min(7, max(0, int(8 * (x - low) / (high - low))))] for x in picked)
    rows = [
        ("suggestion", f"{result.suggestion:.2g}   a tenth of the rate at the lowest loss"),
        ("steepest", f"{result.steepest:.2g}   where the loss falls fastest"),
        ("lowest", f"{result.lowest:.2g}   where it is lowest, at {min(result.smooth):.4f}"),
        *([("note", result.note)] if result.note else []),
        *([("trained", trained)] if trained else []),
        ("plot", str(run / "lr-find.png")),
        ("numbers", str(run / "lr-find.json")),
    ]
    head = f"{result.rates[0]:.1e}".ljust(_WIDTH - 7) + f"{result.rates[-1]:.1e}"
    return "\n".join([f"  {bars}", f"  {head}", *(f"  {label:<12} {value}" for label, value in rows)])

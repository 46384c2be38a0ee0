"""The learning rate range test (Smith 2015, 1506.01186): raise the rate until the loss diverges, and look where it fell."""

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

from bellwether.trainer.config import ConfigError, dump, load, phases, to_yaml, validate
from bellwether.trainer.divergence import smoothed
from bellwether.trainer.metrics import read

DIVERGED = 4.0  # times the lowest smoothed loss
_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 60


@dataclass(frozen=True)
class Found:
    """What a range test says.

    Attributes:
        suggestion: a tenth of the rate at the lowest smoothed loss: a peak rate with some room above it.
        steepest: the rate at which the smoothed loss falls fastest in log(rate): a rate to be careful with.
        lowest: the rate at the lowest smoothed loss, at which most runs are about to diverge.
        note: why the suggestion is none, where the lowest loss lies at an end of what was tried.
    """

    suggestion: float
    steepest: float
    lowest: float
    rates: list[float]
    losses: list[float]
    smooth: list[float]
    note: str = ""


def judge(rates: Sequence[float], losses: Sequence[float]) -> Found:
    """What the losses at rising rates say; those after the first that is no number are left out.

    Raises:
        ConfigError: if there are fewer than ten.
    """
    count = next((i for i, loss in enumerate(losses) if not math.isfinite(loss)), len(losses))
    if count < 10:
        raise ConfigError(
            "--from", rates[0] if rates else None, f"the loss diverged after {count} steps", "begin lower"
        )
    cut = count < len(losses)
    rates, losses = list(rates[:count]), list(losses[:count])
    smooth = smoothed(losses)
    bottom = min(range(count), key=smooth.__getitem__)
    reach = 5  # steps on either side: the slope of a smoothed loss is noisy still
    slopes = {
        i: (smooth[i + reach] - smooth[i - reach]) / (math.log(rates[i + reach]) - math.log(rates[i - reach]))
        for i in range(reach, max(reach + 1, min(bottom, count - reach)))
        if i + reach < count
    }
    steepest = min(slopes, key=slopes.__getitem__) if slopes else bottom
    note = ""
    if bottom < reach:
        note = "the loss rises from the first steps on, so this is no suggestion: begin lower, with --from"
    elif bottom == count - 1 and not cut:
        note = "the loss still falls at the highest rate, so this is no suggestion: go higher, with --to"
    return Found(rates[bottom] / 10, rates[steepest], rates[bottom], rates, losses, smooth, note)


def find(config: str, overrides: Sequence[str], nproc: int | None, low: float, high: float, steps: int) -> int:
    """Run the test in a directory of its own under the config's `runs`, draw it and tell. Returns the exit status."""
    if not 0 < low < high:
        raise ConfigError("--from", low, f"must be above 0 and below --to {high:g}", "as in --from 1e-6 --to 1")
    if steps < 20:
        raise ConfigError("--steps", steps, "are too few to see a course in", "write some hundreds")
    raw, run = prepared(config, overrides, low, high, steps)
    from bellwether.launcher.local import train

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "lr-find.yaml"
        file.write_text(to_yaml(validate(raw)), encoding="utf-8")
        with _quiet():
            status = train(str(file), [], nproc)
    if status:
        return status
    # Nobody goes on from weights on their way to diverging, and they may be large.
    shutil.rmtree(run / "checkpoints")
    history = read(run)
    found = judge([line["lr"] for line in history.train], [line["loss"] for line in history.train])
    (run / "lr-find.json").write_text(json.dumps(asdict(found), indent=1) + "\n", encoding="utf-8")
    draw(found, run / "lr-find.png")
    print(told(found, run))
    return 0


def prepared(config: str, overrides: Sequence[str], low: float, high: float, steps: int) -> tuple[dict[str, Any], Path]:
    """The config of the test, made of the first phase of a run's, and the directory, which is not there yet."""
    raw = dump(phases(load(config, overrides))[0])
    name, number = f"{raw['name']}-lr-find", 1
    while (run := Path(raw["runs"]).expanduser() / (name if number == 1 else f"{name}-{number}")).exists():
        number += 1
    raw |= {
        "name": run.name, "resume": "never", "duration": f"{steps} steps", "stop_after": None, "divergence": DIVERGED,
        "phases": [], "averaging": {}, "scaling": {}, "trajectory": {}, "checkpoint": {"keep": 1},
        "schedule": {"kind": "exponential", "start": low / high, "final": 1.0},
        "evaluate": {"limit": raw["batch"]["global"]},
    }  # fmt: skip
    raw["optimizer"]["lr"] = high
    raw["log"] |= {"every": "1 steps", "report": False}
    return raw, run


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the run's own summary, on standard output: how it ended is no news of a run that is to diverge."""
    sys.stdout.flush()
    kept, nothing = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nothing)


def draw(found: Found, path: Path) -> None:
    """The losses over the rate, raw and smoothed, with the suggestion marked."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    from bellwether.trainer.report.chart import LIGHT, png, style

    with style():
        figure = Figure(figsize=(10.5, 5), dpi=72)
        figure.set_layout_engine("constrained")
        ax = figure.add_subplot()
        for side in ("top", "right", "left"):
            ax.spines[side].set_visible(False)
        ax.grid(axis="y", color=LIGHT["grid"])
        ax.set_xscale("log")
        ax.plot(found.rates, found.losses, color=LIGHT["blue"], linewidth=0.8, alpha=0.35, label="loss of each step")
        ax.plot(found.rates, found.smooth, color=LIGHT["blue"], linewidth=2, label="smoothed loss")
        for rate, colour, label in (
            (found.suggestion, "orange", f"suggestion, lowest / 10: {found.suggestion:.2g}"),
            (found.steepest, "green", f"steepest descent: {found.steepest:.2g}"),
            (found.lowest, "mark", f"lowest, about to diverge: {found.lowest:.2g}"),
        ):
            ax.axvline(rate, color=LIGHT[colour], linewidth=1.3, linestyle=(0, (5, 3)), label=label)
        # What lies beyond the first losses, on its way to infinity, would leave nothing to see of the rest.
        bottom, first = min(found.losses), max(found.losses[:10])
        ax.set_ylim(bottom - 0.1 * (first - bottom), first + 0.5 * (first - bottom) + 1e-9)
        ax.xaxis.set_major_formatter(lambda rate, _: f"{rate:g}")
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xlabel("learning rate")
        ax.set_ylabel("training loss")
        ax.set_title(f"{path.parent.name}: a rising learning rate", loc="left")
        ax.legend(frameon=False)
        png(figure, path)


def told(found: Found, run: Path) -> str:
    """For the terminal: the smoothed loss as a row of bars, and the three rates."""
    picked = [found.smooth[round(i * (len(found.smooth) - 1) / (_WIDTH - 1))] for i in range(_WIDTH)]
    low, high = min(picked), max(picked[0], min(picked) + 1e-12)
    bars = "".join(_BARS[min(7, max(0, int(8 * (x - low) / (high - low))))] for x in picked)
    rows = [
        ("suggestion", f"{found.suggestion:.2g}   a tenth of the rate at the lowest loss"),
        ("steepest", f"{found.steepest:.2g}   where the loss falls fastest"),
        ("lowest", f"{found.lowest:.2g}   where it is lowest, at {min(found.smooth):.4f}"),
        *([("note", found.note)] if found.note else []),
        ("plot", str(run / "lr-find.png")),
        ("numbers", str(run / "lr-find.json")),
    ]
    head = f"{found.rates[0]:.1e}".ljust(_WIDTH - 7) + f"{found.rates[-1]:.1e}"
    return "\n".join([f"  {bars}", f"  {head}", *(f"  {label:<12} {value}" for label, value in rows)])

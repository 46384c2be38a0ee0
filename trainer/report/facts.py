"""The contents of a run directory as the report and the summary use them, and how they format numbers. Imports are light."""

from __future__ import annotations

import math
import re
import statistics
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import yaml

from bellwether.optimizers.registry import is_layer_wise
from bellwether.trainer.best import BestEvaluation
from bellwether.trainer.goodput import Goodput, account
from bellwether.trainer.metrics import History, Line, read
from bellwether.trainer.run_paths import MLLOG

if TYPE_CHECKING:
    from bellwether.trainer.mlperf.placement import Placement

CONFIG = "config.yaml"
ABSENT = "–"
# An untrained model gives each entry the same probability: its loss is ln(entries).
_ENTRIES = ("vocabulary", "classes")
UNIGRAM = "unigram loss"  #: label of its row in the plan
# Steps that the noise scale is averaged over: optimizers.noise_scale.HORIZON, whose import would load torch.
SMOOTHED = 200
SMOOTHED_SHORT = 50  # SHORT_HORIZON


@dataclass(frozen=True)
class Noise:
    """An estimate of the gradient noise scale."""

    scale: float  #: samples
    error: float | None  #: standard error of it
    steps: int  #: that it was estimated from
    recent: float | None = None  #: over the newest quarter of the steps
    spikes: int = 0  #: steps left out, as their gradients were far larger than usual
    every: int = 1  #: steps between two that are measured

    @property
    def horizon(self) -> int:
        """Steps that it is averaged over."""
        return SMOOTHED * self.every

    @property
    def early(self) -> str | None:
        """The progress towards a usable estimate, if it has fewer steps than it is averaged over; else None."""
        return f"{self.steps:,} of {self.horizon:,} steps" if self.steps < self.horizon else None


@dataclass(frozen=True)
class Facts:
    """The contents of a run directory."""

    run: Path
    config_text: str  #: config.yaml, or ""
    config: dict[str, Any]  #: the same, parsed, or {}
    history: History  #: metrics.jsonl

    @classmethod
    def load(cls, run: Path) -> Facts:
        path = run / CONFIG
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        try:
            config = yaml.safe_load(text)
        except yaml.YAMLError:
            config = None
        return cls(run, text, config if isinstance(config, dict) else {}, read(run))

    @property
    def name(self) -> str:
        return str(self.config.get("name") or self.run.resolve().name)

    def setting(self, section: str, key: str) -> Any:
        """A value of the config, or None."""
        return (self.config.get(section) or {}).get(key)

    def over_phases(self, section: str, key: str) -> list[Any]:
        """A setting in each phase, in order; one value if the config has no phases, none if it is not set."""
        phases = self.config.get("phases") or [{}]
        values = [(phase.get(section) or {}).get(key, self.setting(section, key)) for phase in phases]
        return [value for value in values if value is not None]

    @cached_property
    def goodput(self) -> Goodput:
        """What the time of the run went to, over all launches and jobs."""
        return account(self.run)

    @cached_property
    def plan(self) -> dict[str, list[str]]:
        """The rows of the newest plan: label -> its value in each phase."""
        lines = self.history.plan[-1]["phases"] if self.history.plan else []
        phases = [{row["label"]: row["value"] for row in rows} for rows in lines]
        labels = dict.fromkeys(label for phase in phases for label in phase)
        return {label: [phase.get(label, ABSENT) for phase in phases] for label in labels}

    @cached_property
    def groups(self) -> list[dict[str, Any]]:
        """The param groups of each phase as of its newest launch, in order, with the number of the phase."""
        lines = [line for line in self.history.groups if isinstance(line.get("phase"), int) and "groups" in line]
        newest = {line["phase"]: line["groups"] for line in lines}
        pairs = [(phase, group) for phase, groups in sorted(newest.items()) for group in groups]
        return [{**group, "phase": phase + 1} for phase, group in pairs if isinstance(group, dict)]

    @cached_property
    def expectation(self) -> tuple[int, float] | None:
        """(entries, ln(entries)), the loss of uniform guessing; None if the plan has no such row, or for another loss."""
        if any(value.startswith("bce") for value in self.plan.get("loss", [])):
            return None
        for label, value in ((label, value) for label, values in self.plan.items() for value in values):
            digits = re.match(r"\d+", re.sub(r"(?<=\d)[,_](?=\d{3})", "", value))
            if label.lower() in _ENTRIES and digits and int(digits[0]) > 1:
                return int(digits[0]), math.log(int(digits[0]))
        return None

    @cached_property
    def unigram(self) -> float | None:
        """Held-out loss of a model that knows the frequencies of tokens alone; None if the plan has no such row."""
        found = [match for value in self.plan.get(UNIGRAM, []) if (match := re.match(r"\d+\.\d+", value))]
        return float(found[-1][0]) if found else None

    @cached_property
    def best_score(self) -> tuple[str | None, float | None, int | None]:
        """``evaluate.best`` with its best value and step; None where it is not set, or was not measured."""
        score = self.setting("evaluate", "best")
        if not isinstance(score, str):
            return None, None, None
        best = BestEvaluation(score)
        best.replay(line for line in self.history.eval if finite(line.get(score)))
        return (score, best.value, best.step) if best.step >= 0 else (score, None, None)

    @cached_property
    def placement(self) -> Placement | None:
        """The run among MLPerf's reference points and submissions; None without ``log.mlperf.benchmark``."""
        log = self.run / MLLOG
        if not log.exists():
            return None
        from bellwether.trainer.mlperf import placement

        result = placement.read(log)
        return None if result is None else placement.place(result)

    @cached_property
    def last(self) -> Line:
        """The newest line that counts steps, over all events."""
        h = self.history
        if h.end and h.state != "unfinished":
            return h.end[-1]
        # The last launch decides: an earlier start may be at a later step, in an abandoned branch.
        lines = [*h.start[-1:], *h.train, *h.eval, *h.checkpoint]
        return max(lines, key=lambda line: int(line["step"]), default={})

    @cached_property
    def reach(self) -> float:
        """The last sample that was logged: the end of every picture's x axis."""
        return float(max(numbers([*self.history.train, *self.history.eval], "samples"), default=0))

    @property
    def losses(self) -> list[float]:
        """The finite training losses."""
        return numbers(self.history.train, "loss")

    def median(self, key: str) -> float | None:
        """The median of a value over the logged steps; None if it was never logged."""
        return statistics.median(found) if (found := numbers(self.history.train, key)) else None

    @cached_property
    def noise(self) -> Noise | None:
        """The newest estimate. It already is a mean over steps, and the noise scale grows during training (McCandlish et al.
        2018, 1812.06162): a mean over earlier estimates too would describe the past.
        """
        lines = self.history.train
        for index, line in reversed(list(enumerate(lines))):
            if finite(scale := line.get("noise_scale")) and scale > 0:
                # Each phase starts a new estimate.
                before = (old["step"] for old in reversed(lines[:index]) if old.get("phase") != line.get("phase"))
                error, recent = (line.get(f"noise_scale_{key}") for key in ("error", "recent"))
                return Noise(
                    scale, error if finite(error) else None, line["step"] - next(before, 0),
                    recent if finite(recent) and recent > 0 else None, int(line.get("noise_scale_spikes") or 0),
                    int(line.get("noise_scale_every") or 1),
                )  # fmt: skip
        return None

    @cached_property
    def boundaries(self) -> list[tuple[float, str]]:
        """Where each phase after the first begins: (samples, label)."""
        pairs = [pair for pair in pairwise(self.history.train) if pair[0].get("phase") != pair[1].get("phase")]
        # The phase began between two logged steps; the earlier one is nearest to the change.
        return [(float(old["samples"]), f"phase {number}") for number, (old, _) in enumerate(pairs, 2)]

    @cached_property
    def batches(self) -> list[str]:
        """The global batch in each phase, as in ``64`` or, where it grows, ``64 to 256``."""
        found = [_sizes(value) for value in self.over_phases("batch", "global")]
        return [whole(b[0]) if len(b) == 1 else f"{whole(b[0])} to {whole(b[-1])}" for b in found if b]

    @cached_property
    def batch_sizes(self) -> list[int]:
        """All global batches of the config, in order."""
        return list(dict.fromkeys(size for value in self.over_phases("batch", "global") for size in _sizes(value)))

    @cached_property
    def batch_changes(self) -> list[tuple[float, str]]:
        """Where the global batch changes within a phase: (samples, label)."""
        pairs = [pair for pair in pairwise(self.history.train) if pair[0].get("phase") == pair[1].get("phase")]
        changes = [(old, new) for old, new in pairs if None not in (old.get("batch"), new.get("batch"))]
        return [
            (float(old["samples"]), f"batch {new['batch']:,}") for old, new in changes if old["batch"] != new["batch"]
        ]

    @property
    def nonfinite(self) -> int:
        """Logged steps whose loss is NaN or infinite."""
        return sum(isinstance(x := line.get("loss"), float) and not math.isfinite(x) for line in self.history.train)

    @property
    def lacks_trust_ratios(self) -> bool:
        """Whether the optimizer has trust ratios and none was logged."""
        h = self.history
        logged = h.layers or any("trust_ratio" in line for line in h.train)
        return bool(h.train) and not logged and is_layer_wise(str(self.setting("optimizer", "name")).lower())


def _sizes(batch: Any) -> list[int]:
    """The batch sizes of ``batch.global``: one, or those of a batch warm-up."""
    pairs = batch if isinstance(batch, list) else [(0, batch)]
    return [int(pair[1]) for pair in pairs if isinstance(pair, list | tuple) and len(pair) == 2 and finite(pair[1])]


def finite(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and math.isfinite(value)


def numbers(lines: list[Line], key: str) -> list[float]:
    """The finite values of one key, in order."""
    return [value for line in lines if finite(value := line.get(key))]


def count(n: int, noun: str) -> str:
    """
    >>> count(1, "step"), count(12000, "step")
    ('1 step', '12,000 steps')
    """
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def about(value: float) -> str:
    """A value with two digits.

    >>> about(12345.6), about(113.4), about(1.26)
    ('12,000', '110', '1.3')
    """
    digits = 1 - math.floor(math.log10(value))
    return f"{round(value, digits):,.{max(0, digits)}f}"


def number(value: Any, form: str = ".4f", absent: str = ABSENT) -> str:
    """A formatted number; NaN and infinity by name."""
    if not isinstance(value, int | float):
        return absent
    return format(value, form) if math.isfinite(value) else str(float(value))


def whole(value: Any) -> str:
    """A count; a median of two counts may lie half-way between them.

    >>> whole(12000), whole(10.5), whole(None)
    ('12,000', '10.5', '–')
    """
    if not finite(value):
        return ABSENT
    return f"{value:,.1f}" if value % 1 == 0.5 else f"{value:,.0f}"


def share(value: Any) -> str:
    return f"{100 * value:.2f} %" if finite(value) else number(value)


def rate(value: float | None) -> str:
    """
    >>> rate(3.2114), rate(41234.2)
    ('3.21', '41,234')
    """
    if value is None:
        return ABSENT
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def significant(value: float | None, digits: int = 4) -> str:
    """
    >>> significant(0.0312345), significant(1e-5), significant(0.0312345, 2), significant(None)
    ('0.03123', '1e-5', '0.031', '–')
    """
    return ABSENT if value is None else f"{value:.{digits}g}".replace("e-0", "e-")


def compact(value: float) -> str:
    """Axis labels: 0, 250, 1.5k, 2M.

    >>> [compact(v) for v in (0, 250, 1500, 2e6, 0.25, 1e-5)]
    ['0', '250', '1.5k', '2M', '0.25', '1e-5']
    """
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{significant(value / size)}{unit}"
    return significant(value)

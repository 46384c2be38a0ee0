"""Values with units: durations in samples, epochs or steps; spans, which may also be a share of a phase; and targets."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, PlainSerializer

from bellwether.trainer.scores import LOWER_IS_BETTER, NAMES

DIGITS = "[0-9](?:_?[0-9])*"
_FORM = re.compile(rf"^\s*({DIGITS}\.?[0-9]*(?:e[+-]?[0-9]+)?)\s*(samples?|epochs?|steps?)\s*$", re.IGNORECASE)
_TARGET = re.compile(rf"^\s*(?:val/)?(loss|accuracy|{'|'.join(NAMES)})\s*(<=|>=)\s*([-+.0-9e]+)\s*$", re.IGNORECASE)
# Far longer than any run, and still exact as a float.
_MOST = 1e15
_NO_SPAN = "neither a share of the phase from 0 to 1 nor a duration with its unit, as in '500 steps'"


@dataclass(frozen=True)
class Duration:
    """A length of training, such as ``3 epochs``, ``500 steps`` or ``1_000_000 samples``."""

    amount: float
    unit: str

    @classmethod
    def parse(cls, text: Any) -> Duration:
        """Parses a number and a unit. Raises ValueError if it is not a duration."""
        if isinstance(text, Duration):
            return text
        match = _FORM.match(str(text))
        if not match:
            raise ValueError(
                "not a duration: write a number and a unit, as in '500 steps', '3 epochs', '1_000_000 samples'"
            )
        amount = float(match[1].replace("_", ""))
        if amount > _MOST:
            raise ValueError(f"too long: write {_MOST:g} at most")
        return cls(amount, match[2].lower().rstrip("s") + "s")

    def samples(self, global_batch: int, epoch: int) -> int:
        """Length in samples, for a global batch and an epoch given in samples."""
        per_unit = {"samples": 1, "epochs": epoch, "steps": global_batch}[self.unit]
        return math.ceil(round(self.amount * per_unit, 6))

    def __str__(self) -> str:
        amount = int(self.amount) if self.amount == int(self.amount) else self.amount
        return f"{amount} {self.unit}"


@dataclass(frozen=True)
class Span:
    """A part of a phase: a share of it (0 to 1), or a `Duration`."""

    share: float | None = None
    duration: Duration | None = None

    @classmethod
    def parse(cls, text: Any) -> Span:
        """Parses a share from 0 to 1, or a duration. Raises ValueError if it is neither."""
        if isinstance(text, Span):
            return text
        try:
            share = float(text)
        except (TypeError, ValueError):
            try:
                return cls(duration=Duration.parse(text))
            except ValueError:
                raise ValueError(_NO_SPAN) from None
        if not 0 <= share <= 1:
            raise ValueError(_NO_SPAN)
        return cls(share=share)

    def samples(self, total: int, global_batch: int, epoch: int) -> int:
        """Length in samples within a phase of ``total`` samples."""
        if self.duration is not None:
            return self.duration.samples(global_batch, epoch)
        assert self.share is not None
        return round(self.share * total)

    def __str__(self) -> str:
        if self.duration is not None:
            return str(self.duration)
        short = f"{self.share:g}"
        return short if float(short) == self.share else repr(self.share)


@dataclass(frozen=True)
class Target:
    """A target on held-out data, as in ``accuracy >= 0.9`` or ``loss <= 2.5``."""

    metric: str
    value: float
    at_least: bool

    @classmethod
    def parse(cls, text: Any) -> Target:
        """Parses a comparison. Raises ValueError if it is none, or one that every run or no run can reach."""
        if isinstance(text, Target):
            return text
        match = _TARGET.match(str(text))
        try:
            if match is None:
                raise ValueError
            target = cls(match[1].lower(), float(match[3]), match[2] == ">=")
        except ValueError:
            raise ValueError("not a target: write 'accuracy >= 0.9' or 'loss <= 2.5'") from None
        if fault := target.fault:
            raise ValueError("; ".join(fault))
        return target

    @property
    def fault(self) -> tuple[str, str] | None:
        """What is wrong, and what to write instead, if every run or no run can reach the target; else None."""
        kind = self.metric.rpartition("/")[2]
        if kind == "accuracy" and not 0 <= self.value <= 1:
            share = self.value / 100 if 1 < self.value <= 100 else 0.9
            return "accuracy lies within 0 to 1", f"write '{self.metric} >= {share:.10g}'"
        if kind in (*NAMES, "accuracy", "loss") and self.at_least == (kind in LOWER_IS_BETTER):
            right = f"{self.metric} {'<=' if self.at_least else '>='} {self.value:.10g}"
            return "an accuracy is to be at least, a loss or a perplexity at most", f"write '{right}'"
        return None

    def holds(self, values: Mapping[str, float]) -> bool:
        """Whether these values reach the target. A missing value or NaN does not."""
        value = values.get(self.metric, math.nan)
        return value >= self.value if self.at_least else value <= self.value

    def __str__(self) -> str:
        return f"{self.metric} {'>=' if self.at_least else '<='} {self.value:.10g}"


def _check_positive(every: Duration) -> Duration:
    if not every.amount:
        raise ValueError("an interval is longer than 0")
    return every


DurationField = Annotated[Duration, BeforeValidator(Duration.parse), PlainSerializer(str)]
IntervalField = Annotated[DurationField, AfterValidator(_check_positive)]
TargetField = Annotated[Target, BeforeValidator(Target.parse), PlainSerializer(str)]
SpanField = Annotated[Span, BeforeValidator(Span.parse), PlainSerializer(str)]

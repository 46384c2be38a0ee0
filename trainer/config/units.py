"""How long: durations in samples, epochs or steps, and spans that may also be a share of the run."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer

_FORM = re.compile(r"^\s*([0-9][0-9_]*\.?[0-9]*(?:e[+-]?[0-9]+)?)\s*(samples?|epochs?|steps?)\s*$", re.IGNORECASE)


@dataclass(frozen=True)
class Duration:
    """A length of training, such as ``3 epochs``, ``500 steps`` or ``1_000_000 samples``."""

    amount: float
    unit: str

    @classmethod
    def parse(cls, text: Any) -> Duration:
        if isinstance(text, Duration):
            return text
        match = _FORM.match(str(text))
        if not match:
            raise ValueError("a duration: a number and a unit, as in '500 steps', '3 epochs', '1_000_000 samples'")
        return cls(float(match[1].replace("_", "")), match[2].lower().rstrip("s") + "s")

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
        if isinstance(text, Span):
            return text
        try:
            share = float(text)
        except (TypeError, ValueError):
            try:
                return cls(duration=Duration.parse(text))
            except ValueError:
                raise ValueError("a share of the phase from 0 to 1, or a duration as in '500 steps'") from None
        if not 0 <= share <= 1:
            raise ValueError("a share of the phase from 0 to 1, or a duration with its unit, as in '500 steps'")
        return cls(share=share)

    def samples(self, total: int, global_batch: int, epoch: int) -> int:
        """Length in samples within a phase of ``total`` samples."""
        if self.duration is not None:
            return self.duration.samples(global_batch, epoch)
        assert self.share is not None
        return round(self.share * total)

    def __str__(self) -> str:
        return str(self.duration) if self.duration is not None else f"{self.share:g}"


DurationField = Annotated[Duration, BeforeValidator(Duration.parse), PlainSerializer(str)]
SpanField = Annotated[Span, BeforeValidator(Span.parse), PlainSerializer(str)]

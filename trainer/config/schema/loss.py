"""``loss``: the loss of classification."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from bellwether.trainer.config.schema.section import FRACTION, Section


class Loss(Section):
    """The loss of classification that is trained on. The held-out loss is the cross-entropy with the true labels."""

    kind: Literal["cross-entropy", "bce"] = Field(
        "cross-entropy",
        description="bce: the mean over the classes of the binary cross-entropy of each, for images (Wightman et al. 2021)",
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0,
        description="share of the label that is spread evenly over all classes (Szegedy et al. 2015)",
        json_schema_extra=FRACTION,
    )
    threshold: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None,
        description="with kind: bce, a class whose share of the label is above it counts as present in full, all others as absent; "
        "null: the shares themselves are the targets. The two shares of a label come from data.mixup and data.cutmix",
        json_schema_extra=FRACTION,
    )

    @model_validator(mode="after")
    def _threshold(self) -> Loss:
        if self.threshold is not None and self.kind != "bce":
            raise ValueError(f"threshold: {self.kind} has none; remove it, or write kind: bce")
        if self.threshold is not None and self.label_smoothing:
            raise ValueError("threshold: it would undo loss.label_smoothing; remove one of the two")
        return self

    @property
    def is_plain(self) -> bool:
        """Whether it is the cross-entropy with the labels as they are."""
        return self == Loss()

    def __str__(self) -> str:
        parts: list[str] = [self.kind]
        if self.label_smoothing:
            parts.append(f"label smoothing {self.label_smoothing:g}")
        if self.threshold is not None:
            parts.append(f"classes of a share above {self.threshold:g} present")
        return ", ".join(parts)

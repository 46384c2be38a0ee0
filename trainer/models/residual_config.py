"""What the configs of all residual networks for images share. Imports no torch."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from bellwether.trainer.config.schema.models import ModelConfig
from bellwether.trainer.config.schema.section import FRACTION


class ResidualConfig(ModelConfig):
    """A residual network that classifies images."""

    data_kind: ClassVar[str] = "images"
    losses: ClassVar[tuple[str, ...]] = ("cross-entropy", "bce")

    stochastic_depth: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0,
        description="rate at which the last block's branch is left out in training, sample by sample; that of the blocks before it "
        "falls to 0 at the first (Huang et al. 2016)",
        json_schema_extra=FRACTION,
    )

    def plan(self) -> list[tuple[str, str]]:
        return [("depth", f"stochastic, rate 0 to {self.stochastic_depth:g}")] if self.stochastic_depth else []

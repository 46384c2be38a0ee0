"""ResNet of transformers (He et al. 2015), for ImageNet-like input."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from bellwether.trainer.models.residual_config import ResidualConfig

if TYPE_CHECKING:
    from bellwether.trainer.data import Dataset
    from bellwether.trainer.models.tasks import Task

# Blocks of each stage, and their type: He et al. 2015, table 1.
STAGES = {
    18: ([2, 2, 2, 2], "basic"),
    34: ([3, 4, 6, 3], "basic"),
    50: ([3, 4, 6, 3], "bottleneck"),
    101: ([3, 4, 23, 3], "bottleneck"),
    152: ([3, 8, 36, 3], "bottleneck"),
}


class ResNetModel(ResidualConfig):
    """ResNet of transformers, for ImageNet-like input (He et al. 2015)."""

    assumed_classes: ClassVar[int] = 1000

    kind: Literal["resnet"]
    depth: Literal[18, 34, 50, 101, 152] = Field(50, description="number of layers")
    zero_init_last: bool = Field(
        True, description="initialize the last BatchNorm weight of each block to 0 (Goyal et al. 2017)"
    )

    @property
    def label(self) -> str:
        return f"resnet-{self.depth}"

    def build(self, dataset: Dataset, activation_checkpointing: bool) -> Task:
        from transformers import ResNetConfig, ResNetForImageClassification

        from bellwether.trainer.models import residual

        depths, layer_type = STAGES[self.depth]
        widths = [64, 128, 256, 512] if layer_type == "basic" else [256, 512, 1024, 2048]
        config = ResNetConfig(
            depths=depths, hidden_sizes=widths, layer_type=layer_type, embedding_size=64,
            **residual.input_and_classes(dataset),
        )  # fmt: skip
        model = ResNetForImageClassification(config)
        return residual.prepare(model, self.zero_init_last, activation_checkpointing, self.stochastic_depth)

"""Residual networks for small images: the CIFAR ResNets (He et al. 2015) and wide ResNets (Zagoruyko and Komodakis 2016)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from bellwether.trainer.config.schema.section import Count
from bellwether.trainer.models.residual_config import ResidualConfig

if TYPE_CHECKING:
    from bellwether.trainer.data import Dataset
    from bellwether.trainer.models.tasks import Task


class _SmallResNet(ResidualConfig):
    """Keys that both architectures have."""

    depth: Count
    zero_init_last: bool = Field(
        False, description="initialize the last BatchNorm weight of each block to 0 (Goyal et al. 2017)"
    )
    norm: Literal["batch", "none"] = Field(
        "batch",
        description="batch: BatchNorm; none: Fixup initialization and scalars instead (Zhang et al. 2019)",
    )

    @model_validator(mode="after")
    def _check_zero_init(self) -> _SmallResNet:
        if self.norm == "none" and self.zero_init_last:
            raise ValueError("zero_init_last: there is no BatchNorm; remove it, or write norm: batch")
        return self

    def build(self, dataset: Dataset, activation_checkpointing: bool) -> Task:
        from bellwether.trainer.models import residual

        model = self._model(depth=self.depth, norm=self.norm, **residual.input_and_classes(dataset))
        return residual.prepare(model, self.zero_init_last, activation_checkpointing, self.stochastic_depth)

    def _model(self, **config: Any) -> Any:
        raise NotImplementedError


class CifarResNetModel(_SmallResNet):
    """The CIFAR ResNets of He et al. 2015, section 4.2: depth 6n + 2."""

    kind: Literal["cifar-resnet"]
    depth: Count = Field(20, description="number of layers, 6n + 2: 20, 32, 44, 56, 110")

    @model_validator(mode="after")
    def _check_depth(self) -> CifarResNetModel:
        if self.depth < 8 or (self.depth - 2) % 6:
            raise ValueError("depth: a CIFAR ResNet has 6n + 2 layers: 8, 14, 20, 32, 44, 56, 110")
        return self

    @property
    def label(self) -> str:
        return f"cifar-resnet-{self.depth}"

    def _model(self, **config: Any) -> Any:
        from bellwether.trainer.models import auto_classes

        return auto_classes.CifarResNetForImageClassification(auto_classes.CifarResNetConfig(**config))


class WideResNetModel(_SmallResNet):
    """Wide pre-activation ResNet (Zagoruyko and Komodakis 2016): depth 6n + 4."""

    kind: Literal["wide-resnet"]
    depth: Count = Field(22, description="number of layers, 6n + 4: 10, 16, 22, 28, 40")
    width: Count = Field(6, description="widening factor k; the stages have 16k, 32k and 64k channels")

    @model_validator(mode="after")
    def _check_depth(self) -> WideResNetModel:
        if self.depth < 10 or (self.depth - 4) % 6:
            raise ValueError("depth: a wide ResNet has 6n + 4 layers: 10, 16, 22, 28, 40")
        return self

    @property
    def label(self) -> str:
        return f"wide-resnet-{self.depth}-{self.width}"

    def _model(self, **config: Any) -> Any:
        from bellwether.trainer.models import auto_classes

        return auto_classes.WideResNetForImageClassification(auto_classes.WideResNetConfig(width=self.width, **config))

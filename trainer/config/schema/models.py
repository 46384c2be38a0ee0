"""``model``: the model architecture."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from bellwether.trainer.config.schema.section import FRACTION, TOKENS, Count, Section, Share


class BertModel(Section):
    """BERT for masked language modelling (Devlin et al. 2018; small sizes of Turc et al. 2019)."""

    kind: Literal["bert"]
    size: Literal["tiny", "mini", "small", "medium", "base", "large"] = Field(
        "base",
        description="layers/hidden size: tiny 2/128, mini 4/256, small 4/512, medium 8/512, base 12/768, large 24/1024",
    )
    dropout: Share = Field(
        0.1, description="dropout probability of hidden states and attention weights", json_schema_extra=FRACTION
    )
    max_positions: Count = Field(
        512, description="longest sequence that the position embeddings allow", json_schema_extra=TOKENS
    )


class ResNetModel(Section):
    """ResNet of transformers, for ImageNet-like input (He et al. 2015)."""

    kind: Literal["resnet"]
    depth: Literal[18, 34, 50, 101, 152] = Field(50, description="number of layers")
    zero_init_last: bool = Field(
        True, description="initialize the last BatchNorm weight of each block to 0 (Goyal et al. 2017)"
    )


class CifarResNetModel(Section):
    """The CIFAR ResNets of He et al. 2015, section 4.2: depth 6n + 2."""

    kind: Literal["cifar-resnet"]
    depth: Count = Field(20, description="number of layers, 6n + 2: 20, 32, 44, 56, 110")
    zero_init_last: bool = Field(
        False, description="initialize the last BatchNorm weight of each block to 0 (Goyal et al. 2017)"
    )
    norm: Literal["batch", "none"] = Field(
        "batch", description="batch: BatchNorm; none: Fixup initialization and scalars instead (Zhang et al. 2019)"
    )

    @model_validator(mode="after")
    def _depth(self) -> CifarResNetModel:
        if self.depth < 8 or (self.depth - 2) % 6:
            raise ValueError("depth: a CIFAR ResNet has 6n + 2 layers: 8, 14, 20, 32, 44, 56, 110")
        if self.norm == "none" and self.zero_init_last:
            raise ValueError("zero_init_last: there is no BatchNorm; take it out, or write norm: batch")
        return self


class WideResNetModel(Section):
    """Wide pre-activation ResNet (Zagoruyko and Komodakis 2016): depth 6n + 4."""

    kind: Literal["wide-resnet"]
    depth: Count = Field(22, description="number of layers, 6n + 4: 10, 16, 22, 28, 40")
    width: Count = Field(6, description="widening factor k; the stages have 16k, 32k and 64k channels")
    zero_init_last: bool = Field(
        False, description="initialize the last BatchNorm weight of each block to 0 (Goyal et al. 2017)"
    )
    norm: Literal["batch", "none"] = Field(
        "batch", description="batch: BatchNorm; none: Fixup initialization and scalars instead (Zhang et al. 2019)"
    )

    @model_validator(mode="after")
    def _depth(self) -> WideResNetModel:
        if self.depth < 10 or (self.depth - 4) % 6:
            raise ValueError("depth: a wide ResNet has 6n + 4 layers: 10, 16, 22, 28, 40")
        if self.norm == "none" and self.zero_init_last:
            raise ValueError("zero_init_last: there is no BatchNorm; take it out, or write norm: batch")
        return self


Model = Annotated[BertModel | ResNetModel | CifarResNetModel | WideResNetModel, Field(discriminator="kind")]

"""Models for training: transformers' BERT and ResNet, and residual networks for small images of our own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from transformers import AutoConfig, AutoModelForImageClassification

from bellwether.trainer.models.modeling_residual import (
    CifarResNetConfig,
    CifarResNetForImageClassification,
    WideResNetConfig,
    WideResNetForImageClassification,
)
from bellwether.trainer.models.tasks import Classification, MaskedLanguageModelling, Task

if TYPE_CHECKING:
    from bellwether.trainer.config.schema import Model
    from bellwether.trainer.data import Data

__all__ = ["Task", "build"]

for _config, _model in (
    (CifarResNetConfig, CifarResNetForImageClassification),
    (WideResNetConfig, WideResNetForImageClassification),
):
    # With Bellwether imported, exports load as any model of transformers does; without it, by the code beside them.
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModelForImageClassification.register(_config, _model, exist_ok=True)
    _config.register_for_auto_class()
    _model.register_for_auto_class("AutoModelForImageClassification")


def build(config: Model, data: Data, *, activation_checkpointing: bool = False) -> Task:
    """A model with fresh weights, and the task it is trained on.

    Weights come from torch's generator: call `torch.manual_seed` first.

    Args:
        config: the section `model` of a config.
        data: tells the vocabulary, or channels and classes.
        activation_checkpointing: keep only the input of each layer or block, and compute it again in the backward
            pass. BatchNorm's running statistics move once all the same.
    """
    from bellwether.trainer.models import bert, residual

    if config.kind == "bert":
        return MaskedLanguageModelling(bert.build(config, data, activation_checkpointing))
    return Classification(residual.build(config, data, activation_checkpointing))

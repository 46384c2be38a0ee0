"""Models for training: those of transformers, and our own residual networks for small images and recurrent language models.

Importing this package imports neither torch nor transformers, because configs are validated with it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from bellwether.trainer.config.errors import ConfigError

if TYPE_CHECKING:
    from bellwether.trainer.config.schema.loss import Loss
    from bellwether.trainer.config.schema.models import ModelConfig
    from bellwether.trainer.data import Dataset
    from bellwether.trainer.models.tasks import Task

__all__ = ["build"]

# The modules that define kinds of models, in the order in which messages list them.
_KINDS = (
    "bert",
    "resnet",
    "small_resnets",
    "masked_lm",
    "image_classifier",
    "sequence_classifier",
    "token_classifier",
    "question_answering",
    "awd_lstm",
    "qrnn",
)


def build(
    config: ModelConfig, dataset: Dataset, *, activation_checkpointing: bool = False, loss: Loss | None = None
) -> Task:
    """A model with newly initialized weights, and the task that it is trained on.

    The weights are drawn from torch's global generator: call `torch.manual_seed` first.

    Args:
        config: the section `model` of a config.
        dataset: gives the size of the vocabulary, or the number of channels and classes.
        activation_checkpointing: store only the input of each layer or block, and recompute its activations in the backward
            pass. BatchNorm's running statistics are updated only once.
        loss: the section `loss` of a config; None: the default.

    Raises:
        ConfigError: if the model predicts a number, and the loss is not the default.
    """
    task = config.build(dataset, activation_checkpointing)
    if loss is not None and not loss.is_plain:
        from bellwether.trainer.models.losses import ClassificationLoss

        if getattr(task, "is_regression", False):
            problem = "the labels are numbers, whose loss is the squared error"
            raise ConfigError("loss", str(loss), problem, "remove the section")
        task.training_loss = ClassificationLoss(loss.kind, loss.label_smoothing, loss.threshold)
    return task


for _kind in _KINDS:
    importlib.import_module(f"{__name__}.{_kind}")

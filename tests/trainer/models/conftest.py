from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from bellwether.trainer.config.schema import ModelConfig
from bellwether.trainer.data import Dataset
from bellwether.trainer.models import build
from bellwether.trainer.models.tasks import Task

NO_SAMPLES: Any = None


@pytest.fixture
def make() -> Callable[..., Task]:
    """A task from the keys of the section `model`; data of 3 channels and 10 classes, or of 100 tokens."""

    def task(
        kind: str,
        *,
        channels: int = 3,
        classes: int = 10,
        vocabulary: int = 100,
        checkpointing: bool = False,
        **keys: Any,
    ) -> Task:
        config = ModelConfig.model_validate({"kind": kind, **keys})
        if config.data_kind in ("text", "token-stream"):
            data = Dataset(NO_SAMPLES, NO_SAMPLES, vocabulary_size=vocabulary)
        else:
            names = [f"class {i}" for i in range(classes)]
            data = Dataset(NO_SAMPLES, NO_SAMPLES, classes=classes, channels=channels, labels=names)
        torch.manual_seed(0)
        return build(config, data, activation_checkpointing=checkpointing)

    return task

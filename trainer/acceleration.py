"""The keys of `engine` that make a step faster on a GPU: TF32, cuDNN's choice of algorithms, channels_last, compiled layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bellwether.trainer.compile import compile_layers
from bellwether.trainer.config.schema.engine import Engine as EngineConfig
from bellwether.trainer.models.tasks import Classification


def configure(engine: EngineConfig, device: torch.device) -> None:
    """Set torch's switches for a run. Left alone, torch multiplies matrices in fp32, but convolves in TF32."""
    if device.type != "cuda":
        return
    torch.set_float32_matmul_precision("high" if engine.tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = engine.tf32
    torch.backends.cudnn.benchmark = engine.cudnn_benchmark


def accelerate(task: nn.Module, engine: EngineConfig, device: torch.device) -> None:
    """Apply `channels_last` and `compile` to a task, before the engine is built around it.

    Raises:
        ConfigError: if the model has no layers that can be compiled.
    """
    if isinstance(task, Classification):
        # The input alone: DeepSpeed 0.19.8 takes weights for contiguous, and convolutions follow their input.
        task.channels_last = device.type == "cuda" if engine.channels_last is None else engine.channels_last
    if engine.compile == "layers":
        model: Any = task.model
        compile_layers(model)

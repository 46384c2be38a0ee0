"""Code that all ResNets share: float32 BatchNorm, zero initialization, activation checkpointing."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from bellwether.trainer.data import Dataset
from bellwether.trainer.models.modeling_residual import BasicBlock, PreActivationBlock
from bellwether.trainer.models.norm import BatchNorm2d, frozen_statistics, norms
from bellwether.trainer.models.stochastic_depth import StochasticDepth
from bellwether.trainer.models.tasks import Classification


def input_and_classes(dataset: Dataset) -> dict[str, Any]:
    """The keys of a transformers config for the channels and classes of a dataset."""
    names = dataset.labels or []
    return {
        "num_channels": dataset.channels,
        "id2label": dict(enumerate(names)),
        "label2id": {name: index for index, name in enumerate(names)},
    }


def prepare(
    model: nn.Module, zero_init_last: bool, activation_checkpointing: bool, stochastic_depth: float = 0.0
) -> Classification:
    """Prepares a newly initialized ResNet for training.

    Args:
        zero_init_last: initialize the last BatchNorm weight of each block to 0, so that each block starts as its shortcut
            (Goyal et al. 2017, section 5.1).
        activation_checkpointing: see `bellwether.trainer.models.build`.
        stochastic_depth: rate at which the branch of the last block is left out, see `bellwether.trainer.models.stochastic_depth`.
    """
    BatchNorm2d.replace(model)
    if zero_init_last:
        for block in blocks(model):
            nn.init.zeros_(list(norms(getattr(block, "layer", block)))[-1].weight)
    if activation_checkpointing:
        checkpoint_blocks(model)
    depth = StochasticDepth([branch(block) for block in blocks(model)], stochastic_depth) if stochastic_depth else None
    return Classification(model, depth)


def branch(block: nn.Module) -> nn.Module:
    """The module of a residual block whose output is added to the shortcut."""
    name = "bn2" if isinstance(block, BasicBlock) else "gain" if isinstance(block, PreActivationBlock) else "layer"
    return block.get_submodule(name)


def checkpoint_blocks(model: nn.Module, names: Collection[str] = ()) -> bool:
    """Stores only the input of each residual block; returns whether the model has such blocks.

    Args:
        names: classes whose instances are blocks too.
    """
    found = blocks(model) or [module for module in model.modules() if type(module).__name__ in names]
    for block in found:
        block.forward = _checkpointed(block, block.forward)
    return bool(found)


def blocks(model: nn.Module) -> list[nn.Module]:
    """The residual blocks of a ResNet."""
    from transformers.models.resnet.modeling_resnet import ResNetBasicLayer, ResNetBottleNeckLayer

    kinds = (ResNetBasicLayer, ResNetBottleNeckLayer, BasicBlock, PreActivationBlock)
    return [module for module in model.modules() if isinstance(module, kinds)]


def _checkpointed(block: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    """A block's forward that stores only its input. When it is recomputed, BatchNorm's statistics are not updated again."""

    def contexts() -> tuple[Any, Any]:
        return contextlib.nullcontext(), frozen_statistics(block)

    @functools.wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        if not (block.training and torch.is_grad_enabled()):
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)

    return run

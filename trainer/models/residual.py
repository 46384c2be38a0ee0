"""ResNets: those of transformers for ImageNet-like input, and those of `modeling_residual` for small images."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from bellwether.trainer.models import modeling_residual as own
from bellwether.trainer.models.norm import BatchNorm2d, norms, still

if TYPE_CHECKING:
    from bellwether.trainer.config.schema import CifarResNetModel, ResNetModel, WideResNetModel
    from bellwether.trainer.data import Data

# Blocks a stage, and their kind: He et al. 2015, table 1.
STAGES = {
    18: ([2, 2, 2, 2], "basic"),
    34: ([3, 4, 6, 3], "basic"),
    50: ([3, 4, 6, 3], "bottleneck"),
    101: ([3, 4, 23, 3], "bottleneck"),
    152: ([3, 8, 36, 3], "bottleneck"),
}


def build(config: ResNetModel | CifarResNetModel | WideResNetModel, data: Data, activation_checkpointing: bool) -> Any:
    """A ResNet for the channels and classes of the data. Convolutions start as He et al. 2015 have it, by fan-out."""
    names = data.labels or []
    inputs: dict[str, Any] = {
        "num_channels": data.channels,
        "id2label": dict(enumerate(names)),
        "label2id": {name: index for index, name in enumerate(names)},
    }
    if config.kind == "resnet":
        model = _imagenet(config.depth, inputs)
    elif config.kind == "cifar-resnet":
        model = own.CifarResNetForImageClassification(
            own.CifarResNetConfig(depth=config.depth, norm=config.norm, **inputs)
        )
    else:
        model = own.WideResNetForImageClassification(
            own.WideResNetConfig(depth=config.depth, width=config.width, norm=config.norm, **inputs)
        )
    BatchNorm2d.replace(model)
    if config.zero_init_last:
        # Goyal et al. 2017, section 5.1: each block starts as its shortcut.
        for block in blocks(model):
            nn.init.zeros_(list(norms(getattr(block, "layer", block)))[-1].weight)
    if activation_checkpointing:
        for block in blocks(model):
            block.forward = _recomputed(block, block.forward)
    return model


def blocks(model: nn.Module) -> list[nn.Module]:
    """The residual blocks of a ResNet."""
    from transformers.models.resnet.modeling_resnet import ResNetBasicLayer, ResNetBottleNeckLayer

    kinds = (ResNetBasicLayer, ResNetBottleNeckLayer, own.BasicBlock, own.PreActivationBlock)
    return [module for module in model.modules() if isinstance(module, kinds)]


def _imagenet(depth: int, inputs: dict[str, Any]) -> Any:
    from transformers import ResNetConfig, ResNetForImageClassification

    depths, layer_type = STAGES[depth]
    widths = [64, 128, 256, 512] if layer_type == "basic" else [256, 512, 1024, 2048]
    return ResNetForImageClassification(
        ResNetConfig(depths=depths, hidden_sizes=widths, layer_type=layer_type, embedding_size=64, **inputs)
    )


def _recomputed(block: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    """A block's forward that keeps its input alone. The second time it runs, BatchNorm only repeats what it did."""

    def contexts() -> tuple[Any, Any]:
        return contextlib.nullcontext(), still(block)

    @functools.wraps(forward)
    def run(x: torch.Tensor) -> Any:
        if not (block.training and torch.is_grad_enabled()):
            return forward(x)
        return checkpoint(forward, x, use_reentrant=False, context_fn=contexts)

    return run

"""Builds param groups from a model: with and without weight decay and trust ratio."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

_TORCH_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
# transformers and others define their own (LlamaRMSNorm, T5LayerNorm, FrozenBatchNorm2d, ...), recognized by name.
# Anchored at the end of the name: a fused LayerNormLinear is mostly weights.
_NORM_NAME = re.compile(r"(Batch|Layer|Group|Instance|RMS|Scale)_?Norm(alization)?([123]d)?$", re.IGNORECASE)


def groups(model: nn.Module, weight_decay: float | None = None) -> list[dict[str, Any]]:
    """Two param groups: weights; and biases and normalization, which get neither weight decay nor a trust ratio.

    Args:
        model: any module. Frozen parameters are left out; a tied parameter appears once, under its first name.
        weight_decay: of the first group; None: the optimizer's default.

    Returns:
        param groups for any optimizer of this package, with names (``param_names``). No group is empty.

    Decides by module and name, not by dimension, so it also works under ``deepspeed.zero.Init``, which changes shapes.

    >>> [len(group["params"]) for group in groups(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)))]
    [1, 3]
    """
    excluded: set[int] = set()
    for module in model.modules():
        in_norm = is_norm(module)
        for name, parameter in module.named_parameters(recurse=False):
            if in_norm or name in ("bias", "bias_k", "bias_v", "gain") or name.endswith("_bias"):
                excluded.add(id(parameter))
    trainable = [(n, p) for n, p in named(model) if p.requires_grad]
    weights: dict[str, Any] = {"params": [(n, p) for n, p in trainable if id(p) not in excluded]}
    if weight_decay is not None:
        weights["weight_decay"] = weight_decay
    others = {
        "params": [(n, p) for n, p in trainable if id(p) in excluded],
        "weight_decay": 0.0,
        "trust_ratio": False,
    }
    return [group for group in (weights, others) if group["params"]]


def named(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters in the model's order, under the same names with and without torch.compile."""
    return ((name.replace("_orig_mod.", ""), parameter) for name, parameter in model.named_parameters())


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalization layer, of torch or by its class name."""
    return isinstance(module, _TORCH_NORMS) or _NORM_NAME.search(type(module).__name__) is not None

"""Recognizes normalization layers by what they compute."""

from __future__ import annotations

import dis
import functools
import inspect
import re
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

# Subclasses of these that normalize what they return, as the embeddings of some language models, are matrices all the same.
_TORCH_MATRICES = (nn.Linear, nn.Bilinear, nn.Embedding, nn.EmbeddingBag, nn.RNNBase, nn.MultiheadAttention, _ConvNd)
_TORCH_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
# Anchored at the end of the name: a fused LayerNormLinear is mostly weights.
_NORM_NAME = re.compile(r"(Batch|Layer|Group|Instance|RMS|Scale)_?Norm(alization)?([123]d)?$", re.IGNORECASE)
# What a normalization calls, and what a layer with a matrix calls, which may normalize too.
_NORMALIZES = re.compile(r"norm|^rsqrt$|^var$|^std$|^var_mean$|^std_mean$", re.IGNORECASE)
_MULTIPLIES = re.compile(
    r"linear|conv|matmul|^mm$|^bmm$|einsum|embedding|addmm|baddbmm|tensordot|cdist|attention|gru|lstm"
)


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalization layer: of torch, by its class name, or by what its forward pass calls."""
    if isinstance(module, _TORCH_NORMS) or _NORM_NAME.search(type(module).__name__) is not None:
        return True
    if isinstance(module, _TORCH_MATRICES):
        return False
    is_leaf = not any(True for child in module.children() for _ in child.parameters())
    return is_leaf and any(True for _ in module.parameters(recurse=False)) and _normalizes(type(module))  # type: ignore[arg-type]  # a class is hashable


@functools.cache
def _normalizes(kind: type) -> bool:
    """Whether the forward pass of a class calls a normalization, or root and variance, and multiplies no matrices."""
    if kind.__module__.startswith("torch.nn.modules"):
        return False
    names: set[str] = set()
    pending, seen = ["forward"], set[str]()
    while pending:
        name = pending.pop()
        function: Any = inspect.unwrap(getattr(kind, name, None) or (lambda: None))
        code = getattr(function, "__code__", None)
        if name in seen or code is None:
            continue
        seen.add(name)
        names |= set(code.co_names)
        if any(i.opname == "BINARY_OP" and i.argrepr.startswith("@") for i in dis.get_instructions(code)):
            return False
        pending += [called for called in code.co_names if called in vars(kind) or called.startswith("_")]
    return any(_NORMALIZES.search(n) for n in names) and not any(_MULTIPLIES.search(n) for n in names)

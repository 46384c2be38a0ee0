"""The settings of the optimizer benchmark: parameters of BERT as tensors of their own, in bfloat16 and in one flat tensor, many
small tensors, and matrices for Muon."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from bellwether.optimizers.shards.layout import ParameterInfo, ShardLayout, cut


@dataclass
class Setting:
    """Parameters with gradients, and the memory that the moments of all entries share."""

    name: str
    weights: list[nn.Parameter]
    plain: list[nn.Parameter]  # biases and normalisation: no decay, no trust ratio
    shard: ShardLayout | None = None
    all_entries: bool = True  # False: no loops over tensors, and no other packages
    for_muon: bool = False  # matrices alone, for Muon and AdamW
    pool: dict[tuple[Tensor, int, torch.dtype], Tensor] = field(default_factory=dict)

    @property
    def element_bytes(self) -> int:
        """Of a weight and of a gradient."""
        return self.parameters[0].element_size()

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [*self.weights, *self.plain]

    @property
    def numel(self) -> int:
        return sum(p.numel() for p in self.parameters)

    def groups(self, **plain: Any) -> list[dict[str, Any]]:
        """Groups as of `bellwether.optimizers.groups`; ``plain`` are the options of the second."""
        groups = [{"params": self.weights}, {"params": self.plain, "weight_decay": 0.0, **plain}]
        return [group for group in groups if group["params"]]


def settings(size: str, device: torch.device) -> Iterator[Setting]:
    """One after the other, so that the first is freed before the second is created."""
    torch.manual_seed(0)
    makers: list[Callable[[str, torch.device], Setting]] = [
        model_setting,
        shard_setting,
        functools.partial(model_setting, dtype=torch.bfloat16),
        functools.partial(many_tensors, 400),
        functools.partial(many_tensors, 4000),
        matrices_setting,
    ]
    for make in makers:
        yield make(size, device)
        gc.collect()


def model_setting(size: str, device: torch.device, dtype: torch.dtype = torch.float32) -> Setting:
    """BERT-base: 199 tensors, 109.5 million elements."""
    shapes = bert(12, 768, 30522) if size == "full" else bert(2, 64, 500)
    weights = [_parameter(shape, device, dtype) for _, shape, is_weight in shapes if is_weight]
    plain = [_parameter(shape, device, dtype) for _, shape, is_weight in shapes if not is_weight]
    in_dtype = "" if dtype == torch.float32 else f" in {str(dtype).removeprefix('torch.')}"
    name = f"{'BERT-base' if size == 'full' else 'tiny BERT'}{in_dtype}, {len(shapes)} tensors"
    return Setting(name, weights, plain)


def many_tensors(count: int, size: str, device: torch.device) -> Setting:
    """Tensors of 256 elements: the time is that of Python and of launches."""
    count = count if size == "full" else count // 50
    return Setting(
        f"{count:,} small tensors", [_parameter((16, 16), device) for _ in range(count)], [], all_entries=False
    )


def matrices_setting(size: str, device: torch.device) -> Setting:
    """The hidden matrices of BERT-mini; on a GPU those of BERT-large, 288 of 302 million elements."""
    layers, hidden = (24, 1024) if device.type == "cuda" else (4, 256)
    shapes = bert(layers, hidden, 1) if size == "full" else bert(1, 64, 1)
    weights = [_parameter(shape, device) for name, shape, is_weight in shapes if is_weight and "." in name]
    return Setting(f"{len(weights)} matrices of BERT with {hidden} channels", weights, [], for_muon=True)


def shard_setting(size: str, device: torch.device) -> Setting:
    """The weights of a BERT of 6 layers in one tensor of 66.4 million elements: a param group, as ZeRO-1 and 2 have it."""
    shapes = bert(6, 768, 30522) if size == "full" else bert(1, 64, 500)
    parameters = [ParameterInfo(name, shape) for name, shape, is_weight in shapes if is_weight]
    offsets = [0, *accumulate(p.numel for p in parameters)]
    flat = _parameter((offsets[-1],), device)
    slices = cut(zip(parameters, offsets, strict=False), 0, offsets[-1])
    name = f"flat shard of {len(parameters)} parameters"
    return Setting(name, [flat], [], ShardLayout(flat, tuple(parameters), slices, None))


def bert(layers: int, hidden: int, vocabulary: int, positions: int = 512) -> list[tuple[str, tuple[int, ...], bool]]:
    """(name, shape, whether it is a weight) of each parameter of a BERT encoder with its pooler."""

    def linear(name: str, rows: int, columns: int) -> list[tuple[str, tuple[int, ...], bool]]:
        return [(f"{name}.weight", (rows, columns), True), (f"{name}.bias", (rows,), False)]

    def norm(name: str) -> list[tuple[str, tuple[int, ...], bool]]:
        return [(f"{name}.weight", (hidden,), False), (f"{name}.bias", (hidden,), False)]

    found: list[tuple[str, tuple[int, ...], bool]] = [
        ("words", (vocabulary, hidden), True),
        ("positions", (positions, hidden), True),
        ("types", (2, hidden), True),
        *norm("norm"),
    ]
    for i in range(layers):
        for name in ("query", "key", "value", "output"):
            found += linear(f"{i}.{name}", hidden, hidden)
        found += norm(f"{i}.attention_norm")
        found += linear(f"{i}.up", 4 * hidden, hidden) + linear(f"{i}.down", hidden, 4 * hidden)
        found += norm(f"{i}.norm")
    return found + linear("pooler", hidden, hidden)


def _parameter(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    parameter = nn.Parameter(torch.randn(shape, device=device).mul_(0.02).to(dtype))
    parameter.grad = torch.randn(shape, device=device).mul_(1e-3).to(dtype)
    return parameter

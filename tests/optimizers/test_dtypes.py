"""Dtypes and memory layouts, for every optimizer in every configuration."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.optimizers.configurations import (
    OPTIMIZERS,
    distance,
    drive,
    every,
    parameters,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@every
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_trains_in(name: str, dtype: torch.dtype) -> None:
    """Weights and gradients of the dtype, moments of at least 32 bits, on a parabola."""
    p = torch.nn.Parameter(torch.tensor([[1.0, -2.0], [3.0, -4.0]], dtype=dtype))
    lr = 1.0 if name.startswith("lars") else 0.05
    if name == "muon-fp32":
        lr /= 0.2  # of match_rms_adamw
    optimizer = OPTIMIZERS[name]([p], lr=lr)
    for _ in range(20):
        p.grad = p.detach().clone()
        optimizer.step()
    assert p.dtype == dtype
    wide = torch.promote_types(dtype, torch.float32)
    assert {value.dtype for key, value in optimizer.state[p].items() if key not in ("step", "slow")} <= {wide}
    assert p.norm().item() < 0.9 * math.sqrt(30)


LAYOUTS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "channels-last": (lambda w: w.contiguous(memory_format=torch.channels_last), lambda g: g),
    "channels-last-gradient": (lambda w: w, lambda g: g.contiguous(memory_format=torch.channels_last)),
    "both-channels-last": (lambda w: w.contiguous(memory_format=torch.channels_last),) * 2,
    "transposed": (lambda w: w.transpose(0, 3).contiguous().transpose(0, 3), lambda g: g),
    "with-gaps": (lambda w: torch.stack([w, torch.full_like(w, torch.nan)], -1)[..., 0], lambda g: g),
    "expanded-gradient": (lambda w: w, lambda g: g[:1, :1].expand(g.shape)),
}


@every
@pytest.mark.parametrize("case", LAYOUTS)
def test_memory_layout_does_not_matter(name: str, case: str, kernel: str) -> None:
    lay_weights, lay_gradient = LAYOUTS[case]
    if kernel == "cpu" and case == "with-gaps":
        kernel = "auto"  # the C++ kernel needs dense memory
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(3, 4, 2, 5, generator=generator)
    p, q = torch.nn.Parameter(lay_weights(start.clone())), torch.nn.Parameter(start.clone())
    optimizer, other = OPTIMIZERS[name]([p], kernel=kernel), OPTIMIZERS[name]([q], kernel=kernel)
    stride = p.stride()
    for _ in range(3):
        g = torch.randn(3, 4, 2, 5, generator=generator)
        p.grad, q.grad = lay_gradient(g), lay_gradient(g).contiguous()
        optimizer.step()
        other.step()
    assert p.stride() == stride
    # Norms are summed in the order of memory, in float64: the last bit of the rate may differ.
    assert distance([p], [q]) < 2e-7
    assert not torch.equal(q, start)


@every
def test_scalars_and_empty_tensors(name: str, kernel: str) -> None:
    """Scalars and empty tensors together with others, and alone."""
    for shapes in ([(), (0, 3), (2,)], [()], [(0,)]):
        params = parameters(shapes=shapes)
        optimizer = OPTIMIZERS[name](params, kernel=kernel)
        drive(optimizer)
        for p, before in zip(params, parameters(shapes=shapes), strict=True):
            assert p.isfinite().all()
            assert not p.numel() or not torch.equal(p, before)
        assert set(optimizer.trust_ratios().values()) >= (
            {1.0} if optimizer.trust_ratios() and (0, 3) in shapes else set()
        )

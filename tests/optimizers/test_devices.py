"""Nothing depends on torch's default device, and a step inside a CUDA graph is refused."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from bellwether.optimizers import AdamW, Lamb, Lookahead, Trajectory
from tests.optimizers.configurations import OPTIMIZERS, copies, every, parameters


@pytest.fixture
def no_default_device() -> Iterator[None]:
    """As with set_default_device("cuda"): a tensor made without a device has no values here."""
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


def _steps(name: str, params: list[torch.Tensor], kernel: str) -> list[list[float]]:
    optimizer = OPTIMIZERS[name](params, kernel=kernel)
    trajectory = Trajectory(optimizer)
    for step in range(3):
        for i, p in enumerate(params):
            p.grad = (p.detach() + 1 + step) / (1 + i)
        optimizer.step()
        trajectory.keep()
    stride = trajectory.read()
    assert stride.update_norm is not None
    optimizer.trust_ratios()
    optimizer.state_dict()
    return [[stride.distance, stride.update_norm], *(p.detach().flatten().tolist() for p in params)]


@every
def test_default_device_does_not_matter(name: str, kernel: str, request: pytest.FixtureRequest) -> None:
    params = parameters()
    wanted = _steps(name, copies(params), kernel)
    mine = copies(params)
    request.getfixturevalue("no_default_device")
    assert _steps(name, mine, kernel) == wanted


def test_rounding_of_16_bit_weights_under_a_default_device(no_default_device: None) -> None:
    p = torch.nn.Parameter(torch.ones(64, dtype=torch.bfloat16, device="cpu"))
    optimizer = AdamW([p], lr=1e-3, stochastic_rounding=True)
    p.grad = torch.ones_like(p)
    optimizer.step()
    assert p.device.type == "cpu"


@pytest.mark.parametrize("wrapped", [False, True])
def test_step_in_a_cuda_graph_capture_is_refused(monkeypatch: pytest.MonkeyPatch, wrapped: bool) -> None:
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = Lookahead(Lamb([p])) if wrapped else Lamb([p])
    p.grad = torch.ones(3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="in a CUDA graph capture"):
        optimizer.step()
    assert p.tolist() == [1.0, 1.0, 1.0]

"""``capturable=True``: step count and learning rate are on the device, and step() reads nothing from it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bellwether.optimizers import AdamW, Lamb, Lookahead, Muon, WarmupLinear
from bellwether.optimizers import update as update_module
from tests.optimizers.configurations import CLOSE, OPTIMIZERS, copies, distance, drive, parameters

# Wrappers decide by step counts on the host, a global norm is read there, and Schedule-Free and SOAP decide there.
HOST = ("lookahead", "swats", "ema", "swa", "nvlamb", "schedule-free", "soap")
NAMES = [name for name in OPTIMIZERS if not name.startswith(HOST)]


@pytest.mark.parametrize("name", NAMES)
def test_takes_the_same_steps(name: str) -> None:
    params = parameters()
    others = copies(params)
    drive(OPTIMIZERS[name](params, kernel="reference"), 8)
    optimizer = OPTIMIZERS[name](others, capturable=True)
    drive(optimizer, 8)
    assert distance(others, params) < CLOSE[torch.float32]
    assert all(state["step"].item() == 8 for state in optimizer.state.values())


class _NoReads(TorchDispatchMode):
    """Fails where a floating-point number of a tensor is read on the host, which waits for the device."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten._local_scalar_dense.default and args[0].is_floating_point():
            raise AssertionError("a tensor was read on the host")
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", NAMES)
def test_reads_nothing_on_the_host(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(update_module, "sqrt", Tensor.sqrt)  # what `layout.sqrt` is on a GPU
    optimizer = OPTIMIZERS[name](parameters(), capturable=True)
    drive(optimizer, 2)
    with _NoReads():
        optimizer.step()
    with pytest.raises(AssertionError, match="read on the host"), _NoReads():  # the test can fail
        optimizer.param_groups[0]["lr"].item()


def test_rate_is_changed_in_place() -> None:
    params, others = parameters(), parameters()
    optimizer, other = AdamW(params, lr=0.1, capturable=True), AdamW(others, lr=0.1, kernel="reference")
    schedules = [WarmupLinear(o, batch=1, total=10, warmup=3) for o in (optimizer, other)]
    lr = optimizer.param_groups[0]["lr"]
    drive(optimizer, 6, after=schedules[0].step)
    drive(other, 6, after=schedules[1].step)
    assert optimizer.param_groups[0]["lr"] is lr  # the memory that a graph has captured
    assert lr.item() == pytest.approx(other.param_groups[0]["lr"])
    schedules[0].seek(2)
    assert optimizer.param_groups[0]["lr"] is lr
    assert distance(params, others) < CLOSE[torch.float32]


def test_rate_that_was_given_as_a_tensor_stays_the_user_s_own() -> None:
    params, others = parameters(), parameters()
    lr = torch.tensor(0.5)
    optimizer = AdamW(params, lr=lr, capturable=True)
    lr.fill_(0.1)
    drive(optimizer)
    drive(AdamW(others, lr=0.1, kernel="reference"))
    assert distance(params, others) < CLOSE[torch.float32]


@pytest.mark.parametrize("kind", [AdamW, Lamb, Muon])
def test_state_continues_with_and_without(kind: type) -> None:
    """The flag is the implementation's, not the state's: torch's state loads too."""

    def matrices() -> list[Tensor]:
        return parameters(shapes=[(5, 7), (3, 2, 4)])

    params, others = matrices(), matrices()
    saved = kind(params, lr=0.02, capturable=True)
    drive(saved)
    plain = kind(others, lr=0.5, kernel="reference")
    for p, q in zip(params, others, strict=True):
        q.data.copy_(p.data)
    plain.load_state_dict(copy.deepcopy(saved.state_dict()))
    assert not plain.param_groups[0]["capturable"]
    again = kind(copies(params), lr=0.5, capturable=True)
    again.load_state_dict(copy.deepcopy(plain.state_dict()))
    for optimizer in (saved, plain, again):
        drive(optimizer, seed=2)
    loaded = [p for group in again.param_groups for p in group["params"]]
    assert distance(others, params) < CLOSE[torch.float32]
    assert distance(loaded, params) < CLOSE[torch.float32]
    assert isinstance(again.param_groups[0]["lr"], Tensor)
    assert again.param_groups[0]["lr"].item() == pytest.approx(0.02)


def one(**options: Any) -> AdamW:
    return AdamW([nn.Parameter(torch.ones(2))], capturable=True, **options)


REFUSED = {
    "kernel": (lambda: one(kernel="cpu"), "capturable=True with kernel='cpu': .* write kernel='auto'"),
    "clipping": (lambda: one(max_grad_norm=1.0), "capturable=True with max_grad_norm=1.0: .* is read on the host"),
    "rounding": (lambda: one(stochastic_rounding=True), "capturable=True with stochastic_rounding=True: "),
    "wrapper": (lambda: Lookahead(one()), "Lookahead around AdamW with capturable=True"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    make, message = REFUSED[case]
    with pytest.raises((ValueError, TypeError), match=message):
        make()

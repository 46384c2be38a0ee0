"""The contract of torch's param groups, for every optimizer in every configuration."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import pytest
import torch

from bellwether.optimizers import AdamW, Lamb, bucketing
from tests.optimizers.configurations import (
    CLOSE,
    JOINT,
    OPTIMIZERS,
    assert_same,
    distance,
    drive,
    every,
    group_of,
    parameters,
    params_of,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@every
def test_group_equals_a_separate_optimizer(name: str, kernel: str) -> None:
    """Groups with different options, one of them added after some steps."""
    if name in JOINT:
        pytest.skip("the update depends on all parameters")
    make, options = OPTIMIZERS[name], [{}, {"lr": 0.03}, {"weight_decay": 0.2}]
    shapes = [[(3, 2), (4,)], [(2, 2)], [(), (7,), (3,)]]
    params, other_params = ([parameters(shapes=s) for s in shapes] for _ in range(2))
    optimizer = make([{"params": p, **o} for p, o in zip(params[:2], options, strict=False)], kernel=kernel)
    alone = [make(p, kernel=kernel, **o) for p, o in zip(other_params, options, strict=True)]
    for steps, groups in ((2, 2), (3, 3)):
        if groups == 3:
            optimizer.add_param_group(group_of(name, params[2], **options[2]))
        for step in range(steps):
            for i in range(groups):
                for p, q in zip(params[i], other_params[i], strict=True):
                    p.grad = torch.full_like(p, 0.5 + step) * torch.arange(1.0, p.numel() + 1).view(p.shape)
                    q.grad = p.grad.clone()
                alone[i].step()
            optimizer.step()
    for p, q in zip(params, other_params, strict=True):
        assert_same(p, q)


def test_cached_tables_are_not_reused_for_new_tensors(kernel: str) -> None:
    """Tables cached for tensors must not be used for new tensors at the same address."""
    for _ in range(10):
        params, other_params = [parameters(shapes=[(7,), (3,)]) for _ in range(2)]
        optimizer, other = Lamb(params, kernel=kernel), Lamb(other_params, kernel="reference")
        for size in range(1, 8):
            for o in (optimizer, other):
                o.add_param_group({"params": parameters(shapes=[(size,)])})
            drive(optimizer, 1)
            other._bucketing.tables.clear()
            drive(other, 1)
        assert distance(params_of(optimizer), params_of(other)) < CLOSE[torch.float32]


def test_number_of_cached_tables_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucketing, "_MAX_TABLES", 8)
    params = parameters(shapes=[(3,)] * 6)
    optimizer = Lamb(params)
    for combination in range(1, 64):
        for i, p in enumerate(params):
            p.grad = torch.ones(3) if combination >> i & 1 else None
        optimizer.step()
        assert len(optimizer._bucketing.tables) <= 8
    assert len(optimizer.trust_ratios()) == 6


def test_trust_ratios_are_those_of_the_last_step() -> None:
    """Whichever tensors earlier steps updated: here both, one at a time, and both again."""
    a, b = [torch.nn.Parameter(torch.full((3,), value)) for value in (1.0, 2.0)]
    optimizer = Lamb([("a", a), ("b", b)], lr=0.1)
    for some in ([a, b], [a], [b], [a, b]):
        optimizer.zero_grad()
        for p in some:
            p.grad = torch.ones(3)
        norms = [p.norm().item() for p in (a, b)]
        optimizer.step()
    # The direction is 1 + 0.01 w, and a constant gradient gives it at every step.
    for name, norm in zip("ab", norms, strict=True):
        size = norm / math.sqrt(3)
        assert optimizer.trust_ratios()[name] == pytest.approx(size / (1 + 0.01 * size), rel=1e-5)


@every
def test_named_parameters(name: str) -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = OPTIMIZERS[name](model.named_parameters())
    groups = optimizer.state_dict()["param_groups"]
    assert [name for group in groups for name in group["param_names"]] == ["weight", "bias"]
    drive(optimizer, 1)
    assert set(optimizer.trust_ratios()) in (set(), {"weight", "bias"})
    with pytest.raises(ValueError, match="names"):
        optimizer.add_param_group({"params": parameters()})


shared = torch.nn.Parameter(torch.ones(2))

REFUSED_PARAMETERS: dict[str, tuple[Any, type[Exception], str]] = {
    "tensor": (shared, TypeError, "iterable"),
    "nothing": ([], ValueError, "empty parameter list"),
    "set": ([{"params": {shared}}], TypeError, "ordered"),
    "array": ([[1.0, 2.0]], TypeError, "(?i)tensors"),
    "not-a-leaf": ([shared * 2], ValueError, "non-leaf"),
    "in-two-groups": ([{"params": [shared]}, {"params": [shared]}], ValueError, "more than one parameter group"),
    "complex": ([torch.nn.Parameter(torch.ones(2, dtype=torch.complex64))], ValueError, "complex64.*view_as_real"),
}


@every
@pytest.mark.parametrize("case", REFUSED_PARAMETERS)
def test_invalid_parameters_are_refused(name: str, case: str) -> None:
    params, error, message = REFUSED_PARAMETERS[case]
    if isinstance(params, list):  # a copy: torch writes defaults into the groups
        params = [dict(p) if isinstance(p, dict) else p for p in params]
    with pytest.raises(error, match=message):
        OPTIMIZERS[name](params)


@every
def test_refused_group_is_not_added(name: str) -> None:
    optimizer = OPTIMIZERS[name](parameters())
    groups = len(optimizer.param_groups)
    for invalid in ({"lr": -1.0}, {"weight_decay": math.nan}, {"weight_decay_mode": "l3"}):
        with pytest.raises(ValueError, match=next(iter(invalid))):
            optimizer.add_param_group(group_of(name, parameters(), **invalid))
    with pytest.raises(ValueError, match="complex64"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2, dtype=torch.complex64))]})
    assert len(optimizer.param_groups) == groups
    drive(optimizer, 1)


def test_duplicate_parameter_warns_and_is_updated_twice() -> None:
    """This is what torch does."""
    p, q = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer, other = AdamW([p, p], lr=0.1), torch.optim.AdamW([q, q], lr=0.1)
    assert sum("duplicate parameters" in str(w.message) for w in caught) == 2
    drive(optimizer)
    drive(other)
    torch.testing.assert_close(p, q)


@every
def test_parameters_without_gradient_are_skipped(name: str) -> None:
    used, unused, frozen = [torch.nn.Parameter(torch.full((3,), 2.0)) for _ in range(3)]
    frozen.requires_grad_(False)
    optimizer = OPTIMIZERS[name]([frozen, used, unused])
    for _ in range(2):
        optimizer.zero_grad()
        (used * frozen).sum().backward()
        optimizer.step()
    assert list(optimizer.state) == [used]
    assert not torch.equal(used, torch.full((3,), 2.0))
    for p in (unused, frozen):
        assert torch.equal(p, torch.full((3,), 2.0))
    used.grad = None
    before = copy.deepcopy(optimizer.state_dict()["state"][1])
    optimizer.step()  # nothing at all has a gradient
    assert all(torch.equal(before[key], value) for key, value in optimizer.state[used].items())

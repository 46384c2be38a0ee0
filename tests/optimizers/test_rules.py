"""The rules in one process: equal to torch's if torch has them, else to the papers."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch

from bellwether.optimizers import AdamW, Lamb, RAdam
from tests.optimizers.reference import LAMB, minimise

SHAPES = [(5, 7), (), (1,), (3, 2, 4)]

PAIRS = {
    "adamw": (lambda p: AdamW(p, weight_decay=0.1), lambda p: torch.optim.AdamW(p, weight_decay=0.1)),
    "adamw-no-decay": (lambda p: AdamW(p, lr=3e-3, betas=(0.8, 0.99), weight_decay=0.0), lambda p: torch.optim.AdamW(p, lr=3e-3, betas=(0.8, 0.99), weight_decay=0.0)),
    "radam": (lambda p: RAdam(p), lambda p: torch.optim.RAdam(p)),
    "radam-l2": (lambda p: RAdam(p, weight_decay=0.1), lambda p: torch.optim.RAdam(p, weight_decay=0.1)),
    "radam-decoupled": (
        lambda p: RAdam(p, weight_decay=0.1, decoupled_weight_decay=True),
        lambda p: torch.optim.RAdam(p, weight_decay=0.1, decoupled_weight_decay=True),
    ),
}  # fmt: skip


def parameters(dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype)) for s in SHAPES]


def descend(optimizer: torch.optim.Optimizer, steps: int) -> None:
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = (torch.randn(p.shape, generator=generator, dtype=torch.float64) * (1 + step % 3)).to(p.dtype)
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pair", PAIRS)
def test_equals_torch_over_100_steps(pair: str, dtype: torch.dtype) -> None:
    params, torch_params = parameters(dtype), parameters(dtype)
    make, make_torch = PAIRS[pair]
    descend(make(params), 100)
    descend(make_torch(torch_params), 100)
    for value, expected in zip(params, torch_params, strict=True):
        assert (value - expected).norm() <= (1e-6 if dtype == torch.float32 else 1e-13) * expected.norm()


def test_same_defaults_as_torch() -> None:
    for kind, torch_kind in ((AdamW, torch.optim.AdamW), (RAdam, torch.optim.RAdam)):
        value, expected = kind(parameters()).defaults, torch_kind(parameters()).defaults
        for key in ("lr", "betas", "eps", "weight_decay"):
            assert value[key] == expected[key], (kind, key)


def test_lamb_follows_the_paper() -> None:
    shapes = {"weight": (5, 7), "zero": (3,), "bias": (4,)}
    rng = np.random.default_rng(0)
    start = {k: rng.standard_normal(s) for k, s in shapes.items()} | {"zero": np.zeros(3)}
    grads = [{k: rng.standard_normal(s) for k, s in shapes.items()} for _ in range(30)]
    options = {
        "weight": {"weight_decay": 0.05, "trust_ratio": True},
        "zero": {"weight_decay": 0.05, "trust_ratio": True},
        "bias": {"weight_decay": 0.0, "trust_ratio": False},
    }
    result = minimise(LAMB, start, lambda t, w: grads[t], steps=30, lr=0.01, options=options)
    p = {k: torch.nn.Parameter(torch.tensor(v)) for k, v in start.items()}
    optimizer = Lamb([{"params": [(k, p[k])], **options[k]} for k in shapes], lr=0.01)
    for grad in grads:
        for k in shapes:
            p[k].grad = torch.tensor(grad[k])
        optimizer.step()
    for k in shapes:
        np.testing.assert_allclose(p[k].detach().numpy(), result.weights[k], rtol=1e-12, atol=1e-14)
    assert optimizer.trust_ratios() == pytest.approx(result.ratios)
    assert set(optimizer.trust_ratios()) == {"weight", "zero"}


def test_state_names_and_step_for_each_tensor() -> None:
    used, unused = parameters()[:2]
    optimizer = Lamb([used, unused])
    used.grad = torch.ones_like(used)
    optimizer.step()
    optimizer.step()
    assert set(optimizer.state[used]) == {"step", "exp_avg", "exp_avg_sq"}
    assert optimizer.state[used]["step"].item() == 2
    assert unused not in optimizer.state


@pytest.mark.parametrize("copying", ["state_dict", "deepcopy", "pickle"])
def test_copy_takes_the_same_steps(copying: str) -> None:
    params = parameters()
    optimizer = Lamb(params, weight_decay=0.1)
    descend(optimizer, 5)
    if copying == "state_dict":
        others = [torch.nn.Parameter(p.detach().clone()) for p in params]
        other = Lamb(others, lr=1.0)
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    else:
        other = copy.deepcopy(optimizer) if copying == "deepcopy" else pickle.loads(pickle.dumps(optimizer))
        others = [p for g in other.param_groups for p in g["params"]]
    descend(optimizer, 5)
    descend(other, 5)
    for p, q in zip(params, others, strict=True):
        assert torch.equal(p, q)


def test_closure_and_non_contiguous_weights() -> None:
    p = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3).t())
    q = torch.nn.Parameter(p.detach().clone(memory_format=torch.contiguous_format))
    for x in (p, q):
        optimizer = Lamb([x], lr=0.1)

        def closure(x: torch.Tensor = x, optimizer: torch.optim.Optimizer = optimizer) -> torch.Tensor:
            optimizer.zero_grad()
            loss = (x * torch.arange(1.0, 7).reshape(2, 3).t()).sum()
            loss.backward()
            return loss

        assert optimizer.step(closure).item() == 70.0
    torch.testing.assert_close(p, q)


@pytest.mark.parametrize(
    ("invalid", "message"),
    [
        ({"lr": -1.0}, "lr"),
        ({"betas": (1.0, 0.9)}, "betas"),
        ({"eps": -1e-8}, "eps"),
        ({"weight_decay": -0.1}, "weight_decay"),
    ],
)
@pytest.mark.parametrize("make", [Lamb, AdamW, RAdam])
def test_invalid_values_are_named(make: type, invalid: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(parameters(), **invalid)
    with pytest.raises(ValueError, match=message):
        make([{"params": parameters(), **invalid}])


def test_sparse_gradients_are_refused() -> None:
    embedding = torch.nn.Embedding(10, 3, sparse=True)
    optimizer = AdamW(embedding.parameters())
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse=False"):
        optimizer.step()

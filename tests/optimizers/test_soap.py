"""SOAP against a separate float64 implementation and another package; where parameters are whole, and refused where not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bellwether.optimizers import SOAP, AdamW, Swats, WeightAverage
from tests.optimizers import sharded
from tests.optimizers.configurations import copies, distance, drive, parameters
from tests.optimizers.family import FAMILY
from tests.optimizers.test_engines import _train as train_on_torch
from tests.optimizers.test_sharded import _bf16, assembled, check, error, expected, unsharded
from tests.precision import skip_without
from tests.ranks import Ranks
from tests.tiers import covering

pytestmark = pytest.mark.usefixtures("one_thread")


def test_equals_the_reference_in_float64() -> None:
    found, wanted = unsharded(FAMILY["soap"], sharded.weights(), 0.0), expected("soap")
    for name, value in wanted.weights.items():
        assert np.allclose(found.weights[name], value, rtol=1e-11, atol=1e-12), name


def test_rounding_chooses_the_eigenvectors_of_eigenvalue_0() -> None:
    """Of the 97 x 97 factor of a 97 x 31 matrix: fp32 and float64 are two runs. A limit that docs/optimizers.md states."""
    runs = {}
    for dtype in (torch.float32, torch.float64):
        p = nn.Parameter(torch.tensor(sharded.weights()["big"]).to(dtype))
        optimizer = SOAP([p], lr=0.02)
        for step in range(sharded.STEPS):
            others = {**sharded.weights(), "big": p.detach().double().numpy()}
            p.grad = torch.tensor(sharded.gradients(step, others)["big"]).to(dtype)
            optimizer.step()
        runs[dtype] = p.detach().double().numpy()
    assert 1e-3 < error(runs[torch.float32], runs[torch.float64]) < 0.1


SHAPES = [(5, 7), (7, 5), (4,), (1, 3), (3, 2, 4), (6, 3, 2, 2)]


@pytest.mark.parametrize("options", [{}, {"precondition_1d": True, "shampoo_beta": 0.8}, {"max_precond_dim": 4}])
def test_equals_pytorch_optimizer(options: dict[str, Any]) -> None:
    """Its port of the authors' code, with the same decompositions in float64, but for its QR, which is in float32."""
    package = pytest.importorskip("pytorch_optimizer")
    names = {"max_precond_dim": "max_precondition_dim"}
    params = parameters(torch.float64, SHAPES)
    others = copies(params)
    shared = {"lr": 0.02, "weight_decay": 0.1, "precondition_frequency": 3}
    drive(SOAP(params, **shared, **options), 12)
    drive(package.SOAP(others, **shared, **{names.get(key, key): value for key, value in options.items()}), 12)
    assert distance(params, others) < 1e-5


def test_vectors_are_adam_s_and_the_first_step_changes_nothing() -> None:
    params, others = parameters(shapes=[(3,), ()]), parameters(shapes=[(3,), ()])
    start = copies(params)
    soap = SOAP(params, lr=0.1, weight_decay=0.0, eps=0.0)
    adam = AdamW(others, lr=0.1, betas=(0.95, 0.95), weight_decay=0.0, eps=0.0)
    for step in range(4):
        for p, q in zip(params, others, strict=True):
            p.grad, q.grad = torch.full_like(p, 1.0 + step), torch.full_like(q, 1.0 + step)
        soap.step()
        if step:
            adam.step()
        else:
            assert all(torch.equal(p, q) for p, q in zip(params, start, strict=True))
    assert distance(params, others) < 1e-6


def test_diverged_gradients_show_in_the_weights() -> None:
    p = nn.Parameter(torch.ones(2, 2))
    optimizer = SOAP([p])
    for _ in range(2):
        p.grad = torch.full((2, 2), torch.nan)
        optimizer.step()
    assert not p.isfinite().any()


ENGINES = ["ddp", "zero-redundancy", "zero-0", "zero-0-bf16"]


def _zero(stage: int) -> dict[str, Any]:
    return sharded.train("soap", {"stage": stage})


@covering(lambda engine, ranks: ranks == 2 and engine in ("ddp", "zero-0"))
@pytest.mark.parametrize("ranks", [1, 2], indirect=True)
@pytest.mark.parametrize("engine", ENGINES)
def test_engines_with_whole_parameters(ranks: Ranks, engine: str) -> None:
    if engine == "zero-0-bf16":
        skip_without("bf16", ranks)
        results = ranks.run(_bf16, "soap", 0, 1)
        # Gradients of 8 bits: eigenvectors that rounding turns make larger differences than in the other rules.
        for name, master in assembled(results).items():
            assert error(master, expected("soap", 0.0, "bf16").weights[name]) < 0.1, name
        return
    results = ranks.run(_zero, 0) if engine == "zero-0" else ranks.run(train_on_torch, "soap", engine)
    check(results, "soap")


def _refused(engine: str) -> str:
    try:
        if engine == "fsdp2":
            train_on_torch("soap", "fsdp2")
        else:
            _zero(int(engine[-1]))
    except NotImplementedError as error:
        return str(error)
    return ""


@covering(lambda engine: engine in ("zero-1", "fsdp2"))
@pytest.mark.parametrize("ranks", [2], indirect=True)
@pytest.mark.parametrize("engine", ["zero-1", "zero-2", "zero-3", "fsdp2"])
def test_sharded_parameters_are_refused(ranks: Ranks, engine: str) -> None:
    for message in ranks.run(_refused, engine):
        assert "SOAP on sharded parameters: each rank keeps the eigenvectors" in message
        assert "use ZeRO stage 0 or DDP" in message


one = [nn.Parameter(torch.ones(2, 2))]
REFUSED = {
    "frequency": (lambda: SOAP(one, precondition_frequency=0), ValueError, "precondition_frequency=0: must be a whole"),
    "dim": (lambda: SOAP(one, max_precond_dim=0.5), ValueError, "max_precond_dim=0.5: must be a whole number"),
    "beta": (lambda: SOAP(one, shampoo_beta=1.0), ValueError, "shampoo_beta=1.0: must be None or a number"),
    "trust": (lambda: SOAP([{"params": one, "trust_ratio": True}]), ValueError, "trust_ratio=True: SOAP does not"),
    "swats": (lambda: Swats(SOAP(one)), TypeError, "it starts with Adam"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    make, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        make()


def test_average_of_its_weights() -> None:
    p = nn.Parameter(torch.ones(2, 2))
    optimizer = WeightAverage(SOAP([p], lr=0.1), "swa")
    drive(optimizer, 3)
    whole = optimizer.whole_state((2, 3), optimizer.param_groups[0])
    assert whole == {"GG_0": (2, 2), "Q_0": (2, 2), "GG_1": (3, 3), "Q_1": (3, 3)}
    with optimizer.averaged():
        assert p.isfinite().all()


def test_state_without_its_factors_is_refused() -> None:
    """AdamW's state has the same moments."""
    p = nn.Parameter(torch.ones(2, 2))
    optimizer = AdamW([p])
    drive(optimizer, 1)
    with pytest.raises(ValueError, match="the state has no GG_0, GG_1, Q_0, Q_1 for a parameter, which SOAP needs"):
        SOAP([p]).load_state_dict(optimizer.state_dict())

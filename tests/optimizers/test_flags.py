"""The arguments that factories for torch's, apex's and timm's optimizers pass are accepted, with their meaning."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard

from bellwether.optimizers import SGD, Adam, AdamW, Lamb, Lars, RAdam, attach
from tests.optimizers import sharded
from tests.optimizers.configurations import assert_same, copies, distance, drive, parameters
from tests.ranks import Ranks
from tests.tiers import covering

TWINS = [(Adam, torch.optim.Adam), (AdamW, torch.optim.AdamW), (RAdam, torch.optim.RAdam), (SGD, torch.optim.SGD)]


@pytest.mark.parametrize(("ours", "torchs"), TWINS)
def test_signature_of_torch(ours: type, torchs: type) -> None:
    """By position and by keyword, with the same defaults."""
    mine = inspect.signature(ours.__init__).parameters
    theirs = inspect.signature(torchs.__init__).parameters
    positional = [n for n, p in theirs.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert [n for n in mine if n in positional] == positional == list(mine)[: len(positional)]
    for name, parameter in theirs.items():
        assert name in mine, f"{ours.__name__} does not take {name}"
        if name != "params":
            assert mine[name].default == parameter.default, name


@pytest.mark.parametrize("flag", ["fused", "foreach"])
@pytest.mark.parametrize("kind", [Adam, AdamW, Lamb, Lars, RAdam, SGD])
def test_flags_of_the_implementation_change_nothing(kind: type, flag: str) -> None:
    params = parameters()
    plain, flagged = kind(copies(params)), kind(copies(params), **{flag: True})
    for optimizer in (plain, flagged):
        drive(optimizer)
    assert_same(flagged.param_groups[0]["params"], plain.param_groups[0]["params"])


def test_momentum_of_one_and_decoupled_weight_decay_as_torch() -> None:
    cases: list[tuple[Any, Any, dict[str, Any]]] = [
        (SGD, torch.optim.SGD, {"lr": 0.01, "momentum": 1.0}),
        (Adam, torch.optim.Adam, {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    ]
    for ours, torchs, options in cases:
        mine, theirs = ours(copies(parameters()), **options), torchs(copies(parameters()), **options)
        for optimizer in (mine, theirs):
            drive(optimizer, 5)
        assert distance(mine.param_groups[0]["params"], theirs.param_groups[0]["params"]) < 1e-6


def _lamb_of_apex(w: torch.Tensor, gradients: list[torch.Tensor], averaging: bool, clip: float) -> torch.Tensor:
    """apex's multi_tensor_lamb.cu for one parameter, in float64: lr 0.01, decay 0.1."""
    w, m, v = w.double(), torch.zeros_like(w).double(), torch.zeros_like(w).double()
    for t, g in enumerate(gradients, 1):
        norm = g.double().norm()
        g = g.double() / (norm / clip if norm > clip else 1.0)
        m = 0.9 * m + (0.1 if averaging else 1.0) * g
        v = 0.999 * v + 0.001 * g * g
        u = (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-6) + 0.1 * w
        w = w - 0.01 * w.norm() / u.norm() * u
    return w


@pytest.mark.parametrize("averaging", [True, False])
@pytest.mark.parametrize("scale", [0.01, 3.0])
def test_max_grad_norm_and_grad_averaging_as_apex(averaging: bool, scale: float, kernel: str) -> None:
    """Gradients of a norm below the bound are left as they are."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(5, 7, generator=generator)
    gradients = [scale * (1 + i) * torch.randn(5, 7, generator=generator) / 6 for i in range(10)]
    p = nn.Parameter(start.clone())
    optimizer = Lamb([p], lr=0.01, weight_decay=0.1, max_grad_norm=1.0, grad_averaging=averaging, kernel=kernel)
    for g in gradients:
        p.grad = g.clone()
        optimizer.step()
    wanted = _lamb_of_apex(start, gradients, averaging, 1.0)
    assert float((p.detach() - wanted).norm() / wanted.norm()) < 1e-6


@pytest.mark.parametrize(("always", "names"), [(None, {"0.0", "1.0"}), (True, {"0.0", "1.0"}), (False, {"0.0"})])
def test_always_adapt_as_timm(always: bool | None, names: set[str]) -> None:
    a, b = parameters(shapes=[(3,), (4,)])
    optimizer = Lamb([{"params": [a]}, {"params": [b], "weight_decay": 0.0}], always_adapt=always)
    drive(optimizer, 1)
    assert set(optimizer.trust_ratios()) == names


def test_groups_with_different_bounds_are_refused() -> None:
    a, b = parameters(shapes=[(3,), (4,)])
    optimizer = AdamW([{"params": [a], "max_grad_norm": 1.0}, {"params": [b]}])
    with pytest.raises(ValueError, match=r"max_grad_norm is 1\.0 and None in different param groups"):
        drive(optimizer, 1)


def _clipped(kind: str, own: bool) -> list[float]:
    """The weights after three steps under FSDP2, clipped by torch or by the optimizer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))
    fully_shard(model)
    make = {"lamb": Lamb, "adamw": AdamW, "sgd": SGD}[kind]
    optimizer = make(model.parameters(), lr=0.01, max_grad_norm=0.5 if own else None)
    calls, reduces = sharded._count(optimizer)
    for step in range(3):
        model.zero_grad()
        (100 * model(torch.full((2, 5), 1.0 + step))).square().mean().backward()
        if not own:
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
    assert len(reduces) == (own + (kind == "lamb")) * len(calls)
    return [x for p in model.parameters() for x in p.full_tensor().flatten().tolist()]


@covering(lambda kind: kind == "lamb")
@pytest.mark.parametrize("ranks", [2], indirect=True)
@pytest.mark.parametrize("kind", ["lamb", "adamw", "sgd"])
def test_max_grad_norm_under_fsdp2_equals_clipping_by_torch(ranks: Ranks, kind: str) -> None:
    for own, torchs in zip(ranks.run(_clipped, kind, True), ranks.run(_clipped, kind, False), strict=True):
        assert own == pytest.approx(torchs, rel=1e-5, abs=1e-7)


def _under_deepspeed(clip: float) -> str:
    import deepspeed

    model = sharded.Toy()
    optimizer = Lamb(sharded.param_groups(model), lr=0.02, max_grad_norm=1.0)
    config = {
        "train_batch_size": sharded.GLOBAL_BATCH, "gradient_clipping": clip, "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": 2},
    }  # fmt: skip
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    try:
        attach(engine)
    except ValueError as error:
        return str(error)
    for step in range(sharded.STEPS):
        sharded.feed(engine, step)
    return sharded.result(engine, optimizer)  # type: ignore[return-value]


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_max_grad_norm_under_deepspeed(ranks: Ranks) -> None:
    from tests.optimizers.test_sharded import check

    assert all("gradient_clipping=1 already" in message for message in ranks.run(_under_deepspeed, 1.0))
    check(ranks.run(_under_deepspeed, 0.0), "lamb", clip=1.0)  # type: ignore[arg-type]

from __future__ import annotations

import math

import pytest
import torch

from bellwether.optimizers import (
    AdamW,
    Exponential,
    Lamb,
    OneCycle,
    Trapezoid,
    WarmupConstant,
    WarmupCosine,
    WarmupExponential,
    WarmupLinear,
    WarmupPolynomial,
    WarmupStep,
    scaled_lr,
    scaled_warmup,
)
from tests.ranks import Ranks

TOTAL, WARMUP = 9600, 1920


def make(kind: str, batch: int, optimizer: torch.optim.Optimizer | None = None) -> WarmupConstant:
    optimizer = optimizer or torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    shared = {"batch": batch, "total": TOTAL, "warmup": WARMUP}
    return {
        "constant": lambda: WarmupConstant(optimizer, **shared),
        "linear": lambda: WarmupLinear(optimizer, **shared),
        "polynomial": lambda: WarmupPolynomial(optimizer, power=0.5, **shared),
        "cosine": lambda: WarmupCosine(optimizer, final=0.1, **shared),
        "trapezoid": lambda: Trapezoid(optimizer, cooldown=2400, **shared),
        "step": lambda: WarmupStep(optimizer, milestones=[4800, 7200], drop=0.1, **shared),
        "linear from the start": lambda: WarmupLinear(optimizer, decay_from="start", final=0.1, **shared),
        "polynomial from the start": lambda: WarmupPolynomial(optimizer, power=0.5, decay_from="start", **shared),
        "cosine from the start": lambda: WarmupCosine(optimizer, decay_from="start", **shared),
        "trapezoid from the start": lambda: Trapezoid(optimizer, cooldown=2400, decay_from="start", **shared),
        "step from the start": lambda: WarmupStep(optimizer, milestones=[4800, 7200], decay_from="start", **shared),
        "warmup-exponential": lambda: WarmupExponential(optimizer, interval=960, drop=0.5, final=0.25, **shared),
    }[kind]()


CURVES = {
    "constant": lambda x: 1.0,
    "linear": lambda x: 1 - (x - 0.2) / 0.8,
    "polynomial": lambda x: math.sqrt(1 - (x - 0.2) / 0.8),
    "cosine": lambda x: 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (x - 0.2) / 0.8)),
    "trapezoid": lambda x: min(1.0, (1 - x) / 0.25),
    "step": lambda x: 1.0 if x < 0.5 else 0.1 if x < 0.75 else 0.01,
    "linear from the start": lambda x: 0.1 + 0.9 * (1 - x),
    "polynomial from the start": lambda x: math.sqrt(1 - x),
    "cosine from the start": lambda x: 0.5 * (1 + math.cos(math.pi * x)),
    "trapezoid from the start": lambda x: min(1.0, (1 - x) / 0.25),
    "step from the start": lambda x: 1.0 if x < 0.5 else 0.1 if x < 0.75 else 0.01,
    "warmup-exponential": lambda x: 0.25 + 0.75 * 0.5 ** ((x - 0.2) / 0.1),
}


def rates(schedule: WarmupConstant, batch: int) -> list[float]:
    found = []
    for _ in range(TOTAL // batch):
        found.append(schedule.get_last_lr()[0])
        schedule.optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize("batch", [48, 96, 480])
@pytest.mark.parametrize("kind", CURVES)
def test_curve_is_the_same_at_every_batch_size(kind: str, batch: int) -> None:
    for step, rate in enumerate(rates(make(kind, batch), batch)):
        x = (step + 0.5) * batch / TOTAL
        wanted = x / 0.2 if x < 0.2 else CURVES[kind](x)
        assert rate == pytest.approx(2.0 * wanted), step


@pytest.mark.parametrize("kind", CURVES)
def test_seek_and_state_dict_resume(kind: str) -> None:
    whole = rates(make(kind, 96), 96)
    jumped = make(kind, 96)
    jumped.seek(40 * 96)
    first = make(kind, 96)
    for _ in range(40):
        first.optimizer.step()
        first.step()
    loaded = make(kind, 96)
    loaded.load_state_dict(first.state_dict())
    for schedule in (jumped, loaded):
        schedule.optimizer.step()
        schedule.step()
        assert schedule.get_last_lr()[0] == pytest.approx(whole[41])
        assert schedule.optimizer.param_groups[0]["lr"] == pytest.approx(whole[41])


@pytest.mark.parametrize("batch", [48, 480])
def test_exponential_has_a_constant_factor(batch: int) -> None:
    for start, final in ((1e-6, 1.0), (1.0, 1e-2)):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
        found = rates(Exponential(optimizer, batch=batch, total=TOTAL, start=start, final=final), batch)
        for step, rate in enumerate(found):
            assert rate == pytest.approx(2.0 * start * (final / start) ** ((step + 0.5) * batch / TOTAL))
    with pytest.raises(ValueError, match=r"final=0\.0: must be above 0"):
        Exponential(optimizer, batch=batch, total=TOTAL, final=0.0)
    with pytest.raises(ValueError, match="warmup=5"):
        Exponential(optimizer, batch=batch, total=TOTAL, final=0.1, warmup=5)


@pytest.mark.parametrize(
    ("wrong", "names"),
    [
        ({"warmup": 200}, "warmup"),
        ({"total": 0}, "total"),
        ({"final": 2.0}, "final"),
        ({"batch": 0}, "batch"),
    ],
)
def test_invalid_lengths_are_named(wrong: dict, names: str) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(ValueError, match=names):
        WarmupLinear(optimizer, **{"batch": 10, "total": 100, **wrong})
    with pytest.raises(ValueError, match="cooldown"):
        Trapezoid(optimizer, batch=10, total=100, warmup=60, cooldown=50)


# You et al. 2019, table 4 (BERT-large) and 5 (ResNet-50), batch 512 to 32,768.
BERT = [(512 << i, 5e-3 / 2 ** (3 - i / 2), 1 / (320 >> i)) for i in range(7)]
RESNET = [(512 << i, 4e-2 / 2 ** (3 - i / 2), 0.3125 * 2**i) for i in range(7)]


@pytest.mark.parametrize(("batch", "lr", "warmup"), BERT)
def test_lamb_table_bert(batch: int, lr: float, warmup: float) -> None:
    assert scaled_lr(BERT[0][1], batch, 512, "sqrt") == pytest.approx(lr)
    assert scaled_warmup(BERT[0][2], batch, 512) == pytest.approx(warmup)


@pytest.mark.parametrize(("batch", "lr", "epochs"), RESNET)
def test_lamb_table_resnet(batch: int, lr: float, epochs: float) -> None:
    assert scaled_lr(RESNET[0][1], batch, 512, "sqrt") == pytest.approx(lr)
    assert scaled_warmup(0.3125, batch, 512) == pytest.approx(epochs)


def test_goyal() -> None:
    assert scaled_lr(0.1, 8192, 256, "linear") == pytest.approx(3.2)
    assert scaled_lr(0.1, 8192, 256, "none") == 0.1


def _under_deepspeed(stage: int) -> list[float]:
    import deepspeed

    from bellwether import optimizers

    world = torch.distributed.get_world_size()
    model = torch.nn.Linear(4, 4)
    optimizer = Lamb(optimizers.groups(model), lr=2.0)
    schedule = make("linear", 480, optimizer)
    engine, _, _, _ = deepspeed.initialize(
        model=model, optimizer=optimizer, lr_scheduler=schedule,
        config={"train_batch_size": 480 // world * world, "gradient_clipping": 0.0, "zero_allow_untested_optimizer": True,
                "zero_optimization": {"stage": stage}, "gradient_accumulation_steps": 2},
    )  # fmt: skip
    optimizers.attach(engine)
    found = []
    for _ in range(10):
        found.append(engine.get_lr()[0])
        for _ in range(2):
            engine.backward(engine(torch.ones(2, 4)).sum())
            engine.step()
    engine.destroy()
    return found


@pytest.mark.parametrize("ranks", [2], indirect=True)
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_deepspeed_steps_the_schedule(ranks: Ranks, stage: int) -> None:
    wanted = rates(make("linear", 480), 480)[:10]
    for found in ranks.run(_under_deepspeed, stage):
        assert found == pytest.approx(wanted)


def _optimizers() -> list[torch.optim.Optimizer]:
    weight = torch.nn.Parameter(torch.ones(2))
    return [
        AdamW([{"params": [weight], "weight_decay": 0.4}], lr=2.0, betas=(0.9, 0.99)),
        torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=2.0, momentum=0.9, weight_decay=0.4),
    ]


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("kind", ["one cycle", "trapezoid", "language model"])
def test_momentum_and_decay_follow_the_rate(index: int, kind: str) -> None:
    optimizer = _optimizers()[index]
    shared: dict = {"batch": 1, "total": 100, "momentum": (0.95, 0.85), "scale_decay": True}
    if kind == "trapezoid":
        schedule = Trapezoid(optimizer, warmup=20, cooldown=30, **shared)
    elif kind == "one cycle":
        schedule = OneCycle(optimizer, rise=45, annihilation=10, initial=0.1, **shared)
    else:
        schedule = OneCycle(optimizer, rise=10, stretch=50, annihilation=10, initial=0.1, **shared)
    group = optimizer.param_groups[0]
    curve = []
    for _ in range(100):
        momentum = group["betas"][0] if "betas" in group else group["momentum"]
        curve.append((group["lr"] / 2.0, momentum, group["weight_decay"] / 0.4))
        optimizer.step()
        schedule.step()
    rates, momenta, decays = (torch.tensor(column) for column in zip(*curve, strict=True))
    torch.testing.assert_close(decays, rates)
    assert momenta.argmin() in torch.nonzero(rates == rates.max())
    assert momenta.min() == pytest.approx(0.85, abs=0.003)
    assert momenta.max() == pytest.approx(0.95, abs=0.003)
    # Rate and momentum move in opposite directions, except in the last phase, where the momentum stays at its maximum.
    until = 100 if kind == "trapezoid" else 90
    assert ((rates[:until].diff() * momenta[:until].diff()) <= 1e-9).all()
    if until < 100:
        assert (momenta[until:] == momenta[-1]).all()
        assert rates[-1] < 0.02
    if "betas" in group:
        assert group["betas"][1] == 0.99
    schedule.seek(30)
    assert (group["lr"] / 2.0, group["weight_decay"] / 0.4) == pytest.approx((curve[30][0], curve[30][2]))
    assert (group["betas"][0] if "betas" in group else group["momentum"]) == pytest.approx(curve[30][1])


def test_second_schedule_starts_from_the_peak_weight_decay() -> None:
    optimizer = _optimizers()[0]
    WarmupLinear(optimizer, batch=1, total=10, warmup=10, scale_decay=True)
    other = _optimizers()[0]
    other.load_state_dict(optimizer.state_dict())
    other.param_groups[0]["lr"] = 2.0
    schedule = WarmupLinear(other, batch=1, total=10, warmup=10, scale_decay=True)
    schedule.seek(9)
    assert other.param_groups[0]["weight_decay"] == pytest.approx(0.4 * 0.95)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"rise": 60, "stretch": 50}, "together at most total=100"),
        ({"rise": -1}, "each at least 0"),
        ({"initial": 0.1, "final": 0.2}, "final <= initial"),
        ({"momentum": (0.85, 0.95)}, "highest, lowest"),
        ({"momentum": (1.0, 0.9)}, r"each in \[0, 1\)"),
    ],
)
def test_one_cycle_refuses_invalid_lengths(keywords: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OneCycle(_optimizers()[0], batch=1, total=100, **keywords)


def test_warmup_from_above_zero() -> None:
    schedule = WarmupLinear(_optimizers()[0], batch=1, total=100, warmup=10, start=0.25)
    assert schedule.factor(0) == 0.25
    assert schedule.factor(5) == pytest.approx(0.625)
    assert schedule.factor(10) == 1


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"milestones": [50, 20]}, "must be ascending"),
        ({"milestones": [-1]}, "must be ascending"),
        ({"milestones": [50], "drop": 1.0}, "drop=1.0"),
        ({"milestones": [50], "start": 2.0}, "start=2.0"),
    ],
)
def test_step_schedule_refuses_invalid_options(keywords: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WarmupStep(_optimizers()[0], batch=1, total=100, **keywords)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"interval": 0}, "interval=0"),
        ({"interval": 5, "drop": 1.0}, "drop=1.0"),
        ({"interval": 5, "warmup_power": 0.0}, "warmup_power=0.0"),
        ({"interval": 5, "decay_from": "peak"}, "decay_from='peak': must be 'warmup' or 'start'"),
    ],
)
def test_exponential_decay_refuses_invalid_options(keywords: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WarmupExponential(_optimizers()[0], batch=1, total=100, **keywords)

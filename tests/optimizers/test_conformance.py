"""The contract of a torch optimizer, kept by every optimizer of the package in every configuration."""

from __future__ import annotations

import copy
import io
import math
import pickle
import typing
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.optim import lr_scheduler

import optimizers
from optimizers import SGD, Adam, AdamW, Lamb, Lars, Lookahead, RAdam, Swats, WeightAverage, composed, kernels

Factory = Callable[..., Any]


def of(kind: type, **options: Any) -> Factory:
    return lambda params, **others: kind(params, **{**options, **others})


def around(wrap: Callable[[Any], Any], kind: type, **options: Any) -> Factory:
    return lambda params, **others: wrap(kind(params, **{**options, **others}))


# Learning rates suit Rosenbrock's function.
OPTIMIZERS: dict[str, Factory] = {
    "adam": of(Adam, lr=0.1),
    "adam-l2-amsgrad": of(Adam, lr=0.1, weight_decay=1e-4, amsgrad=True),
    "adam-trust": of(Adam, lr=0.01, trust_ratio=True, trust_bounds=(0.1, 10.0)),
    "adamw": of(AdamW, lr=0.1, weight_decay=1e-3),
    "adamw-amsgrad": of(AdamW, lr=0.1, weight_decay=1e-3, amsgrad=True),
    "adamw-independent": of(AdamW, lr=0.1, weight_decay=1e-5, decay="independent"),
    "adamw-prox": of(AdamW, lr=0.1, weight_decay=1e-5, decay="prox"),
    "adamw-prox-metric": of(AdamW, lr=0.1, weight_decay=1e-3, decay="prox-metric"),
    "lamb": of(Lamb, lr=0.005, weight_decay=1e-3),
    "lamb-bounds": of(Lamb, lr=0.02, weight_decay=1e-3, trust_bounds=(0.01, 2.0), bias_correction=False),
    "lamb-amsgrad-prox": of(Lamb, lr=0.005, weight_decay=1e-5, amsgrad=True, decay="prox"),
    "nvlamb": of(Lamb, lr=0.005, weight_decay=1e-3, prenormalize=True),
    "lars": of(Lars, lr=0.1, trust_coefficient=0.02, weight_decay=1e-4),
    "lars-nesterov": of(Lars, lr=0.1, trust_coefficient=0.02, weight_decay=1e-4, nesterov=True),
    "lars-plain": of(Lars, lr=0.7, trust_coefficient=0.02, momentum=0.0, trust_bounds=(0.0, 0.02)),
    "radam": of(RAdam, lr=0.004, weight_decay=1e-4),
    "radam-decoupled": of(RAdam, lr=0.004, weight_decay=1e-3, decoupled_weight_decay=True),
    "sgd": of(SGD, lr=2e-3),
    "sgd-momentum": of(SGD, lr=1e-3, momentum=0.9, dampening=0.1, weight_decay=1e-4),
    "sgd-nesterov-decoupled": of(SGD, lr=1e-3, momentum=0.9, nesterov=True, weight_decay=1e-3, decay="decoupled"),
    "sgd-trust": of(SGD, lr=0.01, momentum=0.5, trust_ratio=True, weight_decay=1e-4),
    "lookahead-lamb": around(lambda base: Lookahead(base, k=2), Lamb, lr=0.01, weight_decay=1e-3),
    "swats-adamw": around(Swats, AdamW, lr=0.1, weight_decay=1e-3),
    "ema-adamw": around(lambda base: WeightAverage(base, "ema"), AdamW, lr=0.1, weight_decay=1e-3),
    "swa-lookahead-sgd": around(lambda base: WeightAverage(Lookahead(base, k=2)), SGD, lr=1e-3, momentum=0.9),
}
JOINT = ("nvlamb", "swats-adamw")  # all parameters together decide, so that a group is not an optimizer of its own

every = pytest.mark.parametrize("name", OPTIMIZERS)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Threads that wait for each other take longer than tensors this small, above all on a machine that is in use."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["reference", "cpu"])
def kernel(request: pytest.FixtureRequest) -> str:
    try:
        kernels.check(request.param)
    except RuntimeError as error:
        pytest.skip(str(error))
    return request.param


SHAPES = [(5, 7), (), (1,), (3, 2, 4)]


def parameters(dtype: torch.dtype = torch.float32, shapes: Sequence[tuple[int, ...]] = SHAPES) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype)) for s in shapes]


def copies(params: Sequence[Tensor], dtype: torch.dtype | None = None) -> list[Tensor]:
    return [torch.nn.Parameter(p.detach().clone().to(dtype or p.dtype)) for p in params]


def drive(optimizer: Any, steps: int = 3, seed: int = 1, after: Callable[[], Any] = int, sign: float = 1.0) -> None:
    """Steps with gradients that depend on the seed and the order of the parameters alone."""
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        for group in optimizer.param_groups:
            for p in group["params"]:
                g = torch.randn(p.shape, generator=generator, dtype=torch.float64) * (1 + step % 3)
                p.grad = (sign * g).to(p.dtype)
        optimizer.step()
        after()


def assert_same(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine, other)


def distance(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """The largest of a parameter, relative to its norm where that is above 1, the size of an element at first."""
    pairs = [(mine.detach().double(), other.detach().double()) for mine, other in zip(ours, theirs, strict=True)]
    return max(float((mine - other).norm() / max(1.0, other.norm())) for mine, other in pairs)


def held(optimizer: Any) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def through_a_file(what: Any, weights_only: bool) -> Any:
    file = io.BytesIO()
    torch.save(what, file)
    file.seek(0)
    return torch.load(file, weights_only=weights_only)


# --- it minimises ---------------------------------------------------------------------------------------------------


@every
def test_rosenbrock(name: str, kernel: str) -> None:
    """Along the valley to (1, 1), from where no weight has to pass 0, near which a trust ratio stops."""
    p = torch.nn.Parameter(torch.tensor([1.5, 2.0]))
    optimizer = OPTIMIZERS[name]([p], kernel=kernel)

    def loss(x: float, y: float) -> float:
        return (1 - x) ** 2 + 100 * (y - x * x) ** 2

    for _ in range(1000):
        x, y = p.tolist()
        p.grad = torch.tensor([-2 * (1 - x) - 400 * x * (y - x * x), 200 * (y - x * x)])
        optimizer.step()
    x, y = p.tolist()
    assert loss(x, y) < 0.02 * loss(1.5, 2.0)
    assert math.hypot(x - 1, y - 1) < 0.6 * math.hypot(0.5, 1.0)


SCHEDULERS: dict[str, Callable[[Any, float], Any]] = {
    "none": lambda optimizer, lr: None,
    "cosine": lambda optimizer, lr: lr_scheduler.CosineAnnealingLR(optimizer, 120),
    "one-cycle": lambda optimizer, lr: lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=120, cycle_momentum=False),
    "warm-up": lambda optimizer, lr: lr_scheduler.SequentialLR(
        optimizer,
        [lr_scheduler.LinearLR(optimizer, 0.1, total_iters=10), lr_scheduler.ExponentialLR(optimizer, 0.99)],
        [10],
    ),
    "plateau": lambda optimizer, lr: lr_scheduler.ReduceLROnPlateau(optimizer, patience=5),
}  # fmt: skip


@every
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_regression(name: str, scheduler: str) -> None:
    """A linear layer, two param groups, the second at half the rate."""
    torch.manual_seed(0)
    layer, truth, x = torch.nn.Linear(6, 3), torch.nn.Linear(6, 3), torch.randn(64, 6)
    y = truth(x).detach()
    optimizer = OPTIMIZERS[name](
        [layer.weight], lr={"lars-plain": 5.0}.get(name, 0.5 if name.startswith("lars") else 0.05)
    )
    lr = optimizer.param_groups[0]["lr"]
    optimizer.add_param_group({"params": [layer.bias], "lr": lr / 2})
    schedule = SCHEDULERS[scheduler](optimizer, lr)
    losses = []
    for _ in range(120):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(layer(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if schedule is not None:
            schedule.step(*([losses[-1]] if scheduler == "plateau" else []))
    assert losses[-1] < 0.4 * losses[0]


# --- it equals torch ------------------------------------------------------------------------------------------------

# What torch calls its options, and what its optimizers are called with.
TWINS: dict[str, tuple[str, dict[str, Any]]] = {
    "adam": ("Adam", dict(lr=0.01, eps=1e-6)),
    "adam-l2": ("Adam", dict(lr=0.01, weight_decay=0.1, betas=(0.8, 0.99))),
    "adam-l2-amsgrad": ("Adam", dict(lr=0.01, weight_decay=0.1, amsgrad=True, betas=(0.9, 0.9))),
    "adam-maximize": ("Adam", dict(lr=0.01, weight_decay=0.1, maximize=True)),
    "adamw": ("AdamW", dict(lr=0.01, weight_decay=0.1)),
    "adamw-defaults": ("AdamW", {}),
    "adamw-amsgrad": ("AdamW", dict(lr=0.01, amsgrad=True, betas=(0.9, 0.9))),
    "adamw-maximize": ("AdamW", dict(lr=0.01, weight_decay=0.1, maximize=True)),
    "radam": ("RAdam", dict(lr=0.01)),
    "radam-l2": ("RAdam", dict(lr=0.01, weight_decay=0.1, betas=(0.9, 0.95))),
    "radam-decoupled": ("RAdam", dict(lr=0.01, weight_decay=0.1, decoupled_weight_decay=True)),
    "radam-maximize": ("RAdam", dict(lr=0.01, maximize=True)),
    "sgd": ("SGD", dict(lr=0.01)),
    "sgd-momentum": ("SGD", dict(lr=0.01, momentum=0.9)),
    "sgd-dampening-l2": ("SGD", dict(lr=0.01, momentum=0.9, dampening=0.5, weight_decay=0.1)),
    "sgd-nesterov-l2": ("SGD", dict(lr=0.01, momentum=0.9, nesterov=True, weight_decay=0.1)),
    "sgd-maximize": ("SGD", dict(lr=0.01, momentum=0.9, dampening=0.1, weight_decay=0.1, maximize=True)),
}
# 100 steps, each of which rounds the weights by half a unit in the last place: 6e-8 and 1e-16.
CLOSE = {torch.float32: 1e-6, torch.float64: 1e-13}

twins = pytest.mark.parametrize("twin", TWINS)


def twin_of(twin: str, params: Sequence[Tensor], **others: Any) -> Any:
    kind, options = TWINS[twin]
    return getattr(optimizers, kind)(params, **options, **others)


def torch_twin(twin: str, params: Sequence[Tensor]) -> Any:
    kind, options = TWINS[twin]
    return getattr(torch.optim, kind)(params, **options)


@twins
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_torch(twin: str, dtype: torch.dtype, kernel: str) -> None:
    """Also while the rate, and with Adam and Nesterov the momentum, go up and down at every step."""
    if kernel == "cpu" and dtype != torch.float32:
        pytest.skip("the C++ kernel is for float32")
    ours, theirs = parameters(dtype), parameters(dtype)
    for optimizer in (twin_of(twin, ours, kernel=kernel), torch_twin(twin, theirs)):
        momentum = optimizer.defaults.get("momentum", 0.9) > 0 and not optimizer.defaults.get("dampening")
        schedule = lr_scheduler.OneCycleLR(optimizer, max_lr=0.02, total_steps=101, cycle_momentum=momentum)
        drive(optimizer, 100, after=schedule.step)
    assert distance(ours, theirs) < CLOSE[dtype]


@twins
@pytest.mark.parametrize("before", [1, 8])
def test_goes_on_from_torch(twin: str, before: int) -> None:
    """Torch's state and hyperparameters, loaded into an optimizer that was made with others."""
    theirs = parameters(torch.float64)
    other = torch_twin(twin, theirs)
    drive(other, before)
    ours = copies(theirs)
    optimizer = getattr(optimizers, TWINS[twin][0])(ours, lr=123.0, weight_decay=0.77)
    optimizer.load_state_dict(copy.deepcopy(other.state_dict()))
    drive(optimizer, 8, seed=2)
    drive(other, 8, seed=2)
    assert distance(ours, theirs) < CLOSE[torch.float64]


@pytest.mark.parametrize("twin", [t for t in TWINS if t.startswith("adam")])
def test_torch_goes_on_from_ours(twin: str) -> None:
    ours = parameters(torch.float64)
    optimizer = twin_of(twin, ours)
    drive(optimizer, 8)
    theirs = copies(ours)
    other = torch_twin(twin, theirs)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    drive(optimizer, 8, seed=2)
    drive(other, 8, seed=2)
    assert distance(ours, theirs) < CLOSE[torch.float64]


def test_the_peak_rate_of_a_schedule_of_torch_is_taken_over() -> None:
    p = parameters()
    other = torch.optim.SGD(p, lr=0.4)
    lr_scheduler.LambdaLR(other, lambda step: 0.25)
    optimizer = SGD(p, lr=1.0, weight_decay=0.1, decay="prox")
    optimizer.load_state_dict(other.state_dict())
    group = optimizer.param_groups[0]
    assert (group["lr"], group["peak_lr"], group["decay"]) == (0.1, 0.4, "prox")


def test_steps_that_old_versions_saved_as_numbers() -> None:
    ours, theirs = parameters(), parameters()
    optimizer, other = AdamW(ours), AdamW(theirs)
    for o in (optimizer, other):
        drive(o)
    saved = copy.deepcopy(optimizer.state_dict())
    for state in saved["state"].values():
        state["step"] = 3
    optimizer.load_state_dict(saved)
    for o in (optimizer, other):
        drive(o)
    assert_same(ours, theirs)


# --- state dicts and copies -----------------------------------------------------------------------------------------


@every
def test_state_dict_round_trip_to_the_bit(name: str, kernel: str) -> None:
    ours = parameters()
    optimizer = OPTIMIZERS[name](ours, kernel=kernel)
    drive(optimizer)
    saved = optimizer.state_dict()
    assert saved.keys() == {"state", "param_groups"}
    assert saved["param_groups"][0]["params"] == list(range(len(SHAPES))) == list(saved["state"])
    theirs = copies(ours)
    other = OPTIMIZERS[name](theirs, kernel=kernel, lr=0.77, weight_decay=0.77)
    drive(other, 1)
    for p, q in zip(ours, theirs, strict=True):
        q.data.copy_(p.data)
    other.load_state_dict(through_a_file(saved, weights_only=True))
    assert other.state_dict()["param_groups"] == saved["param_groups"]
    drive(optimizer, seed=2)
    drive(other, seed=2)
    assert_same(ours, theirs)


@every
@pytest.mark.parametrize("copied", ["deepcopy", "pickle", "torch.save"])
def test_a_copy_goes_on_to_the_bit(name: str, copied: str, kernel: str) -> None:
    """Under a schedule too, which puts a function of its own in place of step()."""
    ours = parameters()
    optimizer = OPTIMIZERS[name](ours, kernel=kernel)
    schedule = lr_scheduler.ExponentialLR(optimizer, 0.9)
    drive(optimizer, after=schedule.step)
    how = {
        "deepcopy": copy.deepcopy,
        "pickle": lambda o: pickle.loads(pickle.dumps(o)),
        "torch.save": lambda o: through_a_file(o, weights_only=False),
    }
    other = how[copied](optimizer)
    theirs = held(other)
    assert repr(other) == repr(optimizer)
    drive(optimizer, seed=2)
    assert not any(torch.equal(p, q) for p, q in zip(ours, theirs, strict=True))  # the copy has weights of its own
    drive(other, seed=2)
    assert_same(ours, theirs)


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_state_is_loaded_in_the_dtype_of_the_parameters(name: str, dtype: torch.dtype) -> None:
    ours = parameters()
    optimizer = OPTIMIZERS[name](ours)
    drive(optimizer)
    theirs = copies(ours, dtype)
    other = OPTIMIZERS[name](theirs)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for p, q in zip(ours, theirs, strict=True):
        assert other.state[q].keys() == optimizer.state[p].keys()
        for key, value in other.state[q].items():
            assert value.dtype == (torch.float32 if key == "step" else dtype)
            assert torch.equal(value, optimizer.state[p][key].to(value.dtype))
    drive(other, 1)
    assert all(q.isfinite().all() for q in theirs)


@every
def test_state_by_name_of_torch_distributed_checkpoint(name: str) -> None:
    """Which makes the state of a new optimizer by a step with lr 0 and zero gradients: it must not move a weight."""
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3)
    model.bias.data.fill_(0.5)
    optimizer = OPTIMIZERS[name](model.named_parameters())
    drive(optimizer)
    saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer))
    twin = copy.deepcopy(model)
    other = OPTIMIZERS[name](twin.named_parameters(), lr=0.77)
    get_optimizer_state_dict(twin, other)
    assert_same(list(model.parameters()), list(twin.parameters()))
    set_optimizer_state_dict(twin, other, saved)
    drive(optimizer, seed=2)
    drive(other, seed=2)
    assert_same(list(model.parameters()), list(twin.parameters()))


def test_another_number_of_parameters_is_refused() -> None:
    saved = Lamb(parameters()).state_dict()
    with pytest.raises(ValueError, match="size of optimizer's group"):
        Lamb(parameters()[:2]).load_state_dict(saved)
    with pytest.raises(ValueError, match="different number of parameter groups"):
        Lamb([{"params": [p]} for p in parameters()]).load_state_dict(saved)


# --- parameters and groups ------------------------------------------------------------------------------------------


@every
def test_a_group_is_an_optimizer_of_its_own(name: str, kernel: str) -> None:
    """Groups with options of their own, one of them added after some steps."""
    if name in JOINT:
        pytest.skip("all parameters decide together")
    make, options = OPTIMIZERS[name], [{}, {"lr": 0.03}, {"weight_decay": 0.2}]
    shapes = [[(3, 2), (4,)], [(2, 2)], [(), (7,), (3,)]]
    ours, theirs = ([parameters(shapes=s) for s in shapes] for _ in range(2))
    optimizer = make([{"params": p, **o} for p, o in zip(ours[:2], options, strict=False)], kernel=kernel)
    alone = [make(p, kernel=kernel, **o) for p, o in zip(theirs, options, strict=True)]
    for steps, groups in ((2, 2), (3, 3)):
        if groups == 3:
            optimizer.add_param_group({"params": ours[2], **options[2]})
        for step in range(steps):
            for i in range(groups):
                for p, q in zip(ours[i], theirs[i], strict=True):
                    p.grad = torch.full_like(p, 0.5 + step) * torch.arange(1.0, p.numel() + 1).view(p.shape)
                    q.grad = p.grad.clone()
                alone[i].step()
            optimizer.step()
    for p, q in zip(ours, theirs, strict=True):
        assert_same(p, q)


def test_groups_that_are_added_again_and_again(kernel: str) -> None:
    """What is remembered of tensors must not be taken for that of others which come to lie at the same address."""
    for _ in range(10):
        ours, theirs = [parameters(shapes=[(7,), (3,)]) for _ in range(2)]
        optimizer, other = Lamb(ours, kernel=kernel), Lamb(theirs, kernel="reference")
        for size in range(1, 8):
            for o in (optimizer, other):
                o.add_param_group({"params": parameters(shapes=[(size,)])})
            drive(optimizer, 1)
            other._layouts.clear()
            drive(other, 1)
        assert distance(held(optimizer), held(other)) < CLOSE[torch.float32]


def test_what_is_remembered_of_combinations_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(composed, "_LAYOUTS", 8)
    params = parameters(shapes=[(3,)] * 6)
    optimizer = Lamb(params)
    for combination in range(1, 64):
        for i, p in enumerate(params):
            p.grad = torch.ones(3) if combination >> i & 1 else None
        optimizer.step()
        assert len(optimizer._layouts) <= 8
    assert len(optimizer.trust_ratios()) == 6


def test_trust_ratios_are_the_last_ones() -> None:
    """However the tensors were combined before: here together, apart, and together again."""
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
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == ["weight", "bias"]
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
def test_refused_parameters(name: str, case: str) -> None:
    params, error, message = REFUSED_PARAMETERS[case]
    with pytest.raises(error, match=message):
        OPTIMIZERS[name](params)


@every
def test_a_group_that_is_refused_is_not_kept(name: str) -> None:
    optimizer = OPTIMIZERS[name](parameters())
    for bad in ({"lr": -1.0}, {"weight_decay": math.nan}, {"decay": "l3"}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            optimizer.add_param_group({"params": parameters(), **bad})
    with pytest.raises(ValueError, match="complex64"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2, dtype=torch.complex64))]})
    assert len(optimizer.param_groups) == 1
    drive(optimizer, 1)


def test_a_parameter_that_stands_twice_is_warned_of_and_updated_twice() -> None:
    """As in torch."""
    p, q = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer, other = AdamW([p, p], lr=0.1), torch.optim.AdamW([q, q], lr=0.1)
    assert sum("duplicate parameters" in str(w.message) for w in caught) == 2
    drive(optimizer)
    drive(other)
    torch.testing.assert_close(p, q)


@every
def test_what_has_no_gradient_is_left_out(name: str) -> None:
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


# --- one step -------------------------------------------------------------------------------------------------------


@every
def test_closure(name: str) -> None:
    """Its loss comes back, and gradients are on inside it even where they are off around."""
    p = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer, calls = OPTIMIZERS[name]([p]), []

    def closure() -> Tensor:
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    with torch.no_grad():
        losses = [optimizer.step(closure).item() for _ in range(2)]
    assert calls == [True, True]
    assert losses[0] == 25.0 > losses[1]
    assert optimizer.step() is None


@every
def test_zero_grad(name: str) -> None:
    params = parameters()
    optimizer = OPTIMIZERS[name](params)
    drive(optimizer, 1)
    optimizer.zero_grad(set_to_none=False)
    assert all(not p.grad.any() for p in params)
    optimizer.step()
    assert all(optimizer.state[p]["step"] == 2 for p in params)
    optimizer.zero_grad()
    assert all(p.grad is None for p in params)
    optimizer.step()
    assert all(optimizer.state[p]["step"] == 2 for p in params)


@every
def test_zero_gradients_move_nothing_at_first(name: str, kernel: str) -> None:
    ours, before = parameters(), parameters()
    optimizer = OPTIMIZERS[name](ours, kernel=kernel, weight_decay=0.0)
    for p in ours:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert_same(ours, before)


@every
def test_rate_zero_leaves_the_weights(name: str, kernel: str) -> None:
    ours, before = parameters(), parameters()
    optimizer = OPTIMIZERS[name](ours, kernel=kernel, weight_decay=0.1)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    drive(optimizer)
    assert_same(ours, before)
    assert all(optimizer.state[p]["step"] == 3 for p in ours)


@every
def test_rate_is_read_at_every_step(name: str, kernel: str) -> None:
    ours, theirs = parameters(), parameters()
    optimizer = OPTIMIZERS[name](ours, kernel=kernel, lr=0.5)
    other = OPTIMIZERS[name](theirs, kernel=kernel, lr=0.25)
    for group in optimizer.param_groups:
        group["lr"] = 0.25
    for group in other.param_groups:
        if "peak_lr" in group:
            group["peak_lr"] = 0.5
    drive(optimizer)
    drive(other)
    assert_same(ours, theirs)


@every
def test_rate_in_a_tensor(name: str, kernel: str) -> None:
    """Which schedules write into."""
    ours, theirs = parameters(), parameters()
    optimizer = OPTIMIZERS[name](ours, kernel=kernel, lr=torch.tensor(0.125))
    other = OPTIMIZERS[name](theirs, kernel=kernel, lr=0.125)
    for o in (optimizer, other):
        drive(o, after=lr_scheduler.ExponentialLR(o, 0.5).step)  # exact in any precision
    assert isinstance(optimizer.param_groups[0]["lr"], Tensor)
    assert_same(ours, theirs)
    third = OPTIMIZERS[name](copies(ours), kernel=kernel)
    third.load_state_dict(through_a_file(optimizer.state_dict(), weights_only=True))
    drive(optimizer)
    drive(third)
    assert_same(ours, held(third))


@every
def test_maximize_is_to_minimise_the_negative(name: str, kernel: str) -> None:
    ours, theirs = parameters(), parameters()
    drive(OPTIMIZERS[name](ours, kernel=kernel, maximize=True), 5)
    drive(OPTIMIZERS[name](theirs, kernel=kernel), 5, sign=-1.0)
    assert_same(ours, theirs)


@every
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_gradients_stay_as_they_are(name: str, mode: Any, kernel: str) -> None:
    params = parameters()
    optimizer = OPTIMIZERS[name](params, kernel=kernel, weight_decay=0.1)
    kept = []
    for p in params:
        p.grad = torch.randn_like(p)
        kept.append((p.grad, p.grad.clone()))
    with mode():
        optimizer.step()
        optimizer.step()
    for p, before, (grad, copied) in zip(params, parameters(), kept, strict=True):
        assert p.grad is grad
        assert torch.equal(grad, copied)
        assert p.is_leaf
        assert p.requires_grad
        assert not torch.equal(p, before)


def test_a_gradient_with_a_graph_leaves_none_behind(kernel: str) -> None:
    p = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = Lamb([p], kernel=kernel)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of a cycle of references
        p.pow(3).sum().backward(create_graph=True)
    optimizer.step()
    assert not any(value.requires_grad for value in optimizer.state[p].values())
    p.grad = None


@every
def test_sparse_gradients_are_refused(name: str) -> None:
    embedding = torch.nn.Embedding(10, 3, sparse=True)
    optimizer = OPTIMIZERS[name](embedding.parameters())
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse=False"):
        optimizer.step()


# --- dtypes and layouts ---------------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_trains_in(name: str, dtype: torch.dtype) -> None:
    """Weights, moments and gradients of the dtype, on a parabola."""
    p = torch.nn.Parameter(torch.tensor([[1.0, -2.0], [3.0, -4.0]], dtype=dtype))
    lr = 1.0 if name.startswith("lars") else 0.05
    optimizer = OPTIMIZERS[name]([p], lr=lr)
    for _ in range(20):
        p.grad = p.detach().clone()
        optimizer.step()
    assert p.dtype == dtype
    assert {value.dtype for key, value in optimizer.state[p].items() if key != "step"} <= {dtype}
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
def test_layout_in_memory_does_not_matter(name: str, case: str, kernel: str) -> None:
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
    """Beside others, and as the only ones."""
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


# --- hooks, profiler, words -----------------------------------------------------------------------------------------


@every
def test_hooks(name: str) -> None:
    params, seen = parameters(), []
    optimizer = OPTIMIZERS[name](params)
    start = params[0].detach().clone()

    def note(what: str) -> Callable[..., None]:
        return lambda *arguments: seen.append(what)

    def before(o: Any, args: Any, kwargs: Any) -> None:
        seen.append("before step")
        assert o is optimizer
        assert torch.equal(params[0], start)

    def after(o: Any, args: Any, kwargs: Any) -> None:
        seen.append("after step")
        assert not torch.equal(params[0], start)

    handles = [
        optimizer.register_step_pre_hook(before),
        optimizer.register_step_post_hook(after),
        optimizer.register_state_dict_pre_hook(note("before state_dict")),
        optimizer.register_state_dict_post_hook(lambda o, state_dict: {**state_dict, "note": 1}),
        optimizer.register_load_state_dict_pre_hook(lambda o, state_dict: seen.append(f"load {state_dict['note']}")),
        optimizer.register_load_state_dict_post_hook(note("after load")),
    ]
    drive(optimizer, 1)
    optimizer.load_state_dict(optimizer.state_dict())
    assert seen == ["before step", "after step", "before state_dict", "load 1", "after load"]
    for handle in handles:
        handle.remove()
    drive(optimizer, 1)
    assert optimizer.state_dict().keys() == {"state", "param_groups"}
    assert len(seen) == 5


@every
def test_profiler_shows_the_step(name: str) -> None:
    optimizer = OPTIMIZERS[name](parameters())
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        drive(optimizer, 2)
    counts = {event.key: event.count for event in profiler.key_averages()}
    assert counts[f"Optimizer.step#{type(optimizer).__name__}.step"] == 2


@every
def test_repr_tells_name_groups_and_options(name: str) -> None:
    optimizer = OPTIMIZERS[name](parameters(), lr=0.125)
    optimizer.add_param_group({"params": parameters(), "lr": 0.375})
    said = repr(optimizer)
    for words in (type(optimizer).__name__, "Parameter Group 1", "lr: 0.125", "lr: 0.375", "weight_decay: "):
        assert words in said


@pytest.mark.parametrize("kind", [SGD, Adam, AdamW, Lamb, Lars, RAdam])
def test_type_hints_resolve(kind: type) -> None:
    hints = typing.get_type_hints(kind.__init__)
    assert hints["lr"] == float | Tensor
    assert {"params", "weight_decay", "kernel", "maximize", "return"} <= hints.keys()


# --- what is refused ------------------------------------------------------------------------------------------------

nan, inf = math.nan, math.inf

# Kind, options, and what the message says: the key, its value, and what to write instead.
ILLEGAL: list[tuple[type, dict[str, Any], tuple[str, ...]]] = [
    *[
        (kind, {key: value}, (f"{key}={value!r}", allowed))
        for kind in (Adam, AdamW, Lamb, Lars, RAdam, SGD)
        for key, allowed in (("lr", "a finite number, at least 0"), ("weight_decay", "a finite number, at least 0"))
        for value in (-1e-9, nan, inf, "1e-3", None)
    ],
    *[
        (kind, {"betas": value}, (f"betas={value!r}", "two numbers from 0 up to, not including, 1"))
        for kind in (Adam, AdamW, Lamb, RAdam)
        for value in ((1.0, 0.9), (0.9, 1.0), (-0.1, 0.9), (nan, 0.9), (0.9, nan), (0.9,), (0.9, 0.9, 0.9), 0.9, ("a", "b"))
    ],
    *[
        (kind, {"eps": value}, (f"eps={value!r}", "a finite number, at least 0"))
        for kind in (Adam, AdamW, Lamb, RAdam, Lars)
        for value in (-1e-9, nan, inf)
    ],
    *[
        (kind, {"momentum": value}, (f"momentum={value!r}", "a number from 0 up to, not including, 1"))
        for kind in (SGD, Lars)
        for value in (-0.1, 1.0, nan)
    ],
    *[
        (kind, {"trust_ratio": True, "trust_bounds": value}, (f"trust_bounds={value!r}", "lowest <= highest"))
        for kind in (Adam, AdamW, Lamb, RAdam, SGD)
        for value in ((2.0, 1.0), (-1.0, 1.0), (nan, 1.0), (0.0, nan), (0.0, 0.0), (1.0,), 3.0)
    ],
    *[
        (kind, {"trust_ratio": False, "trust_bounds": (0.0, 1.0)}, ("trust_bounds=(0.0, 1.0)", "write trust_ratio=True"))
        for kind in (Adam, AdamW, Lamb, RAdam, SGD)
    ],
    *[
        (kind, {"decay": "l3"}, ("decay='l3'", "write 'l2', 'decoupled', 'independent', 'prox' or 'prox-metric'"))
        for kind in (Adam, AdamW, Lamb, RAdam)
    ],
    *[
        (kind, {"decay": "prox-metric", "trust_ratio": True}, ("decay='prox-metric' with trust_ratio=True", "'prox'"))
        for kind in (Adam, AdamW, Lamb, RAdam)
    ],
    *[
        (kind, {"decay": decay, "lr": 0.0, "weight_decay": 0.1}, (f"decay={decay!r}", "lr=0.0 must be above 0"))
        for kind in (Adam, AdamW, Lamb, RAdam, SGD)
        for decay in ("independent", "prox")
    ],
    (SGD, {"decay": "prox-metric"}, ("decay='prox-metric'", "no metric", "write 'l2', 'decoupled', 'independent' or 'prox'")),
    (SGD, {"dampening": 1.1}, ("dampening=1.1", "a number from 0 to 1")),
    (SGD, {"dampening": nan}, ("dampening=nan", "a number from 0 to 1")),
    (SGD, {"nesterov": True}, ("nesterov=True with momentum=0.0", "write momentum=0.9")),
    (SGD, {"nesterov": True, "momentum": 0.9, "dampening": 0.1}, ("nesterov=True with dampening=0.1", "write dampening=0")),
    (Lars, {"nesterov": True, "momentum": 0.0}, ("nesterov=True with momentum=0.0", "write momentum=0.9")),
    (Lars, {"trust_coefficient": 0.0}, ("trust_coefficient=0.0", "a finite number above 0")),
    (Lars, {"trust_coefficient": nan}, ("trust_coefficient=nan", "a finite number above 0")),
    (Lars, {"trust_bounds": (1.0, 0.5)}, ("trust_bounds=(1.0, 0.5)", "lowest <= highest")),
    (Lamb, {"lr": torch.ones(2)}, ("lr=tensor([1., 1.])", "a finite number, at least 0")),
]  # fmt: skip
OF_THE_CONSTRUCTOR: list[tuple[type, dict[str, Any], tuple[str, ...]]] = [
    (RAdam, {"decoupled_weight_decay": True, "decay": "prox"}, ("decoupled_weight_decay=True", "write decay='prox' alone")),
    *[
        (kind, {"kernel": "gpu"}, ("kernel='gpu'", "auto, reference, cpu"))
        for kind in (Adam, AdamW, Lamb, Lars, RAdam, SGD)
    ],
]  # fmt: skip
OF_A_GROUP: list[tuple[type, dict[str, Any], tuple[str, ...]]] = [
    *[(Lars, {"decay": decay}, (f"decay={decay!r}", "write 'l2'")) for decay in ("decoupled", "prox", "prox-metric")],
    *[
        (RAdam, {"decoupled_weight_decay": True, **decay}, ("decoupled_weight_decay=True", "write decay='decoupled'"))
        for decay in ({}, {"decay": "prox"})
    ],
    (AdamW, {"decay": "prox", "peak_lr": 0.0}, ("decay='prox'", "peak_lr=0.0 must be above 0")),
    (AdamW, {"decay": "prox", "peak_lr": nan}, ("peak_lr=nan", "a finite number, at least 0")),
]


def named(case: Any) -> str | None:
    if isinstance(case, type):
        return case.__name__
    return "-".join(f"{k}={v}" for k, v in case.items()) if isinstance(case, dict) else "says"


def refused(make: Callable[[], Any], says: tuple[str, ...]) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the words are looked for one by one
        make()
    for words in says:
        assert words in str(error.value)


@pytest.mark.parametrize("kind, bad, says", ILLEGAL + OF_THE_CONSTRUCTOR, ids=named)
def test_illegal_at_construction(kind: type, bad: dict[str, Any], says: tuple[str, ...]) -> None:
    refused(lambda: kind(parameters(), **bad), says)


@pytest.mark.parametrize("kind, bad, says", ILLEGAL + OF_A_GROUP, ids=named)
def test_illegal_in_a_group(kind: type, bad: dict[str, Any], says: tuple[str, ...]) -> None:
    refused(lambda: kind([{"params": parameters(), **bad}]), says)
    optimizer = kind(parameters())
    refused(lambda: optimizer.add_param_group({"params": parameters(), **bad}), says)
    assert len(optimizer.param_groups) == 1


def test_a_group_may_drop_the_trust_ratio_and_keep_the_bounds_of_all() -> None:
    params = parameters()
    groups = [{"params": params[:2]}, {"params": params[2:], "trust_ratio": False}]
    optimizer = Lamb(groups, trust_bounds=(0.01, 0.3))
    drive(optimizer, 1)
    assert set(optimizer.trust_ratios()) == {"0.0", "0.1"}


def test_lars_has_no_form_of_decay() -> None:
    with pytest.raises(TypeError, match="decay"):
        Lars(parameters(), decay="prox")  # type: ignore[call-arg]

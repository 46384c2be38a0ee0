"""The contract of a torch optimizer, kept by every optimizer of the package in every configuration."""

from __future__ import annotations

import copy
import math
import pickle
import typing
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.optim import lr_scheduler

from bellwether.optimizers import SGD, Adam, AdamW, Lamb, Lars, RAdam, base
from tests.optimizers.configurations import (
    CLOSE,
    JOINT,
    OPTIMIZERS,
    SHAPES,
    assert_same,
    copies,
    distance,
    drive,
    every,
    held,
    parameters,
    through_a_file,
)

pytestmark = pytest.mark.usefixtures("one_thread")

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


# --- state dicts and copies -----------------------------------------------------------------------------------------


@every
def test_state_dict_round_trip_is_bitwise(name: str, kernel: str) -> None:
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
def test_copy_continues_bitwise(name: str, copied: str, kernel: str) -> None:
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
def test_torch_distributed_checkpoint_state_by_name(name: str) -> None:
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


def test_state_dict_with_wrong_number_of_parameters_is_refused() -> None:
    saved = Lamb(parameters()).state_dict()
    with pytest.raises(ValueError, match="size of optimizer's group"):
        Lamb(parameters()[:2]).load_state_dict(saved)
    with pytest.raises(ValueError, match="different number of parameter groups"):
        Lamb([{"params": [p]} for p in parameters()]).load_state_dict(saved)


# --- parameters and groups ------------------------------------------------------------------------------------------


@every
def test_group_equals_a_separate_optimizer(name: str, kernel: str) -> None:
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


def test_cached_tables_are_not_reused_for_new_tensors(kernel: str) -> None:
    """What is remembered of tensors must not be taken for that of others which come to lie at the same address."""
    for _ in range(10):
        ours, theirs = [parameters(shapes=[(7,), (3,)]) for _ in range(2)]
        optimizer, other = Lamb(ours, kernel=kernel), Lamb(theirs, kernel="reference")
        for size in range(1, 8):
            for o in (optimizer, other):
                o.add_param_group({"params": parameters(shapes=[(size,)])})
            drive(optimizer, 1)
            other._tables.clear()
            drive(other, 1)
        assert distance(held(optimizer), held(other)) < CLOSE[torch.float32]


def test_number_of_cached_tables_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_MAX_TABLES", 8)
    params = parameters(shapes=[(3,)] * 6)
    optimizer = Lamb(params)
    for combination in range(1, 64):
        for i, p in enumerate(params):
            p.grad = torch.ones(3) if combination >> i & 1 else None
        optimizer.step()
        assert len(optimizer._tables) <= 8
    assert len(optimizer.trust_ratios()) == 6


def test_trust_ratios_are_those_of_the_last_step() -> None:
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
def test_invalid_parameters_are_refused(name: str, case: str) -> None:
    params, error, message = REFUSED_PARAMETERS[case]
    with pytest.raises(error, match=message):
        OPTIMIZERS[name](params)


@every
def test_refused_group_is_not_added(name: str) -> None:
    optimizer = OPTIMIZERS[name](parameters())
    for bad in ({"lr": -1.0}, {"weight_decay": math.nan}, {"weight_decay_mode": "l3"}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            optimizer.add_param_group({"params": parameters(), **bad})
    with pytest.raises(ValueError, match="complex64"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2, dtype=torch.complex64))]})
    assert len(optimizer.param_groups) == 1
    drive(optimizer, 1)


def test_duplicate_parameter_warns_and_is_updated_twice() -> None:
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
def test_zero_gradients_do_not_change_weights_in_the_first_step(name: str, kernel: str) -> None:
    ours, before = parameters(), parameters()
    optimizer = OPTIMIZERS[name](ours, kernel=kernel, weight_decay=0.0)
    for p in ours:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert_same(ours, before)


@every
def test_zero_lr_does_not_change_weights(name: str, kernel: str) -> None:
    ours, before = parameters(), parameters()
    optimizer = OPTIMIZERS[name](ours, kernel=kernel, weight_decay=0.1)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    drive(optimizer)
    assert_same(ours, before)
    assert all(optimizer.state[p]["step"] == 3 for p in ours)


@every
def test_lr_is_read_at_every_step(name: str, kernel: str) -> None:
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
def test_lr_tensor(name: str, kernel: str) -> None:
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
def test_maximize_equals_minimizing_the_negative(name: str, kernel: str) -> None:
    ours, theirs = parameters(), parameters()
    drive(OPTIMIZERS[name](ours, kernel=kernel, maximize=True), 5)
    drive(OPTIMIZERS[name](theirs, kernel=kernel), 5, sign=-1.0)
    assert_same(ours, theirs)


@every
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_step_does_not_change_gradients(name: str, mode: Any, kernel: str) -> None:
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


def test_gradient_with_graph_leaves_no_graph_in_the_state(kernel: str) -> None:
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
    # An average may be slower than 16 bits can tell.
    assert {value.dtype for key, value in optimizer.state[p].items() if key not in ("step", "average")} <= {dtype}
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
def test_profiler_records_the_step(name: str) -> None:
    optimizer = OPTIMIZERS[name](parameters())
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        drive(optimizer, 2)
    counts = {event.key: event.count for event in profiler.key_averages()}
    assert counts[f"Optimizer.step#{type(optimizer).__name__}.step"] == 2


@every
def test_repr_has_name_groups_and_options(name: str) -> None:
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

"""The functions that test_sharded.py runs on the ranks: a small model with awkward shapes, trained by DeepSpeed."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn

from bellwether import optimizers
from bellwether.optimizers.average_swap import AverageSwap
from tests.optimizers.family import FAMILY

SHAPES = {
    "big": (97, 31),  # larger than a shard
    "odd": (7, 5, 3),
    "vector": (13,),
    "scalar": (1,),  # most ranks own nothing of it; DeepSpeed refuses shape () when it broadcasts the model
    "single": (1, 1),
    "zero": (4, 3),  # starts at 0: trust ratio 1
    "frozen": (5, 5),
    "tied": (11, 3),
    "bias": (17,),  # no decay, no trust ratio
}
DECAY = {"big": 0.01, "odd": 0.1, "zero": 0.1, "bias": 0.0}  # the others 0.01
GLOBAL_BATCH = 8
STEPS = 20


class Leaf(nn.Module):
    """One parameter; ZeRO-3 gathers it when the module is called."""

    def __init__(self, parameter: nn.Parameter) -> None:
        super().__init__()
        self.weight = parameter

    def forward(self, target: torch.Tensor) -> torch.Tensor:
        """Half the squared distance from each sample's target [B, numel] to the weight: [B]."""
        # Under tensor parallelism the weight is a DTensor here too.
        weight = self.weight.full_tensor() if hasattr(self.weight, "full_tensor") else self.weight
        return 0.5 * (weight.reshape(1, -1) - target.to(weight.dtype)).square().sum(1)


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        start = weights()
        for name in SHAPES:
            leaf = Leaf(nn.Parameter(torch.tensor(start[name], dtype=torch.float32), requires_grad=name != "frozen"))
            setattr(self, name, leaf)
        self.twin = Leaf(self.tied.weight)

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        per_sample = sum(getattr(self, name)(batch[name]) for name in SHAPES) + self.twin(batch["tied"])
        return per_sample.mean()


def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    initial = {name: rng.uniform(0.5, 1.5, shape).astype(np.float32) for name, shape in SHAPES.items()}
    initial["zero"] = np.zeros_like(initial["zero"])
    return initial


def targets(step: int) -> dict[str, np.ndarray]:
    """[GLOBAL_BATCH, numel] for each parameter: far from the weights, so that no gradient is lost to rounding."""
    rng = np.random.default_rng([1, step])
    return {
        name: (3.0 + 0.25 * rng.standard_normal((GLOBAL_BATCH, int(np.prod(shape))))).astype(np.float32)
        for name, shape in SHAPES.items()
    }


def gradients(step: int, w: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Gradients of the mean loss over the global batch, in float64."""
    t = targets(step)
    g = {k: w[k] - t[k].astype(np.float64).mean(0).reshape(w[k].shape) for k in SHAPES}
    g["tied"] = 2 * g["tied"]
    return g


def options() -> dict[str, dict[str, Any]]:
    return {
        name: {"weight_decay": DECAY.get(name, 0.01), "trust_ratio": name != "bias"}
        for name in SHAPES
        if name != "frozen"
    }


def kinds() -> list[tuple[float, bool]]:
    """(weight_decay, trust_ratio) of each param group."""
    return sorted({(o["weight_decay"], o["trust_ratio"]) for o in options().values()})


def param_groups(model: Toy) -> list[dict[str, Any]]:
    wanted = options()
    return [
        {
            "params": [
                (f"{n}.weight", getattr(model, n).weight)
                for n, o in wanted.items()
                if (o["weight_decay"], o["trust_ratio"]) == kind
            ],
            "weight_decay": kind[0],
            **({} if kind[1] else {"trust_ratio": False}),
        }
        for kind in kinds()
    ]


def engine(
    rule: str,
    zero: dict[str, Any],
    *,
    clip: float = 0.0,
    accumulation: int = 1,
    init: bool = False,
    attach: bool = True,
    **config: Any,
):
    import deepspeed

    world = torch.distributed.get_world_size()
    whole = {
        "train_batch_size": GLOBAL_BATCH,
        "train_micro_batch_size_per_gpu": GLOBAL_BATCH // world // accumulation,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": clip,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": zero,
        **config,
    }
    if init:
        with deepspeed.zero.Init(config_dict_or_path=whole):
            model = Toy()
    else:
        model = Toy()
    member = FAMILY[rule]
    optimizer = member.make(member.groups(param_groups(model)), member.lr)
    ds_engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=whole)
    if attach:
        optimizers.attach(ds_engine)
    return ds_engine, optimizer


def feed(ds_engine: Any, step: int) -> None:
    """One global step on this rank's part of the batch."""
    world, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    data = targets(step)
    accumulation = ds_engine.gradient_accumulation_steps()
    micro = GLOBAL_BATCH // world // accumulation
    for a in range(accumulation):
        first = (a * world + rank) * micro
        batch = {k: torch.tensor(v[first : first + micro]) for k, v in data.items()}
        ds_engine.backward(ds_engine(batch))
        ds_engine.step()


def poison(optimizer: Any) -> int:
    """Fill the padding with NaN, which DeepSpeed leaves uninitialized. Returns the number of elements."""
    count = 0
    for shard in optimizer.shards:
        padding = torch.ones(shard.tensor.numel(), dtype=torch.bool)
        for parameter_slice in shard.slices:
            padding[parameter_slice.offset : parameter_slice.offset + parameter_slice.length] = False
        if shard.process_group is not None:
            shard.tensor.data.view(-1)[padding] = float("nan")
            count += int(padding.sum())
    return count


def owned(optimizer: Any) -> dict[str, list[tuple[int, np.ndarray]]]:
    """This rank's slices of the master weights: name -> [(start, values)]."""
    found: dict[str, list[tuple[int, np.ndarray]]] = {}
    for shard in optimizer.shards:
        for parameter_slice, view in shard.views(shard.tensor.detach()):
            name = shard.parameters[parameter_slice.index].name.removesuffix(".weight")
            found.setdefault(name, []).append((parameter_slice.start, view.double().numpy().copy()))
    return found


def train(rule: str, zero: dict[str, Any], **keywords: Any) -> dict[str, Any]:
    ds_engine, optimizer = engine(rule, zero, **keywords)
    padding = poison(optimizer)
    calls, reduces = _count(optimizer)
    for step in range(STEPS):
        feed(ds_engine, step)
    found = {
        **result(ds_engine, optimizer),
        "padding": padding,
        "calls": len(calls),
        "reduces": len(reduces),
        "wrapper": type(ds_engine.optimizer).__name__,
        "shards": len(optimizer.shards),
        "groups": len(optimizer.param_groups),
        "matrices": sum(group.get("muon", False) for group in optimizer.param_groups),
        "idle": any(len({p.index for p in s.slices}) < len(s.parameters) for s in optimizer.shards),
    }
    ds_engine.destroy()
    return found


def result(ds_engine: Any, optimizer: Any) -> dict[str, Any]:
    """The results that `check` of test_sharded.py compares with the reference."""
    found = {
        "owned": owned(optimizer),
        "model": _model(ds_engine),
        "ratios": {k.removesuffix(".weight"): v for k, v in optimizer.trust_ratios().items()},
    }
    with averaged(optimizer):
        return {**found, "averaged": {"owned": owned(optimizer), "model": _model(ds_engine)}}


def averaged(optimizer: Any) -> Any:
    """Swaps the averages in, if there are any."""
    return optimizer.averaged() if isinstance(optimizer, AverageSwap) else nullcontext()


def _count(optimizer: Any) -> tuple[list[int], list[int]]:
    """Lists that record each step() call and each collective inside one."""
    import torch.distributed as dist

    calls: list[int] = []
    reduces: list[int] = []
    inner = optimizer.step
    collectives = [
        "all_reduce",
        "all_gather",
        "all_gather_into_tensor",
        "all_to_all_single",
        "broadcast",
        "reduce_scatter_tensor",
        "barrier",
    ]

    def step(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        originals = {name: getattr(dist, name) for name in collectives}

        def counting(original: Any) -> Any:
            def call(*a: Any, **k: Any) -> Any:
                reduces.append(1)
                return original(*a, **k)

            return call

        for name, original in originals.items():
            setattr(dist, name, counting(original))
        try:
            return inner(*args, **kwargs)
        finally:
            for name, original in originals.items():
                setattr(dist, name, original)

    optimizer.step = step
    return calls, reduces


def _model(ds_engine: Any) -> dict[str, np.ndarray]:
    """The model's own weights, gathered."""
    import deepspeed

    parameters = dict(ds_engine.module.named_parameters())
    with deepspeed.zero.GatheredParameters(list(parameters.values())):
        return {n.removesuffix(".weight"): p.detach().double().numpy().copy() for n, p in parameters.items()}

"""Measures the memory and traffic of a rank in a real run; for the tests and for scripts/validate_planner.py."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bellwether.trainer.config import validate
from bellwether.trainer.data import Dataset
from bellwether.trainer.memory.activations import DummySamples


@dataclass(frozen=True)
class Measured:
    """Bytes of one rank in its last step: between steps, and the peaks of the passes and of the update."""

    between: int
    rss: int  # peak growth of the process since before the model was built; noisy
    sent: dict[str, int]  # bytes passed to each kind of collective in the last step
    passes: int
    update: int
    parameters: int
    optimizer: int

    @property
    def peak(self) -> int:
        return max(self.passes, self.update)


class CollectiveBytes(TorchDispatchMode):
    """Counts the bytes passed to collectives: the larger of what a rank holds before and after."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            sizes = [sum(_numel(t) for t in tree_leaves(arg) if isinstance(t, Tensor)) for arg in args[:2]]
            name = func._opname.strip("_")
            self.bytes[name] = self.bytes.get(name, 0) + max(sizes)
        return func(*args, **(kwargs or {}))


def _numel(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def data_of(config: Any) -> Dataset:
    dummy = DummySamples(config.data, 1000)
    return Dataset(dummy, dummy, config.data.vocabulary_size if config.data.kind == "text" else None, 10,
                channels=len(getattr(config.data, "mean", ())), labels=[str(i) for i in range(10)])  # fmt: skip


def train(raw: dict[str, Any], accumulation: int, steps: int = 3) -> Measured:
    """Run a few steps of the real engine, with every storage counted. Called by all ranks together."""
    import psutil
    import torch
    import torch.distributed as dist
    from deepspeed.utils import logger

    from bellwether.trainer import models
    from bellwether.trainer.distributed import World
    from bellwether.trainer.engine import build
    from bellwether.trainer.memory.live_bytes import LiveBytes
    from bellwether.trainer.phases import plan

    logger.setLevel("ERROR")
    world = World(dist.get_rank(), dist.get_world_size(), dist.get_rank(), torch.device("cpu"))
    micro = raw["batch"]["micro"]
    config = validate({**raw, "batch": {"global": micro * accumulation * world.size, "micro": micro}})
    (phase,) = plan([config], world.size, [1000])
    live, sent = LiveBytes(), CollectiveBytes()
    before = psutil.Process().memory_info().rss
    # DeepSpeed prints its memory while it builds the engine.
    with live, sent, open(os.devnull, "w") as null, contextlib.redirect_stdout(null):
        torch.manual_seed(1)
        task = models.build(
            config.model, data_of(config), activation_checkpointing=config.engine.activation_checkpointing
        )
        engine = build(task, phase, world)
        dummy = DummySamples(config.data)
        for _ in range(steps):
            passes, update = 0, 0
            live.reset_peak()
            sent.bytes.clear()
            for _ in range(accumulation):
                losses, _correct = engine.forward(dummy.batch(range(micro), range(micro)))
                loss = losses.mean()
                engine.backward(loss)
                passes = max(passes, live.reset_peak())
                engine.step()
                update = max(update, live.reset_peak())
                del losses, _correct, loss
        gc.collect()
        between = live.bytes
        growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
        measured = Measured(between, growth, dict(sent.bytes), passes, update, _parameters(engine), _optimizer(engine))
    engine.destroy()
    return measured


def _bytes(tensors: Any) -> int:
    """Bytes of the storages of some tensors, each counted once."""
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())


def _parameters(engine: Any) -> int:
    parameters = list(engine.task.parameters())
    return _bytes([*parameters, *(p.ds_tensor for p in parameters if hasattr(p, "ds_tensor"))])


def _optimizer(engine: Any) -> int:
    """Optimizer state, and master weights if the optimizer does not update the model's parameters themselves."""
    model = {id(p) for p in engine.task.parameters()}
    masters = [t for t in engine.optimizer.state if id(t) not in model]
    state = [v for s in engine.optimizer.state.values() for v in s.values() if v.dim()]
    return _bytes([*masters, *state])

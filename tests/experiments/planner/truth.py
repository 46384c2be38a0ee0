"""What a rank of a real run holds, storage by storage; for the tests, and for scripts/validate_planner.py."""

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

from bellwether.experiments.planner.activations import Blank
from bellwether.trainer.config import validate
from bellwether.trainer.data import Data


@dataclass(frozen=True)
class Seen:
    """Bytes of one rank in its last step: between steps, and the most in the passes and around the update."""

    between: int
    rss: int  # growth of the process, from before the model was built to its most; noisy
    sent: dict[str, int]  # bytes of each kind of collective in the last step, as handed to it
    passes: int
    update: int
    parameters: int
    optimizer: int

    @property
    def peak(self) -> int:
        return max(self.passes, self.update)


class Sent(TorchDispatchMode):
    """Counts the bytes that are handed to collectives: of what a rank holds before or after, the larger."""

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


def data_of(config: Any) -> Data:
    blank = Blank(config.data, 1000)
    return Data(blank, blank, config.data.vocabulary_size if config.data.kind == "text" else None, 10,
                channels=len(getattr(config.data, "mean", ())), labels=[str(i) for i in range(10)])  # fmt: skip


def train(raw: dict[str, Any], accumulation: int, steps: int = 3) -> Seen:
    """A few steps of the real engine on one of the ranks that call this together, with every storage counted."""
    import psutil
    import torch
    import torch.distributed as dist
    from deepspeed.utils import logger

    from bellwether.experiments.planner.live_bytes import LiveBytes
    from bellwether.trainer import models
    from bellwether.trainer.distributed import World
    from bellwether.trainer.engine import build
    from bellwether.trainer.phases import plan

    logger.setLevel("ERROR")
    world = World(dist.get_rank(), dist.get_world_size(), dist.get_rank(), torch.device("cpu"))
    micro = raw["batch"]["micro"]
    config = validate({**raw, "batch": {"global": micro * accumulation * world.size, "micro": micro}})
    (phase,) = plan([config], world.size, [1000])
    live, sent = LiveBytes(), Sent()
    before = psutil.Process().memory_info().rss
    # DeepSpeed prints its memory through all of building.
    with live, sent, open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        torch.manual_seed(1)
        task = models.build(
            config.model, data_of(config), activation_checkpointing=config.engine.activation_checkpointing
        )
        engine = build(task, phase, world)
        blank = Blank(config.data)
        for _ in range(steps):
            passes, update = 0, 0
            live.reset_peak()
            sent.bytes.clear()
            for _ in range(accumulation):
                losses, _correct = engine.forward(blank.batch(range(micro), range(micro)))
                loss = losses.mean()
                engine.backward(loss)
                passes = max(passes, live.reset_peak())
                engine.step()
                update = max(update, live.reset_peak())
                del losses, _correct, loss
        gc.collect()
        between = live.bytes
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
        seen = Seen(between, grown, dict(sent.bytes), passes, update, _parameters(engine), _optimizer(engine))
    engine.destroy()
    return seen


def _bytes(tensors: Any) -> int:
    """Of the storages under some tensors, each counted once."""
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())


def _parameters(engine: Any) -> int:
    parameters = list(engine.task.parameters())
    return _bytes([*parameters, *(p.ds_tensor for p in parameters if hasattr(p, "ds_tensor"))])


def _optimizer(engine: Any) -> int:
    """Masters, where the optimizer does not update the model's own parameters, and the rule's state."""
    own = {id(p) for p in engine.task.parameters()}
    masters = [t for t in engine.optimizer.state if id(t) not in own]
    state = [v for s in engine.optimizer.state.values() for v in s.values() if v.dim()]
    return _bytes([*masters, *state])

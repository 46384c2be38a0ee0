"""The parts of the GPU suite, in the order of what they are worth: where the time runs out, the last ones are left out."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

from scripts.gpu_suite.context import Context


@dataclass(frozen=True)
class Part:
    """A part: a function of a `Context`, in a module of its own or with others.

    Attributes:
        seconds: its time limit on a GPU; an H200 is expected to need half of it or less (not run yet).
    """

    name: str
    title: str
    where: str
    seconds: int

    def load(self) -> Callable[[Context], None]:
        module, _, function = self.where.partition(":")
        found: Callable[[Context], None] = getattr(importlib.import_module(f"scripts.gpu_suite.{module}"), function)
        return found


PARTS = [
    Part("machine", "The machine: memory bandwidth and matrix products", "machine:run", 40),
    Part("bert", "BERT-large in bf16", "speed:bert", 110),
    Part("kernels", "The kernels' tests on this GPU", "kernels:run", 110),
    Part("zero", "ZeRO 0 to 3 against no sharding, one process", "exactness:one_process", 60),
    Part("resume", "A run that is killed and resumed, bit by bit", "resume:run", 80),
    Part("zero-2", "ZeRO 0 to 3 against no sharding, two processes on one device over gloo", "exactness:two_processes", 70),
    Part("resnet", "ResNet-50 in bf16, synthetic and from JPEG files", "speed:resnet", 90),
    Part("switches", "Switches of the step, one at a time", "switches:run", 100),
    Part("optimizers", "One step of each optimizer", "optimizer_speed:run", 100),
    Part("memory", "Memory against the planner", "memory:run", 60),
]  # fmt: skip
NAMES = [part.name for part in PARTS]

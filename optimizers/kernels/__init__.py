"""The arithmetic of an update, more than once: in torch (`reference`, the specification) and in C++ (`cpu`)."""

from __future__ import annotations

import functools
import logging

import torch.distributed as dist

from optimizers.kernels import cpu, reference
from optimizers.kernels.batch import Batch, Kernel

NAMES = ("auto", "reference", "cpu")

_log = logging.getLogger("optimizers")


def check(name: str) -> None:
    """Refuse a kernel that is not known or cannot run here.

    Raises:
        ValueError: if there is no such kernel.
        RuntimeError: if it cannot be built here, with the compiler's words.
    """
    if name not in NAMES:
        raise ValueError(f"kernel={name!r}: must be one of {', '.join(NAMES)}")
    if name == "cpu":
        problem = _load()[1]
        if problem:
            raise RuntimeError(f"kernel={name!r} cannot run here: {problem}; kernel='auto' falls back to torch")


def choose(name: str, batch: Batch) -> Kernel:
    """The kernel for a batch. ``auto`` takes the compiled one that fits, or torch where none does.

    Raises:
        TypeError: if a kernel was asked for by name and the tensors are not what it works on.
    """
    if name == "reference":
        return reference
    fits = batch.device.type == "cpu" and batch.is_flat()
    if name == "auto" and not fits:
        return reference
    if not fits:
        raise TypeError(
            f"kernel={name!r} works on dense float32 tensors on the CPU, and {batch.describe()} came; "
            "write kernel='auto'"
        )
    kernel, problem = _load()
    if kernel is None:
        _say_once(problem)
        return reference
    return kernel


@functools.cache
def _load() -> tuple[Kernel | None, str]:
    """The compiled kernel, or why there is none."""
    try:
        cpu.library()
    except (OSError, RuntimeError) as error:
        return None, str(error)
    return cpu, ""


@functools.cache
def _say_once(problem: str) -> None:
    if not (dist.is_available() and dist.is_initialized() and dist.get_rank()):
        _log.warning("the compiled kernel cannot run here, torch's operations take its place: %s", problem)

"""The arithmetic of an update, three times: in torch (`reference`, the specification), C++ (`cpu`), Triton (`triton`)."""

from __future__ import annotations

import functools
import importlib
import logging
from types import ModuleType

import torch.distributed as dist

from bellwether.optimizers.kernels import reference
from bellwether.optimizers.kernels.tensor_list import Kernel, TensorList

NAMES = ("auto", "reference", "cpu", "triton")

_COMPILED = {"cpu": "cpu", "cuda": "triton"}  # for each type of device
_WORKS_ON = {"cpu": "on the CPU", "triton": "on a GPU (on the CPU with TRITON_INTERPRET=1 in the environment)"}

_log = logging.getLogger(__name__)


def check(name: str) -> None:
    """Refuse a kernel that is not known or cannot run here.

    Raises:
        ValueError: if there is no such kernel.
        RuntimeError: if it cannot be built or launched here, with the reason.
    """
    if name not in NAMES:
        raise ValueError(f"kernel={name!r}: must be one of {', '.join(NAMES)}")
    if name in _WORKS_ON:
        problem = _load(name)[1]
        if problem:
            raise RuntimeError(f"kernel={name!r} cannot run here: {problem}; kernel='auto' falls back to torch")


def choose(name: str, batch: TensorList) -> Kernel:
    """The kernel for a batch. ``auto`` takes the compiled one that fits, or torch where none does.

    Raises:
        TypeError: if a kernel was asked for by name and the tensors are not what it works on.
    """
    wanted = _COMPILED.get(batch.device.type, "reference") if name == "auto" else name
    flat = batch.is_flat()
    if wanted == "reference" or (name == "auto" and not flat):
        if wanted == "triton":
            _say_once(f"it is for dense float32 tensors, and {batch.describe()} came")
        return reference
    kernel, problem = _load(wanted)
    if kernel is None:
        _say_once(problem)
        return reference
    if flat and batch.device.type == kernel.DEVICE:
        return kernel
    if name == "auto":  # the interpreter of Triton, which cannot read a GPU's memory
        return reference
    raise TypeError(
        f"kernel={name!r} works on dense float32 tensors {_WORKS_ON[name]}, and {batch.describe()} came; "
        "write kernel='auto'"
    )


@functools.cache
def _load(name: str) -> tuple[ModuleType | None, str]:
    """A compiled kernel, or why there is none. Imported late: not everyone has Triton, and it takes a second."""
    try:
        kernel = importlib.import_module(f"bellwether.optimizers.kernels.{name}")
        kernel.prepare()
    except (ImportError, OSError, RuntimeError) as error:
        return None, str(error)
    return kernel, ""


@functools.cache
def _say_once(problem: str) -> None:
    if not (dist.is_available() and dist.is_initialized() and dist.get_rank()):
        _log.warning("the compiled kernel cannot run here, torch's operations take its place: %s", problem)

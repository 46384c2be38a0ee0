"""The arithmetic of an update: in torch (`reference`, the rules' own code), C++ (`cpu`) and Triton (`triton`)."""

from __future__ import annotations

import functools
import importlib
import logging
from types import ModuleType

import torch.distributed as dist

from bellwether.optimizers.kernels import reference
from bellwether.optimizers.kernels.interface import Kernel
from bellwether.optimizers.kernels.tensor_list import TensorList

NAMES = ("auto", "reference", "cpu", "triton")

_COMPILED = {"cpu": "cpu", "cuda": "triton"}  # by type of device
_REQUIRES = {"cpu": "on the CPU", "triton": "on a GPU (on the CPU with TRITON_INTERPRET=1 in the environment)"}
_SUPPORTED = (
    "dense float32, bfloat16 and float16 tensors, with one dtype for all weights, gradients or moments of a name,"
)

_log = logging.getLogger(__name__)


def check(name: str) -> None:
    """Refuse a kernel that is unknown or cannot run here.

    Raises:
        ValueError: if there is no such kernel.
        RuntimeError: if it cannot be built or launched here, with the reason.
    """
    if name not in NAMES:
        raise ValueError(f"kernel={name!r}: must be one of {', '.join(NAMES)}")
    if name in _REQUIRES:
        problem = _load(name)[1]
        if problem:
            raise RuntimeError(f"kernel={name!r} cannot run here: {problem}; kernel='auto' falls back to torch")


def choose(name: str, tensors: TensorList) -> Kernel:
    """The kernel for a list of tensors. ``auto`` takes the compiled one that fits, or torch if none does.

    Raises:
        TypeError: if the kernel is given by name and does not support the tensors.
    """
    kernel_name = _COMPILED.get(tensors.device.type, "reference") if name == "auto" else name
    flat = tensors.is_flat()
    if kernel_name == "reference" or (name == "auto" and not flat):
        if kernel_name == "triton":
            _warn_once(f"it supports {_SUPPORTED}, not {tensors.describe()}")
        return reference
    kernel, problem = _load(kernel_name)
    if kernel is None:
        _warn_once(problem)
        return reference
    if flat and tensors.device.type == kernel.DEVICE:
        return kernel
    if name == "auto":  # Triton's interpreter, which cannot read a GPU's memory
        return reference
    raise TypeError(
        f"kernel={name!r} supports {_SUPPORTED} {_REQUIRES[name]}, not {tensors.describe()}; write kernel='auto'"
    )


@functools.cache
def _load(name: str) -> tuple[ModuleType | None, str]:
    """A compiled kernel, or None and the reason. Imported late: Triton is optional, and its import takes a second."""
    try:
        kernel = importlib.import_module(f"bellwether.optimizers.kernels.{name}")
        kernel.prepare()
    except (ImportError, OSError, RuntimeError) as error:
        return None, str(error)
    return kernel, ""


@functools.cache
def _warn_once(problem: str) -> None:
    if not (dist.is_available() and dist.is_initialized() and dist.get_rank()):
        _log.warning("the compiled kernel cannot run here, using torch's operations instead: %s", problem)

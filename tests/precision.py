"""Which 16-bit precisions the tests may use on this machine.

``BELLWETHER_TEST_ABSENT=fp16,bf16 pytest ...`` runs the tests as on a machine whose device lacks these precisions: DeepSpeed's
accelerator then reports them as unsupported in pytest's process, in the ranks of `tests.ranks` and in every subprocess that
inherits `subprocess_path`. Without the variable nothing is changed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bellwether.trainer.import_hook import after_import

if TYPE_CHECKING:
    from tests.ranks import Ranks

# The accelerators that the tests run on: class by module.
_ACCELERATORS = {
    "deepspeed.accelerator.cpu_accelerator": "CPU_Accelerator",
    "deepspeed.accelerator.cuda_accelerator": "CUDA_Accelerator",
}


def skip_without(precision: str, ranks: Ranks | None = None) -> None:
    """Skip the calling test where the ranks, or without them this process, cannot train in this precision."""
    import pytest

    found = ranks.run(is_supported, precision)[0] if ranks is not None else is_supported(precision)
    if precision != "fp32" and not found:
        pytest.skip(f"this device does not support {precision}")


def is_supported(precision: str) -> bool:
    """Whether DeepSpeed's accelerator in this process supports a precision."""
    from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()
    return {"fp32": lambda: True, "bf16": accelerator.is_bf16_supported, "fp16": accelerator.is_fp16_supported}[
        precision
    ]() is True


def absent() -> list[str]:
    """The precisions to report as unsupported."""
    return [name for name in os.environ.get("BELLWETHER_TEST_ABSENT", "").split(",") if name]


def subprocess_path(*folders: str | Path) -> str:
    """A PYTHONPATH of these folders for a subprocess; with BELLWETHER_TEST_ABSENT, first that of the ``sitecustomize.py`` which
    reports the precisions as absent there and then executes the first other ``sitecustomize.py`` on the path."""
    hook = [Path(__file__).parent / "absent_precision"] if absent() else []
    return os.pathsep.join(str(folder) for folder in [*hook, *folders])


def report_absent() -> None:
    """Make DeepSpeed's accelerators report the precisions of BELLWETHER_TEST_ABSENT as unsupported, once they are imported."""
    if not absent():
        return
    for module, name in _ACCELERATORS.items():
        after_import(module, lambda imported, name=name: _patch(getattr(imported, name)))  # type: ignore[misc]


def _patch(accelerator: Any) -> None:
    """Patch the class of an accelerator."""
    import torch

    dtypes = {"fp16": torch.float16, "bf16": torch.bfloat16}
    original = accelerator.supported_dtypes
    missing = [dtypes[name] for name in absent()]
    for name in absent():
        setattr(accelerator, f"is_{name}_supported", lambda self: False)
    accelerator.supported_dtypes = lambda self: [dtype for dtype in original(self) if dtype not in missing]

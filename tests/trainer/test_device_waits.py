"""Between two log lines, nothing in a training step waits for the device but what DeepSpeed does once an update."""

from __future__ import annotations

import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.ranks import Ranks
from tests.tiers import covering
from tests.trainer.runs import run_config, text

# DeepSpeed reads the norm of the gradients, one to four times an update, to skip one that is not finite and to clip. Step counts are
# tensors on the host, also where training is on a GPU.
ALLOWED = {
    "deepspeed/runtime/utils.py:is_invalid_grad_norm",
    "deepspeed/runtime/utils.py:clip_tensors_by_global_norm",
    "deepspeed/runtime/zero/stage_1_and_2.py:has_overflow",
    "optimizers/step_counts.py:advance",
}
STEPS, ACCUMULATION = 4, 2


class _Waits(TorchDispatchMode):
    """Counts the places where a value is read from a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.is_on = False
        self.places: Counter[str] = Counter()

    def note(self) -> None:
        if not self.is_on:
            return
        frames = [f for f in traceback.extract_stack() if "/torch/" not in f.filename and f.filename != __file__]
        file = frames[-1].filename
        start = max(file.rfind(f"/{package}/") for package in ("deepspeed", "bellwether", "trainer", "optimizers"))
        self.places[f"{file[start + 1 :]}:{frames[-1].name}"] += 1

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten = torch.ops.aten
        if function in (aten._local_scalar_dense.default, aten.nonzero.default, aten.is_nonzero.default):
            self.note()
        return function(*args, **(kwargs or {}))


def _waits(raw: dict[str, Any]) -> dict[str, int]:
    """Where a run waits in `STEPS` steps of which none is logged."""
    from deepspeed.accelerator import get_accelerator

    from bellwether.trainer.loop import PhaseLoop

    waits = _Waits()
    seed = PhaseLoop.seed_torch

    def counted(self: PhaseLoop, step: int) -> int:
        if step == 3:
            waits.__enter__()
            waits.is_on = True
        if step == 3 + STEPS:
            waits.is_on = False
            waits.__exit__(None, None, None)
        return seed(self, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PhaseLoop, "seed_torch", counted)
        patch.setattr(type(get_accelerator()), "synchronize", lambda self, *_: waits.note())
        run_config(raw)
    return dict(waits.places)


@covering(lambda stage, precision: (stage, precision) in {(2, "fp32"), (1, "bf16")})
@pytest.mark.parametrize("ranks", [2], indirect=True)
@pytest.mark.parametrize(
    ("stage", "precision"), [(0, "fp32"), (1, "fp32"), (2, "fp32"), (3, "fp32"), (1, "bf16"), (2, "bf16")]
)
def test_no_step_between_two_log_lines_waits_for_the_device(
    ranks: Ranks, workspace: Path, stage: int, precision: str
) -> None:
    raw = text(
        workspace, f"waits-{stage}-{precision}", duration="9 steps", log={"every": "100 steps"}, batch={"global": 16, "micro": 4},
        optimizer={"name": "lamb"}, trajectory={"every": "100 steps"}, engine={"stage": stage, "precision": precision},
    )  # fmt: skip
    found = ranks.run(_waits, raw)[0]
    assert found.keys() <= ALLOWED, found
    deepspeed = sum(count for place, count in found.items() if place.startswith("deepspeed"))
    assert deepspeed <= 4 * STEPS, found  # not once in each micro-batch and parameter

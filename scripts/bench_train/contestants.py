"""Who takes part: the function that trains, the flags of each table, and what has to be installed."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from scripts.bench_train.workloads import Workload


@dataclass(frozen=True)
class Contestant:
    """
    Attributes:
        where: module and function, which gets a `Setup` and a `Gate`.
        defaults, best: the flags of the two tables, as printed.
        needs: a package to import, and ``pip`` the line that installs it.
        unit: takes part in workloads of this unit alone.
    """

    name: str
    where: str
    defaults: str
    best: str
    needs: str = ""
    pip: str = ""
    unit: str = ""

    def load(self) -> Callable[[Any, Any], None]:
        module, _, function = self.where.partition(":")
        found: Callable[[Any, Any], None] = getattr(importlib.import_module(f"scripts.bench_train.{module}"), function)
        return found

    def problem(self) -> str:
        """Why it cannot take part here; empty if it can."""
        if not self.needs:
            return ""
        try:
            importlib.import_module(self.needs)
        except Exception as error:  # a package may fail in any way where another one is missing
            return f"`import {self.needs}` fails ({type(error).__name__}: {str(error)[:120]}); {self.pip}"
        return ""

    def takes(self, workload: Workload) -> bool:
        return self.unit in ("", workload.unit)


REFERENCE = "torch DDP"
# Takes part in no round.
ROUNDED_OTHERWISE = Contestant("torch DDP rounded otherwise", "loops:rounded_otherwise", "", "")
CONTESTANTS = [
    Contestant(REFERENCE, "loops:ddp", "the masked head, AdamW(fused=True)", "gradient_as_bucket_view=True, static_graph=True"),
    Contestant("Bellwether", "ours:run", "none",
               "engine.stage=0 engine.replica_check=null log.noise_scale=false log.every='1000 steps'"),
    Contestant("HF Trainer", "trainers:hf_trainer", "average_tokens_across_devices=False, without which its loss is that of all processes added",
               "the masked head, ddp_find_unused_parameters=False, ddp_broadcast_buffers=False, average_tokens_across_devices=False",
               needs="transformers"),
    Contestant("accelerate", "loops:accelerate", "the model's own loss, AdamW()",
               "the masked head, AdamW(fused=True), gradient_as_bucket_view=True, static_graph=True", needs="accelerate"),
    Contestant("timm's train step", "trainers:timm_step", "opt=adamw", "fused=True", needs="timm.optim",
               pip="pip install timm torchvision (torchvision has no build for torch without CUDA)", unit="images"),
    Contestant("Composer", "trainers:composer", "none", "the masked head, AdamW(fused=True)", needs="composer",
               pip="pip install mosaicml"),
]  # fmt: skip

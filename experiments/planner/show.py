"""``bellwether plan``: what a config would take on given machines, for people or as JSON."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from bellwether.experiments.planner import critical_batch as batch
from bellwether.experiments.planner import gpus, table
from bellwether.experiments.planner.critical_batch import Critical
from bellwether.experiments.planner.estimate import Machines, PhasePlan, phase_plan
from bellwether.experiments.planner.model_info import find
from bellwether.trainer.config import load, phases
from bellwether.trainer.phases import plan


@dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    config: str
    overrides: list[str]
    nodes: int
    gpus_per_node: int
    gpu: str
    dataset_size: int | None = None
    critical_batch: str | None = None
    mfu: float | None = None
    throughput: float | None = None
    headroom: float = 0.1
    network: float | None = None
    price: float | None = None
    json: bool = False


def show(request: Request) -> int:
    """Plan each phase and print.

    Raises:
        ConfigError, ConfigErrors: if config, GPU or critical batch cannot be read, or do not go together.
    """
    if not torch.cuda.is_available():  # DeepSpeed is imported for its defaults
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    gpu = gpus.find(request.gpu)
    if request.network is not None:
        gpu = replace(gpu, network=request.network)
    machines = Machines(
        gpu, request.nodes, request.gpus_per_node, request.headroom, request.mfu, request.throughput
    )  # fmt: skip
    configs = phases(load(request.config, request.overrides))
    critical = None if request.critical_batch is None else batch.read(request.critical_batch)
    keys = [f"phases[{i}]." if len(configs) > 1 else "" for i in range(len(configs))]
    subjects = [find(c, request.dataset_size, key) for c, key in zip(configs, keys, strict=True)]
    # Where rows are not known nothing is counted in epochs, and any number does.
    planned = plan(configs, machines.world_size, [s.rows or 1 for s in subjects])
    plans = [phase_plan(p, s, machines, critical) for p, s in zip(planned, subjects, strict=True)]
    if request.json:
        print(json.dumps(_plain(plans, critical, request.price), indent=1, allow_nan=False))
    else:
        print("\n".join(table.lines(plans, critical, request.price)))
    return 0


def _plain(plans: list[PhasePlan], critical: Critical | None, price: float | None) -> dict[str, Any]:
    machines = plans[0].machines
    return {
        "gpu": asdict(machines.gpu), "nodes": machines.nodes, "gpus_per_node": machines.per_node,
        "critical_batch": None if critical is None else asdict(critical),
        "phases": [_phase(p, critical, price) for p in plans],
    }  # fmt: skip


def _phase(found: PhasePlan, critical: Critical | None, price: float | None) -> dict[str, Any]:
    phase, batch = found.phase, found.phase.split.global_batch
    hours = found.hours * found.machines.world_size
    return {
        "split": asdict(phase.split), "steps": phase.steps, "samples": phase.samples, "lr": phase.lr, "warmup": phase.warmup,
        "parameters": found.profile.elements, "flops_a_sample": found.profile.flops, "stage": found.how.stage,
        "stages": [{**asdict(s), "peak": {**asdict(s.peak), "total": s.peak.total}} for s in found.stages],
        "best_split": None if found.best is None else asdict(found.best),
        "step": {**asdict(found.step), "total": found.step.total},
        "hours": found.hours, "gpu_hours": hours, "kwh": found.energy, "price": None if price is None else price * hours,
        "batch_worth": None if critical is None else critical.efficiency(batch),
        "beyond_critical": None if critical is None else batch > critical.size,
        "strong": [asdict(row) for row in found.strong], "weak": [asdict(row) for row in found.weak],
        "assumed": found.subject.assumed,
    }  # fmt: skip

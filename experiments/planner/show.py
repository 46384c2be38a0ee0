"""``bellwether plan``: estimate a config on given machines; print it as text or JSON."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from bellwether.experiments.planner import critical_batch, gpus, table
from bellwether.experiments.planner.critical_batch import CriticalBatch
from bellwether.experiments.planner.estimate import PhasePlan, phase_plan
from bellwether.experiments.planner.model_info import ModelInfo, model_info
from bellwether.experiments.planner.step_time import Machines
from bellwether.trainer import phases as run_phases
from bellwether.trainer.checked_config import load_checked
from bellwether.trainer.config import Config, ConfigError, phases
from bellwether.trainer.memory.largest import largest_for, with_micro


@dataclass(frozen=True)
class PlanRequest:
    """The options of the command line."""

    config: str
    overrides: list[str]
    nodes: int
    gpus_per_node: int
    gpu: str
    dataset_size: int | None = None
    critical_batch: str | None = None
    mfu: float | None = None
    throughput: float | None = None
    mean_length: int | None = None
    headroom: float = 0.1
    network: float | None = None
    price: float | None = None
    json: bool = False


def show(request: PlanRequest) -> int:
    """Plan each phase and print. Returns the exit status for the shell.

    Raises:
        ConfigError, ConfigErrors: if config, GPU or critical batch size cannot be read, or contradict each other.
    """
    if not torch.cuda.is_available():  # DeepSpeed is imported for its default settings
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    gpu = gpus.find(request.gpu)
    if request.network is not None:
        gpu = replace(gpu, network=request.network)
    machines = Machines(
        gpu, request.nodes, request.gpus_per_node, request.headroom, request.mfu, request.throughput,
        request.mean_length,
    )  # fmt: skip
    configs = phases(load_checked(request.config, request.overrides))
    _check_world_size(configs[0].engine.world_size, machines)
    critical = None if request.critical_batch is None else critical_batch.read(request.critical_batch)
    keys = [f"phases[{i}]." if len(configs) > 1 else "" for i in range(len(configs))]
    infos = [model_info(c, request.dataset_size, key) for c, key in zip(configs, keys, strict=True)]
    configs = [_with_micro(c, info, machines) for c, info in zip(configs, infos, strict=True)]
    # If the number of rows is unknown, nothing is counted in epochs and any number works.
    planned = run_phases.plan(configs, machines.world_size, [info.rows or 1 for info in infos])
    plans = [phase_plan(p, info, machines, critical) for p, info in zip(planned, infos, strict=True)]
    if request.json:
        print(json.dumps(_to_json(plans, critical, request.price), indent=1, allow_nan=False))
    else:
        print("\n".join(table.lines(plans, critical, request.price)))
    return 0


def _check_world_size(required: int | None, machines: Machines) -> None:
    """Refuse a plan for another number of GPUs than the run requires."""
    if required is not None and required != machines.world_size:
        problem = f"the plan is for --nodes {machines.nodes} of --gpus-per-node {machines.per_node}, which are {machines.world_size} GPUs"
        raise ConfigError("engine.world_size", required, problem, "plan for as many GPUs, or leave the key out")


def _with_micro(config: Config, info: ModelInfo, machines: Machines) -> Config:
    """The config with the micro-batch that fits in place of `auto`; the smallest where none does, as the plan then says."""
    if not config.batch.is_auto:
        return config
    most, _ = largest_for(config, info.data, machines.world_size, machines.memory)
    return with_micro(config, max(1, most))


def _to_json(plans: list[PhasePlan], critical: CriticalBatch | None, price: float | None) -> dict[str, Any]:
    machines = plans[0].machines
    return {
        "gpu": asdict(machines.gpu), "nodes": machines.nodes, "gpus_per_node": machines.per_node,
        "critical_batch": None if critical is None else critical.json(),
        "phases": [_phase_to_json(p, critical, price) for p in plans],
    }  # fmt: skip


def _phase_to_json(plan: PhasePlan, critical: CriticalBatch | None, price: float | None) -> dict[str, Any]:
    phase, batch = plan.phase, plan.phase.split.global_batch
    hours = plan.hours * plan.machines.world_size
    return {
        "split": asdict(phase.split), "steps": phase.steps, "samples": phase.samples, "lr": phase.lr, "warmup": phase.warmup,
        "parameters": plan.profile.elements + sum(plan.profile.frozen), "trained": plan.profile.elements, "flops_a_sample": plan.profile.flops, "stage": plan.sharding.stage,
        "stages": [{**asdict(s), "peak": {**asdict(s.peak), "total": s.peak.total}} for s in plan.stages],
        "best_split": None if plan.best is None else asdict(plan.best),
        "step": {**asdict(plan.step), "total": plan.step.total},
        "hours": plan.hours, "gpu_hours": hours, "kwh": plan.energy, "price": None if price is None else price * hours,
        "batch_worth": None if critical is None else critical.efficiency(batch),
        "beyond_critical": None if critical is None else batch > critical.size,
        "strong": [asdict(row) for row in plan.strong], "weak": [asdict(row) for row in plan.weak],
        "assumed": plan.info.assumed,
    }  # fmt: skip

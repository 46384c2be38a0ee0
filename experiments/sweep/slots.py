"""Slots: the cores and GPUs of this machine that each concurrent trial occupies."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from bellwether.experiments.sweep import spec
from bellwether.experiments.sweep.spec import Sweep
from bellwether.trainer.config import ConfigError


@dataclass(frozen=True)
class Slot:
    """Cores and GPUs of one trial at a time. No cores: the operating system schedules it."""

    cores: list[int]
    gpus: list[int]


def slots(sweep: Sweep, cores: Sequence[int], gpus: int, jobs: int | None) -> list[Slot]:
    """Divide a machine among the trials that run at the same time.

    Args:
        cores: that this process may use.
        gpus: number of GPUs that torch sees.
        jobs: maximum number of concurrent trials; None: as many as fit, and at least one.

    Raises:
        ConfigError: if a trial needs more GPUs than the machine has.
    """
    processes = sweep.processes
    if gpus and processes > gpus:
        problem = f"each process needs a GPU, and this machine has {gpus}"
        raise ConfigError("processes", processes, problem, "lower it, or use --on slurm")
    cores_per_trial = processes * sweep.cores
    fit = gpus // processes if gpus else max(1, len(cores) // cores_per_trial)
    count = min(fit, jobs) if jobs is not None and (gpus or jobs <= fit) else jobs or fit
    share = max(1, len(cores) // count) if gpus else cores_per_trial
    # More trials than cores share all cores, unpinned.
    pinned = [list(cores[i * share : (i + 1) * share]) if count <= fit else [] for i in range(count)]
    return [Slot(pinned[i], list(range(i * processes, (i + 1) * processes)) if gpus else []) for i in range(count)]


def available_cores() -> list[int]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def available_gpus(sweep: Sweep) -> int:
    """The number of GPUs that a sweep's trials can use; 0 where its config trains on the CPU."""
    if spec.base(sweep).engine.device == "cpu":
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0

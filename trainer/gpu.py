"""Which GPU a process takes, from what it sees: `torchrun` shows all GPUs of a machine to each process, SLURM often only some.

Under srun, tasks may see the GPUs of the whole node (``--gpus-per-node``), one each (``--gpus-per-task=1``), several each, or those
near their cores (``--gpu-bind=closest``); the indices that they see start at 0 each time. So the tasks of a node tell each other which
GPUs they see, by identity, and each takes another one.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist

from bellwether.trainer.config.errors import ConfigError
from bellwether.trainer.process_info import ProcessInfo
from bellwether.trainer.store import SignedStore


def choose(process: ProcessInfo, store: dist.Store, local_rank_given: bool = True) -> int:
    """The index of this process's GPU, among those that torch sees.

    Of several MIG instances CUDA shows only the first: then CUDA_VISIBLE_DEVICES is set to the chosen one.

    Args:
        local_rank_given: whether the launcher has set LOCAL_RANK.

    Raises:
        ConfigError: if processes would share a GPU, or SLURM's GPUs would stay idle.
    """
    instances = mig_instances(os.environ)
    count = tasks_here(process, os.environ)
    if count is None:
        index = _by_local_rank(process, len(instances) or torch.cuda.device_count(), local_rank_given)
    else:
        seen = _exchange(process, store, count, instances or _identities())
        index = assign(seen, from_slurm="SLURM_STEP_ID" in os.environ)[process.local_rank]
    if len(instances) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = instances[index]
        return 0
    return index


def assign(seen: Sequence[Sequence[str]], from_slurm: bool = True) -> list[int]:
    """For each task of a node, the index of its GPU among those that it sees.

    >>> assign([["a", "b"], ["a", "b"]]), assign([["a"], ["b"]]), assign([["a", "b"], ["c", "d"], ["a", "b"], ["c", "d"]])
    ([0, 1], [0, 0], [0, 0, 1, 1])

    Args:
        seen: identities of the visible GPUs, by local rank.
        from_slurm: refuse idle GPUs too, which the job keeps from others.

    Raises:
        ConfigError: naming the option of SLURM to change.
    """
    owner: dict[str, int] = {}

    def claim(task: int, tried: set[str]) -> bool:
        for gpu in sorted(seen[task], key=lambda gpu: gpu in owner):  # free ones first
            if gpu not in tried:
                tried.add(gpu)
                if gpu not in owner or claim(owner[gpu], tried):
                    owner[gpu] = task
                    return True
        return False

    gpus, tasks = len({gpu for visible in seen for gpu in visible}), len(seen)
    if not all(claim(task, set()) for task in range(tasks)):
        fix = f"request one GPU per task: --gpus-per-node={tasks}, or --ntasks-per-node={gpus}, and no --gpu-bind that shows less"
        raise ConfigError("LOCAL_RANK", tasks, f"{tasks} tasks of {socket.gethostname()} see {gpus} GPUs", fix)
    if from_slurm and gpus > tasks:
        each = max(map(len, seen))
        one_each = "--gpus-per-task=1" if tasks > 1 and tasks * each == gpus else f"--gpus-per-node={tasks}"
        problem = f"{gpus} GPUs of {socket.gethostname()} are visible to {tasks} task{'s' if tasks > 1 else ''}: the others stay idle"
        fix = f"start one task per GPU (--ntasks-per-node={gpus}), or request fewer ({one_each})"
        raise ConfigError("LOCAL_RANK", tasks, problem, fix)
    taken = {task: gpu for gpu, task in owner.items()}
    return [list(visible).index(taken[task]) for task, visible in enumerate(seen)]


def tasks_here(process: ProcessInfo, environment: Mapping[str, str]) -> int | None:
    """The number of tasks that srun or mpirun started on this node; None under other launchers, which show all GPUs to all."""
    if process.launcher == "mpirun":
        text = environment.get("OMPI_COMM_WORLD_LOCAL_SIZE", "")
        return int(text) if text.isdigit() else None
    if process.launcher == "none" and "SLURM_STEP_ID" in environment and environment.get("SLURM_STEP_NUM_TASKS") == "1":
        return 1
    if process.launcher != "srun":
        return None
    counts: list[int] = []
    for number, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", environment.get("SLURM_STEP_TASKS_PER_NODE", "")):
        counts += [int(number)] * int(times or 1)
    node = environment.get("SLURM_NODEID", "")
    return counts[int(node)] if node.isdigit() and int(node) < len(counts) else None


def mig_instances(environment: Mapping[str, str]) -> list[str]:
    """The MIG instances of CUDA_VISIBLE_DEVICES; empty where it names something else."""
    names = [name.strip() for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return names if names and all(name.startswith("MIG") for name in names) else []


def _exchange(process: ProcessInfo, store: dist.Store, count: int, visible: Sequence[str]) -> list[list[str]]:
    """The GPUs that each task of this node sees, by local rank."""
    if count == 1:
        return [list(visible)]
    signed = SignedStore(store, "gpus/", process.secret)
    keys = [f"{socket.gethostname()}/{rank}" for rank in range(count)]
    signed.set(keys[process.local_rank], list(visible))
    store.wait([f"gpus/{key}" for key in keys])  # for as long as ranks may start one after another
    return [list(found or []) for found in signed.get(keys)]


def _identities() -> list[str]:
    """The visible GPUs, under names that are the same in all processes of a machine."""
    return [str(torch.cuda.get_device_properties(index).uuid) for index in range(torch.cuda.device_count())]


def _by_local_rank(process: ProcessInfo, count: int, local_rank_given: bool) -> int:
    if process.launcher == "environment" and not local_rank_given and process.size > 1:
        advice = "let the launcher set LOCAL_RANK for each process, as torchrun does"
        raise ConfigError("LOCAL_RANK", None, "is not set, so every process would take the first GPU", advice)
    if count == 1 and process.launcher in ("srun", "mpirun") and "," not in os.environ.get("CUDA_VISIBLE_DEVICES", ","):
        return 0  # --gpus-per-task shows each process only its own
    if process.local_rank >= count:
        advice = "start one process per GPU, or write engine.device=cpu"
        raise ConfigError("LOCAL_RANK", process.local_rank, f"there are {count} GPUs here", advice)
    return process.local_rank

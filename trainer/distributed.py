"""The processes of a run: who am I, are we as many as asked, and one voice for all."""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import sys
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from bellwether.trainer import process_info
from bellwether.trainer.config import ConfigError

T = TypeVar("T")

# What each launcher says the number of processes is, in its own words.
_ASKED = {
    "BELLWETHER_WORLD_SIZE": "bellwether --nproc",
    "SLURM_STEP_NUM_TASKS": "srun",
    "OMPI_COMM_WORLD_SIZE": "mpirun",
    "PMI_SIZE": "mpirun",
}


@dataclass(frozen=True)
class World:
    rank: int
    size: int
    local_rank: int
    device: torch.device
    launcher: str = "none"

    @property
    def main(self) -> bool:
        return self.rank == 0


def start(device: str, timeout: timedelta = timedelta(minutes=30)) -> World:
    """Bring up torch's process group and DeepSpeed on it, under whichever launcher (`bellwether.trainer.process_info`).

    Args:
        device: ``cpu`` (gloo), ``cuda`` (NCCL), or ``auto``: cuda where there is one.
        timeout: of a collective; one that takes longer ends the run.
    """

    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("engine.device", device, "there is no CUDA device here", "write cpu or auto")
    on_gpu = device != "cpu" and torch.cuda.is_available()
    if device == "auto" and not on_gpu and (given := _gpus_given()):
        # It would wait for the others on another kind of network than they wait for it.
        raise RuntimeError(
            f"{socket.gethostname()}: {given} gives this process GPUs, but torch finds none; is the driver well there? "
            "To train on CPUs, write engine.device=cpu"
        )
    if not on_gpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    place = process_info.detect()
    gpu = _gpu(place) if on_gpu else 0
    where = torch.device("cuda", gpu) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(where)
    os.environ.update(
        RANK=str(place.rank), WORLD_SIZE=str(place.size), LOCAL_RANK=str(place.local_rank),
        MASTER_ADDR=place.address, MASTER_PORT=str(place.port),
    )  # fmt: skip
    deepspeed = import_deepspeed()
    backend = "nccl" if on_gpu else "gloo"
    waiting = threading.Timer(15, _say_waiting)
    waiting.daemon = True
    waiting.start()
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, timeout=timeout, verbose=False)
    waiting.cancel()
    return World(dist.get_rank(), dist.get_world_size(), place.local_rank, where, place.launcher)


def _gpus_given() -> str | None:
    """The variable by which SLURM says that this process has GPUs."""
    return next((name for name in ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS") if os.environ.get(name)), None)


def _gpu(place: process_info.ProcessInfo) -> int:
    """The number of this process's GPU."""
    count = torch.cuda.device_count()
    if place.launcher == "environment" and "LOCAL_RANK" not in os.environ and place.size > 1:
        advice = "let the launcher set LOCAL_RANK for each process, as torchrun does"
        raise ConfigError("LOCAL_RANK", None, "is not set, so every process would take the first GPU", advice)
    if count == 1 and place.launcher in ("srun", "mpirun") and "," not in os.environ.get("CUDA_VISIBLE_DEVICES", ","):
        return 0  # --gpus-per-task shows each process its own alone
    if place.local_rank >= count:
        advice = "start one process a GPU, or write engine.device=cpu"
        raise ConfigError("LOCAL_RANK", place.local_rank, f"there are {count} GPUs here", advice)
    return place.local_rank


def _say_waiting() -> None:
    e = os.environ
    print(
        f"bellwether: rank {e['RANK']} waits for all {e['WORLD_SIZE']} processes at {e['MASTER_ADDR']}:{e['MASTER_PORT']}",
        file=sys.stderr,
        flush=True,
    )


def import_deepspeed() -> Any:
    """DeepSpeed, quiet, and without what it would import, or compile for a minute on a CPU, and never use in training."""
    import logging

    # DeepSpeed 0.19.8 calls collectives by the names they had before torch 2.13.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import deepspeed

        # `deepspeed.initialize` imports Muon, whether it is used or not, and there torch.compile as a decorator brings in all
        # of Inductor: 4 s of a core for every rank. Imported here with a decorator that does nothing, it costs nothing.
        compiler = torch.compile
        torch.compile = lambda function=None, **_: function or (lambda inner: inner)  # type: ignore[assignment]
        try:
            with contextlib.suppress(ImportError):  # another version may keep it elsewhere, and then it costs the 4 s
                import deepspeed.runtime.zero.muon.muon_optimizer
        finally:
            torch.compile = compiler
    # Shared-memory all-reduce for inference. A process killed while it compiles leaves a lock behind on which every
    # later run would wait for ever.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if os.environ.get("DEEPSPEED_LOG_LEVEL") is None:
        deepspeed.utils.logger.setLevel(logging.ERROR)
    return deepspeed


def _asking(launcher: str) -> list[str]:
    """The variables that speak of this run's processes. Within torchrun those of srun and mpirun count torchruns, within mpirun
    srun's counts its daemons."""
    own = ["BELLWETHER_WORLD_SIZE"]
    mpi = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"]
    known = {"torchrun": own, "environment": own, "mpirun": mpi, "srun": ["SLURM_STEP_NUM_TASKS"]}
    return known.get(launcher, [*own, *mpi, "SLURM_STEP_NUM_TASKS"])


def check_world_size(world: World, configured: int | None) -> None:
    """Refuse a run on another number of processes than was asked for: some launchers start N runs of one process each.

    Raises:
        ConfigError: naming who asked for how many.
    """
    names = [name for name in _asking(world.launcher) if os.environ.get(name, "").isdigit()]
    asked = {f"{_ASKED[name]} ({name})": int(os.environ[name]) for name in names}
    if configured is not None:
        asked["engine.world_size"] = configured
    for who, size in asked.items():
        if size != world.size:
            raise ConfigError(
                "engine.world_size",
                world.size,
                f"{who} asked for {size} processes, but the process group has {world.size}",
                "start it with a launcher that sets RANK and WORLD_SIZE for each process, such as bellwether train or torchrun",
            )


def run_on_rank0(world: World, act: Callable[[], T]) -> T:
    """Do it on rank 0 alone; every rank gets what it returned, or raises what it raised. Collective."""
    outcome: list[Any] = [_outcome(act) if world.main else None]
    dist.broadcast_object_list(outcome, src=0)
    result, error = outcome[0]
    if error is not None:
        raise for_all(error)
    return result


def run_on_all_ranks(world: World, act: Callable[[], T]) -> list[T]:
    """Do it on every rank; if it fails on any, all raise the first one's error. Collective.

    Returns what the call returned on each rank.
    """
    outcomes: list[Any] = [None] * world.size
    dist.all_gather_object(outcomes, _outcome(act))
    for _, error in outcomes:
        if error is not None:
            raise for_all(error)
    return [result for result, _ in outcomes]


def for_all(error: Exception) -> Exception:
    """Marked as one that all ranks raise together: rank 0 tells it for all."""
    error.agreed = True  # type: ignore[attr-defined]
    return error


def _outcome(act: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return act(), None
    except Exception as error:
        try:
            # Some exceptions can be pickled but not read back, which would fail on the other ranks alone.
            pickle.loads(pickle.dumps(error))
        except Exception:
            return None, RuntimeError(f"{type(error).__name__}: {error}")
        return None, error

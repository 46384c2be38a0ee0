"""Who a process is among those of its run, as its launcher tells: torchrun, accelerate, mpirun, srun, or a hand.

All of them are read here, in each process, at run time: a rank that a shell expands on the first node is every task's.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from typing import Any

from bellwether.trainer import rendezvous
from bellwether.trainer.config.errors import ConfigError

_MPI_RANK = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK")
_MPI_SIZE = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")


@dataclass(frozen=True)
class ProcessInfo:
    """One process's place, and where all of them meet."""

    rank: int
    size: int
    local_rank: int
    address: str
    port: int  # 0: any, for a process that is alone
    launcher: str


def rank() -> int:
    """This process's rank, as far as the environment tells: for messages, before all processes have met."""
    e = os.environ
    names = ["RANK", *_MPI_RANK, *(["SLURM_PROCID"] if "SLURM_STEP_ID" in e else [])]
    return next((int(e[name]) for name in names if e.get(name, "").isdigit()), 0)


def is_first_here() -> bool:
    """Whether this process is the first on its machine, as far as the environment tells."""
    e = os.environ
    names = ["LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", *(["SLURM_LOCALID"] if "SLURM_STEP_ID" in e else [])]
    return next((e[name] for name in names if name in e), "0") == "0"


def detect() -> ProcessInfo:
    """This process's seat.

    Raises:
        ConfigError: if what the launcher has set makes no sense.
    """
    e = os.environ
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"):
        if not e.get(name, "0").isdigit():
            raise ConfigError(name, e[name], "is no number", "let the launcher set it for each process")
    if "RANK" in e or e.get("WORLD_SIZE", "1") != "1":
        return _from_torchrun()
    if _is_one_task():
        return ProcessInfo(0, 1, 0, "127.0.0.1", 0, "none")
    if any(name in e for name in _MPI_RANK) and not _slurm_has_all():
        return _from_mpi()
    if _in_step():
        return _from_slurm()
    # Even where a meeting is named: accelerate sets one for a process that it has left alone, at a port that may be taken.
    return ProcessInfo(0, 1, 0, "127.0.0.1", 0, "none")


def _from_torchrun() -> ProcessInfo:
    e = os.environ
    missing = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR") if name not in e and e.get("WORLD_SIZE") != "1"]
    if missing:
        others = "RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT go together"
        raise ConfigError(missing[0], None, f"is not set, but others are: {others}", "let the launcher set them all")
    address, port = _meeting() or ("127.0.0.1", 0)
    where = int(e.get("RANK", "0")), int(e.get("WORLD_SIZE", "1")), int(e.get("LOCAL_RANK", "0"))
    return ProcessInfo(*where, address, port, "torchrun" if "TORCHELASTIC_RUN_ID" in e else "environment")


def _in_step() -> bool:
    """Whether srun started this process as one of several.

    A batch script has SLURM_PROCID and SLURM_NTASKS too, but what it starts itself is one process, whatever they say.
    """
    return "SLURM_STEP_ID" in os.environ and os.environ.get("SLURM_STEP_NUM_TASKS", "1") != "1"


def _is_one_task() -> bool:
    """Whether srun started this process alone, whatever PMI a site turns on for every step."""
    e = os.environ
    alone = "SLURM_STEP_ID" in e and e.get("SLURM_STEP_NUM_TASKS") == "1"
    return alone and "OMPI_COMM_WORLD_RANK" not in e and e.get("PMI_SIZE", "1") == "1"


def _slurm_has_all() -> bool:
    """Whether srun says as much as its PMI would, which many sites turn on for every step."""
    e = os.environ
    own = "OMPI_COMM_WORLD_RANK" not in e and e.get("PMI_SIZE") in (None, e.get("SLURM_STEP_NUM_TASKS"))
    return own and _in_step() and ("MASTER_ADDR" in e or importlib.util.find_spec("mpi4py") is None)


def _from_slurm() -> ProcessInfo:
    rank, size, local = (int(os.environ[n]) for n in ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"))
    address, port = _meeting() or rendezvous.of_step()
    return ProcessInfo(rank, size, local, address, port, "srun")


def _from_mpi() -> ProcessInfo:
    """From MPI itself, which also carries the address: rank 0 alone can tell which of its ports is free."""
    e = os.environ
    size = next((int(e[name]) for name in _MPI_SIZE if e.get(name, "").isdigit()), None)
    try:
        from mpi4py import MPI
    except ImportError as error:
        if _meeting() is None or size is None or "OMPI_COMM_WORLD_LOCAL_RANK" not in e:
            advice = "pip install 'bellwether[mpi]', or set MASTER_ADDR and MASTER_PORT for all"
            raise ConfigError("mpirun", size, f"mpi4py cannot be imported ({error})", advice) from None
        address, port = _meeting() or ("", 0)
        return ProcessInfo(rank(), size, int(e["OMPI_COMM_WORLD_LOCAL_RANK"]), address, port, "mpirun")
    world = MPI.COMM_WORLD
    local: Any = world.Split_type(MPI.COMM_TYPE_SHARED)
    mine: Any = None
    if world.rank == 0:
        try:
            mine = _meeting() or (rendezvous.address(e.get("BELLWETHER_INTERFACE")), _free_port())
        except ValueError as error:
            mine = ConfigError("BELLWETHER_INTERFACE", e["BELLWETHER_INTERFACE"], str(error))
    meeting = world.bcast(mine)
    if isinstance(meeting, ConfigError):
        raise meeting
    address, port = meeting
    return ProcessInfo(world.rank, world.size, local.rank, address, port, "mpirun")


def _meeting() -> tuple[str, int] | None:
    """Where somebody said that all processes meet."""
    e = os.environ
    return (e["MASTER_ADDR"], int(e.get("MASTER_PORT", "29500"))) if "MASTER_ADDR" in e else None


def _free_port() -> int:
    return next(filter(rendezvous.is_free, rendezvous.ports(os.getpid())))

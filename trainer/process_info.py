"""Detects rank, world size and rendezvous address of this process from its launcher: torchrun, accelerate, mpirun, srun or by hand.

The variables are read in each process at run time: a rank that a batch script's shell expands on the first node would be the
same for every task.
"""

from __future__ import annotations

import importlib.util
import json
import os
from dataclasses import dataclass, field, replace
from typing import Any

from bellwether.trainer import rendezvous
from bellwether.trainer.config.errors import ConfigError
from bellwether.trainer.environment_rank import MPI_RANK, environment_rank

_MPI_SIZE = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
SECRET = "BELLWETHER_SECRET"


@dataclass(frozen=True)
class ProcessInfo:
    """Which process of a run this is, and the address of the rendezvous.

    Attributes:
        size: the world size.
        port: 0 for a process that is alone, which may use any.
        launcher: ``torchrun``, ``environment`` (RANK and the others set by something else), ``mpirun``, ``srun`` or ``none``.
        one_machine: whether all processes are on this machine.
        secret: of the run, for `bellwether.trainer.store`; empty where the launcher gives none.
    """

    rank: int
    size: int
    local_rank: int
    address: str
    port: int
    launcher: str
    one_machine: bool = False
    secret: str = field(default="", repr=False)


_ALONE = ProcessInfo(0, 1, 0, "127.0.0.1", 0, "none", one_machine=True)


def detect() -> ProcessInfo:
    """This process's `ProcessInfo`. Removes BELLWETHER_SECRET from the environment, which other programs inherit.

    Raises:
        ConfigError: if the variables that the launcher has set contradict one another, or some are missing.
    """
    secret = os.environ.pop(SECRET, "")
    found = _detect()
    return replace(found, secret=found.secret or secret)


def _detect() -> ProcessInfo:
    e = os.environ
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"):
        if not e.get(name, "0").isdigit():
            raise ConfigError(name, e[name], "is no number", "let the launcher set it for each process")
    if "RANK" in e or e.get("WORLD_SIZE", "1") != "1":
        return _from_torchrun()
    if _is_only_task():
        return _ALONE
    if any(name in e for name in MPI_RANK) and not _slurm_is_sufficient():
        return _from_mpi()
    if _is_one_of_several_tasks():
        return _from_slurm()
    # Also where MASTER_ADDR is set: accelerate sets it for a process that it starts alone, with a port that may be taken.
    return _ALONE


def _from_torchrun() -> ProcessInfo:
    e = os.environ
    missing = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR") if name not in e and e.get("WORLD_SIZE") != "1"]
    if missing:
        others = "RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT go together"
        raise ConfigError(missing[0], None, f"is not set, but others are: {others}", "let the launcher set them all")
    address, port = _rendezvous() or ("127.0.0.1", 0)
    numbers = int(e.get("RANK", "0")), int(e.get("WORLD_SIZE", "1")), int(e.get("LOCAL_RANK", "0"))
    launcher = "torchrun" if "TORCHELASTIC_RUN_ID" in e else "environment"
    if launcher == "environment" and "BELLWETHER_WORLD_SIZE" not in e and _outer_launcher(*numbers[:2]) == "srun":
        return _from_slurm()  # also where enroot's hook for PyTorch has set the variables from SLURM's
    one_machine = numbers[1] == 1 or e.get("LOCAL_WORLD_SIZE") == str(numbers[1]) or address in _LOOPBACK
    return ProcessInfo(*numbers, address, port, launcher, one_machine)


# Launchers that may have started this process, or the launcher that set RANK: its variables for rank and size.
_OUTER = {
    "srun": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
    "mpirun": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
}


def _outer_launcher(rank: int, size: int) -> str:
    """The launcher that gives this process the same rank and size as RANK and WORLD_SIZE; empty if none does.

    A launcher that srun or mpirun starts once per node, such as DeepSpeed's, gives it others. So do variables that are left over
    from elsewhere, with which processes would wait for each other in vain.

    Raises:
        ConfigError: if they are left over.
    """
    e = os.environ
    for launcher, names in _OUTER.items():
        if not all(e.get(name, "").isdigit() for name in names) or (launcher == "srun" and "SLURM_STEP_ID" not in e):
            continue
        outer_rank, outer_size = (int(e[name]) for name in names)
        if outer_size == 1:
            # Also a shell in a task of its own, in which any launcher may run. But srun itself starts one process.
            if not (launcher == "srun" and e.get("SLURM_TASK_PID") == str(os.getpid())) or size == 1:
                continue
        elif (rank, size) == (outer_rank, outer_size):
            return launcher
        elif (
            size > outer_size
            and size % outer_size == 0
            and "LOCAL_RANK" in e
            and rank // (size // outer_size) == outer_rank
        ):
            continue
        theirs = f"{names[0]}={outer_rank} and {names[1]}={outer_size}"
        problem = f"RANK={rank} and WORLD_SIZE={size} contradict {launcher}'s {theirs}: another launcher has left them"
        raise ConfigError(
            "RANK", rank, problem, f"unset RANK WORLD_SIZE LOCAL_RANK MASTER_ADDR MASTER_PORT before {launcher}"
        )
    return ""


def _is_one_of_several_tasks() -> bool:
    """Whether srun started this process as one of several.

    A batch script has SLURM_PROCID and SLURM_NTASKS too, but what it starts without srun is one process.
    """
    return "SLURM_STEP_ID" in os.environ and os.environ.get("SLURM_STEP_NUM_TASKS", "1") != "1"


def _is_only_task() -> bool:
    """Whether srun started this process alone; many sites enable a PMI for every step, whose variables then have no information."""
    e = os.environ
    alone = "SLURM_STEP_ID" in e and e.get("SLURM_STEP_NUM_TASKS") == "1"
    return alone and "OMPI_COMM_WORLD_RANK" not in e and e.get("PMI_SIZE", "1") == "1"


def _slurm_is_sufficient() -> bool:
    """Whether srun's variables have the same information as those of its PMI, which many sites enable for every step."""
    e = os.environ
    is_srun = "OMPI_COMM_WORLD_RANK" not in e and e.get("PMI_SIZE") in (None, e.get("SLURM_STEP_NUM_TASKS"))
    has_no_mpi = "MASTER_ADDR" in e or importlib.util.find_spec("mpi4py") is None
    return is_srun and _is_one_of_several_tasks() and has_no_mpi


def _from_slurm() -> ProcessInfo:
    if int(os.environ.get("SLURM_HET_SIZE", "1")) > 1:
        problem = "a heterogeneous job's components number their tasks separately"
        raise ConfigError(
            "SLURM_HET_SIZE", os.environ["SLURM_HET_SIZE"], problem, "submit one job with one kind of nodes"
        )
    rank, size, local = (int(os.environ[n]) for n in ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"))
    address, port = _rendezvous() or rendezvous.of_step()
    return ProcessInfo(rank, size, local, address, port, "srun", os.environ.get("SLURM_STEP_NUM_NODES") == "1")


def _from_mpi() -> ProcessInfo:
    """From MPI itself, which also broadcasts the address: only rank 0 knows which of its ports is free."""
    e = os.environ
    size = next((int(e[name]) for name in _MPI_SIZE if e.get(name, "").isdigit()), None)
    try:
        from mpi4py import MPI
    except ImportError as error:
        if _rendezvous() is None or size is None or "OMPI_COMM_WORLD_LOCAL_RANK" not in e:
            advice = "pip install 'bellwether[mpi]', or set MASTER_ADDR and MASTER_PORT for all"
            raise ConfigError("mpirun", size, f"mpi4py cannot be imported ({error})", advice) from None
        address, port = _rendezvous() or ("", 0)
        return ProcessInfo(environment_rank(), size, int(e["OMPI_COMM_WORLD_LOCAL_RANK"]), address, port, "mpirun")
    world = MPI.COMM_WORLD
    local: Any = world.Split_type(MPI.COMM_TYPE_SHARED)
    one_machine = local.size == world.size
    # Not MPI's own way to send objects, which pickles them.
    message = bytearray(4096)
    if world.rank == 0:
        message[:] = json.dumps(_mpi_rendezvous(one_machine)).encode().ljust(len(message))
    world.Bcast([message, MPI.BYTE], 0)
    agreed = json.loads(message)
    if "error" in agreed:
        raise ConfigError("BELLWETHER_INTERFACE", e.get("BELLWETHER_INTERFACE"), agreed["error"])
    return ProcessInfo(
        world.rank, world.size, local.rank, agreed["address"], agreed["port"], "mpirun", one_machine, agreed["secret"]
    )


def _mpi_rendezvous(one_machine: bool) -> dict[str, Any]:
    """Address, port and secret for all ranks, or an error."""
    try:
        address, port = _rendezvous() or (None, None)
        if address is None:
            interface = os.environ.get("BELLWETHER_INTERFACE")
            address = "127.0.0.1" if one_machine else rendezvous.address(interface)
            own = address if one_machine else rendezvous.own_address(address)
            port = next(port for port in rendezvous.ports(os.getpid()) if rendezvous.is_free(port, own))
    except (OSError, ValueError) as error:
        return {"error": str(error)[:2000]}
    return {"address": address, "port": port, "secret": rendezvous.new_secret()}


def _rendezvous() -> tuple[str, int] | None:
    """Address and port of the rendezvous where the environment names them."""
    e = os.environ
    return (e["MASTER_ADDR"], int(e.get("MASTER_PORT", "29500"))) if "MASTER_ADDR" in e else None

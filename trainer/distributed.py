"""The processes of a run: starting the process group, checking its size, and decisions that all ranks take together."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from bellwether.trainer import gpu, messages, process_info, stack_dump, start_watch, store
from bellwether.trainer.config import ConfigError
from bellwether.trainer.environment_rank import LOCAL_RANK
from bellwether.trainer.libraries import import_deepspeed

log = logging.getLogger(__name__)

T = TypeVar("T")

# Variables in which launchers state the number of processes -> who states it.
_STATED_SIZES = {
    "BELLWETHER_WORLD_SIZE": "bellwether --nproc",
    "SLURM_STEP_NUM_TASKS": "srun",
    "OMPI_COMM_WORLD_SIZE": "mpirun",
    "PMI_SIZE": "mpirun",
}


@dataclass(frozen=True)
class World:
    """This process within the process group, and the device that it trains on."""

    rank: int
    size: int
    local_rank: int
    device: torch.device
    launcher: str = "none"
    secret: str = field(default="", repr=False)  # of the run, for `bellwether.trainer.store`

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def start(device: str, timeout: timedelta = timedelta(minutes=30)) -> World:
    """Start torch's process group, and DeepSpeed on it, under any launcher that `bellwether.trainer.process_info` detects.

    Args:
        device: ``cpu`` (gloo), ``cuda`` (NCCL), or ``auto``: cuda where a device is available.
        timeout: of a collective; one that takes longer ends the run.

    Raises:
        ConfigError: if there is no such device, or the launcher's variables make no sense.
        RuntimeError: if SLURM gives this process GPUs that torch does not find.
    """
    # Looking for a GPU initializes CUDA, which keeps the first of several MIG instances: one is chosen before.
    has_instances = device != "cpu" and len(gpu.mig_instances(os.environ)) > 1
    use_gpu = has_instances or _use_gpu(device)
    if not use_gpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    process = process_info.detect()
    local_rank_given = "LOCAL_RANK" in os.environ
    os.environ.update(
        RANK=str(process.rank), WORLD_SIZE=str(process.size), MASTER_ADDR=process.address, MASTER_PORT=str(process.port),
    )  # fmt: skip
    store.choose_interface(process)
    started = threading.Event()
    threading.Thread(target=start_watch.watch, args=(process, started), daemon=True).start()
    opened = store.open_store(process, timeout)
    opened.set(start_watch.arrival(process.rank), "")
    torch_device = torch.device("cpu")
    if use_gpu:
        torch_device = torch.device("cuda", gpu.choose(process, opened, local_rank_given))
        _use_gpu(device)
        torch.cuda.set_device(torch_device)
    _set_local_rank(process.local_rank, torch_device)
    stack_dump.record_collectives()
    deepspeed = import_deepspeed()
    backend = "nccl" if use_gpu else "gloo"
    dist.init_process_group(
        backend, store=dist.PrefixStore("torch", opened), rank=process.rank, world_size=process.size,
        timeout=timeout, device_id=torch_device if use_gpu and process.size > 1 else None,
    )  # fmt: skip
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, timeout=timeout, verbose=False)
    started.set()
    return World(process.rank, process.size, process.local_rank, torch_device, process.launcher, process.secret)


def _use_gpu(device: str) -> bool:
    """Whether to train on a GPU, for a value of engine.device."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("engine.device", device, "there is no CUDA device here", "write cpu or auto")
    use_gpu = device != "cpu" and torch.cuda.is_available()
    if device == "auto" and not use_gpu and (name := _slurm_gpu_variable()):
        # On the CPU it would wait in gloo for ranks that wait for it in NCCL.
        raise RuntimeError(
            f"{socket.gethostname()}: {name} gives this process GPUs, but torch finds none; check the node's driver. "
            "To train on CPUs, write engine.device=cpu"
        )
    return use_gpu


def _slurm_gpu_variable() -> str | None:
    """The variable by which SLURM says that this process has GPUs."""
    return next((name for name in ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS") if os.environ.get(name)), None)


def _set_local_rank(local_rank: int, device: torch.device) -> None:
    """Set LOCAL_RANK to the index of the GPU, as DeepSpeed takes it for that."""
    index = local_rank if device.index is None else device.index
    os.environ.update({LOCAL_RANK: str(local_rank), "LOCAL_RANK": str(index)})
    if "OMPI_COMM_WORLD_LOCAL_RANK" in os.environ:
        os.environ["OMPI_COMM_WORLD_LOCAL_RANK"] = str(index)  # DeepSpeed insists that they are equal


def check_world_size(world: World, configured: int | None) -> None:
    """Refuse a run on another number of processes than was requested: some launchers start N runs of one process each.

    Args:
        configured: engine.world_size.

    Raises:
        ConfigError: naming who requested how many.
    """
    names = [name for name in _size_variables(world.launcher) if os.environ.get(name, "").isdigit()]
    requested = {f"{_STATED_SIZES[name]} ({name})": int(os.environ[name]) for name in names}
    if configured is not None:
        requested["engine.world_size"] = configured
    for who, size in requested.items():
        if size != world.size:
            raise ConfigError(
                "engine.world_size",
                world.size,
                f"{who} asked for {size} processes, but the process group has {world.size}",
                "start it with a launcher that sets RANK and WORLD_SIZE for each process, such as bellwether train or torchrun",
            )


def _size_variables(launcher: str) -> list[str]:
    """The variables that state the number of this run's processes.

    Within torchrun those of srun and mpirun count torchruns; within mpirun srun's counts mpirun's daemons.
    """
    own = ["BELLWETHER_WORLD_SIZE"]
    mpi = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"]
    known = {"torchrun": own, "environment": own, "mpirun": mpi, "srun": ["SLURM_STEP_NUM_TASKS"]}
    return known.get(launcher, [*own, *mpi, "SLURM_STEP_NUM_TASKS"])


def run_on_rank0(world: World, act: Callable[[], T]) -> T:
    """Call a function on rank 0 only; every rank gets what it returned, or raises what it raised. Collective.

    What it returns is sent as `bellwether.trainer.messages` does: JSON, tuples and paths.
    """
    result, error, data = _outcome(act) if world.is_main else (None, None, b"")
    data = messages.broadcast(data, world.device)
    if not world.is_main:
        result, error = _decode(data)
    if error is not None:
        raise raised_by_all_ranks(error)
    return cast(T, result)


def run_on_all_ranks(world: World, act: Callable[[], T]) -> list[T]:
    """Call a function on every rank; if it fails on any, all raise the error of the lowest such rank. Collective.

    Returns:
        what the function returned on each rank, of the types of `run_on_rank0`.
    """
    return agree(act, world.rank, lambda data: messages.all_gather(data, world.device))


def agree(act: Callable[[], T], rank: int, all_gather: Callable[[bytes], list[bytes]]) -> list[T]:
    """`run_on_all_ranks` over any connection of the ranks.

    Args:
        all_gather: returns the bytes of all ranks, in order.
    """
    result, error, data = _outcome(act)
    outcomes: list[tuple[Any, Exception | None]] = [_decode(one) for one in all_gather(data)]
    outcomes[rank] = result, error
    for _, one in outcomes:
        if one is not None:
            raise raised_by_all_ranks(one)
    return [result for result, _ in outcomes]


def raised_by_all_ranks(error: Exception) -> Exception:
    """Mark an error as one that all ranks raise together, so that rank 0 alone reports it."""
    error.raised_by_all_ranks = True  # type: ignore[attr-defined]
    return error


def _outcome(act: Callable[[], T]) -> tuple[T | None, Exception | None, bytes]:
    """What a function returns and what it raises, one of them None, and both as they are sent."""
    try:
        result = act()
        return result, None, messages.encode([result, None])
    except Exception as error:
        return None, error, messages.encode([None, messages.encode_error(error)])


def _decode(data: bytes) -> tuple[Any, Exception | None]:
    result, error = messages.decode(data)
    return result, None if error is None else messages.decode_error(error)

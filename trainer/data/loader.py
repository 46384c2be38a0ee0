"""The micro-batches of one rank, prepared by worker processes.

The samples of a global batch are a function of (seed, position) alone; each rank takes its part of them.
"""

from __future__ import annotations

import atexit
import faulthandler
import math
import multiprocessing
import os
import signal
import threading
import traceback
import weakref
from collections.abc import Callable, Generator, Iterator, Sized
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from bellwether.trainer.config.errors import ConfigError
from bellwether.trainer.data import Samples, arranged
from bellwether.trainer.data.device import to_device
from bellwether.trainer.data.sampling import Integers, SampleOrder, rank_positions, sample_keys
from bellwether.trainer.data.transient import FAILED, retrying

DUMP_SIGNAL = signal.SIGRTMIN + 6  # at which a worker prints the stacks of its threads to standard error
live_workers: weakref.WeakSet[Any] = weakref.WeakSet()  # the processes that prepare batches for this one


class WorkerError(RuntimeError):
    """A batch could not be prepared, because of an unexpected error or because a worker process died."""


class _Job(NamedTuple):
    rows: Integers
    keys: Integers
    weight: Tensor | None


class _Failure(NamedTuple):
    text: str
    trace: str


def train_batches(
    samples: Samples,
    *,
    seed: int,
    start: int,
    steps: int,
    global_batch: int,
    micro: int,
    accumulation: int,
    rank: int,
    world_size: int,
    workers: int,
    device: torch.device | None = None,
) -> Iterator[dict[str, Tensor]]:
    """Yields the micro-batches of one rank: ``steps * accumulation`` of them, each of ``micro`` samples.

    In step s, micro-batch a, rank r takes the ``micro`` global positions from
    ``start + s * global_batch + (a * world_size + r) * micro`` on. Where samples differ in length (`lengths`), the samples of a
    global batch are sorted by it first, so that those of a micro-batch need little padding. The global batch stays the same.

    Args:
        seed: seed of the sample order and of masking or augmentation.
        start: global sample position of the first step. It can be any number, so that a run resumes where it stopped.
        steps: number of weight updates.
        workers: number of processes that prepare batches in advance; 0: prepare them in this process.
        device: where the batches are yielded; None: on the CPU.

    Raises:
        ConfigError: from the iterator, if a sample cannot be read.
        WorkerError: from the iterator, if a batch cannot be prepared for another reason or a worker dies.
    """
    if micro * accumulation * world_size != global_batch:
        raise ValueError(f"{micro} x {accumulation} x {world_size} ranks do not make a global batch of {global_batch}")
    unit = getattr(samples, "unit", 1)
    if micro % unit or start % unit:
        raise ValueError(f"micro-batches of {micro} from sample {start} on would cut units of {unit} samples")
    is_ordered = hasattr(samples, "arranged")
    if is_ordered and start % global_batch:
        raise ValueError(f"sample {start} is inside a step of {global_batch} streams")
    samples = arranged(samples, global_batch, seed)
    order = order_of(samples, seed)
    parts = rank_positions(rank, world_size, micro, accumulation)
    lengths = getattr(samples, "lengths", None)

    def jobs() -> Iterator[_Job]:
        for step in range(steps):
            batch = start + step * global_batch
            sorted_positions = None
            if lengths is not None and micro < global_batch:
                sorted_positions = batch + np.argsort(
                    lengths[order(np.arange(batch, batch + global_batch))], kind="stable"
                )
            for part in parts:
                positions = batch + part if sorted_positions is None else sorted_positions[part]
                yield _Job(order(positions), sample_keys(seed, positions), None)

    return _batches(samples, jobs, steps * accumulation, workers, device)


def evaluation_batches(
    samples: Samples,
    *,
    limit: int | None,
    micro: int,
    rank: int,
    world_size: int,
    workers: int,
    device: torch.device | None = None,
) -> Iterator[dict[str, Tensor]]:
    """Yields one rank's share of the held-out samples, each of which appears once over all ranks.

    Every rank yields the same number of batches of exactly ``micro`` samples. The additional entry ``weight``, float32 [B],
    is 1 for a held-out sample and 0 for padding.

    Args:
        limit: use at most this many samples, spread evenly over all of them; of streams the first windows of each, at least one;
            None: use all.
        device: where the batches are yielded; None: on the CPU.
    """
    if hasattr(samples, "parallel"):
        found = _held_out_streams(samples, limit, micro, rank, world_size)
        return _batches(samples, lambda: iter(found), len(found), workers, device)
    held_out = evaluation_rows(len(samples), limit)
    count = len(held_out)
    batches = math.ceil(count / (micro * world_size))

    def jobs() -> Iterator[_Job]:
        for batch in range(batches):
            first = (batch * world_size + rank) * micro
            positions = np.arange(first, first + micro)
            weight = torch.from_numpy((positions < count).astype(np.float32))
            rows = held_out[positions % count]
            yield _Job(rows, sample_keys(0, rows), weight)

    return _batches(samples, jobs, batches, workers, device)


def _held_out_streams(samples: Any, limit: int | None, micro: int, rank: int, world_size: int) -> list[_Job]:
    """Window after window, this rank's streams; a rank that has fewer than others repeats the last stream, with weight 0."""
    parallel = samples.parallel
    width = min(micro, math.ceil(parallel / world_size))
    streams = rank_positions(rank, world_size, width, math.ceil(parallel / (width * world_size)))
    windows = len(samples) // parallel
    if limit is not None:
        windows = min(windows, max(1, limit // parallel))
    jobs = []
    for window in range(windows):
        for part in streams:
            rows = window * parallel + part.clip(max=parallel - 1)
            weight = torch.from_numpy(samples.weights(rows) * (part < parallel))
            jobs.append(_Job(rows, sample_keys(0, rows), weight))
    return jobs


def order_of(samples: Samples, seed: int) -> Callable[[Integers], Integers]:
    """The rows at positions of a phase with this seed: those of the samples' own order, or a random one."""
    own: Callable[[Integers], Integers] | None = getattr(samples, "rows_at", None)
    return SampleOrder(seed, len(samples)) if own is None else own


def evaluation_rows(total: int, limit: int | None) -> Integers:
    """The held-out rows that are evaluated, ascending. Rows may be sorted by class, so a limit takes every n-th one."""
    count = total if limit is None else min(limit, total)
    return np.arange(count) * total // count


class _Batches(Dataset[Any]):
    """Maps a job to a batch, in a worker. Errors are returned as values, so that they can be raised unchanged."""

    def __init__(self, samples: Samples) -> None:
        self.make = getattr(samples, "worker_batch", samples.batch)
        self.retry = getattr(samples, "retry", 0.0)

    def __getitem__(self, job: _Job) -> dict[str, Tensor] | ConfigError | OSError | _Failure:
        try:
            batch = retrying(self.retry, lambda: self.make(job.rows, job.keys), listed=True)
        except ConfigError as error:
            return error
        except Exception as error:
            if isinstance(error, OSError) and error.errno == FAILED:
                return error
            return _Failure(f"{type(error).__name__}: {error}", traceback.format_exc())
        return batch if job.weight is None else {**batch, "weight": job.weight}


class _Jobs(Sampler[_Job], Sized):
    def __init__(self, jobs: Callable[[], Iterator[_Job]], count: int) -> None:
        self.jobs, self.count = jobs, count

    def __iter__(self) -> Iterator[_Job]:
        return self.jobs()

    def __len__(self) -> int:
        return self.count


def _batches(
    samples: Samples, jobs: Callable[[], Iterator[_Job]], count: int, workers: int, device: torch.device | None
) -> Iterator[dict[str, Tensor]]:
    """Batches on a device. What a worker does not do, the samples' `finish` does there."""
    device = device or torch.device("cpu")
    loaded = _loaded(samples, jobs, count, workers, pin_memory=device.type == "cuda")
    try:
        yield from to_device(loaded, device, getattr(samples, "finish", dict))
    finally:
        loaded.close()


def _loaded(
    samples: Samples, jobs: Callable[[], Iterator[_Job]], count: int, workers: int, pin_memory: bool
) -> Generator[dict[str, Tensor]]:
    workers = min(workers, count)
    worker_options: dict[str, Any] = {}
    if workers:
        # Not fork: this process has threads (tokenizers, arrow, NCCL) that may hold locks, for which a forked child would
        # wait forever. The fork server has no such threads, and imports torch once for all workers.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(
            [
                "bellwether.trainer.data.ignore_signals",
                "torch.utils.data",
                "bellwether.trainer.data.loader",
                type(samples).__module__,
                "PIL.Image",
                *getattr(samples, "worker_imports", ()),
            ]
        )
        worker_options = {"multiprocessing_context": context, "worker_init_fn": _start_worker}
    loader: DataLoader[Any] = DataLoader(
        _Batches(samples),
        batch_size=None,
        sampler=_Jobs(jobs, count),
        num_workers=workers,
        pin_memory=pin_memory,
        # By default it would draw from torch's global generator, which is reserved for dropout.
        generator=torch.Generator(),
        **worker_options,
    )
    iterator = iter(loader)
    live_workers.update(getattr(iterator, "_workers", ()))
    shut_down = getattr(iterator, "_shutdown_workers", lambda: None)
    # Needed if the interpreter exits while this iterator is alive: workers ignore the SIGTERM that they would get then.
    atexit.register(shut_down)
    unregister = atexit.unregister  # at interpreter exit the module may be gone before this generator is closed
    try:
        for batch in iterator:
            if isinstance(batch, ConfigError | OSError):
                raise batch
            if isinstance(batch, _Failure):
                raise WorkerError(f"a batch could not be prepared: {batch.text}\n{batch.trace}")
            yield batch
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise WorkerError(
            f"a data worker died, most often for lack of memory or of shared memory (/dev/shm): {error}; "
            f"set data.workers lower than {workers}, or to 0, to prepare batches in the training process"
        ) from error
    finally:
        shut_down()
        unregister(shut_down)


def _start_worker(worker: int) -> None:
    # Ctrl-C, and the signals by which SLURM announces a preemption, reach every process of a job step. Only the training
    # process handles them; it may continue for some steps and needs its workers for them.
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    faulthandler.register(DUMP_SIGNAL)
    # torch's own watchdog checks the parent, which is the fork server and outlives a killed training process.
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)

"""Work that is split into shards: done by processes on all cores, and continued where a killed one left it.

A shard is a directory that appears by one rename when it is complete, so what is there is done. Workers import no torch.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, TypeVar

from bellwether.trainer.log import EVERY_RANK

log = logging.getLogger(__name__)

_REPORT = 10.0  # seconds between two lines about the progress
FACTS = "facts.json"  # what the function has returned, in the directory of the shard

Task = TypeVar("Task")
Facts = dict[str, Any]


def run(
    folder: Path, name: str, tasks: Sequence[Task], function: Callable[[Task, Path], Facts], sizes: Sequence[int]
) -> list[Path]:
    """Do all tasks whose shard is not there.

    Args:
        folder: where the shards are, as ``<name>-<number>``.
        name: what the shards hold, for their names and the log.
        tasks: what each shard is made from; picklable, like `function`.
        function: fills the empty directory of a shard, and returns JSON-like facts, which are stored with it.
        sizes: bytes of work of each task. A small total is done in this process.

    Returns:
        the directories of the shards, in the order of the tasks.
    """
    shards = [folder / f"{name}-{index:05d}" for index in range(len(tasks))]
    missing = [index for index, shard in enumerate(shards) if not shard.is_dir()]
    if len(missing) < len(tasks):
        log.info("%s: %d of %d parts are there", name, len(tasks) - len(missing), len(tasks), extra=EVERY_RANK)
    processes = min(len(missing), len(os.sched_getaffinity(0)))
    if processes < 2 or sum(sizes[index] for index in missing) < _WORTH_PROCESSES:
        for index in missing:
            _make(function, tasks[index], shards[index])
        return shards
    began = reported = time.monotonic()
    with ProcessPoolExecutor(
        processes, multiprocessing.get_context("spawn"), initializer=_start, initargs=(os.getpid(),)
    ) as pool:
        futures = {pool.submit(_make, function, tasks[index], shards[index]): index for index in missing}
        try:
            for done, future in enumerate(as_completed(futures), 1):
                future.result()
                if time.monotonic() - reported > _REPORT:
                    reported = time.monotonic()
                    seconds = (reported - began) / done * (len(missing) - done)
                    log.info("%s: %d of %d parts, %.0f s left", name, done, len(missing), seconds, extra=EVERY_RANK)
        except Exception:
            pool.shutdown(
                cancel_futures=True
            )  # shards that are begun are finished, or the next command would meet them
            raise
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return shards


_WORTH_PROCESSES = 8_000_000  # bytes: less is done before processes have started


def facts(shard: Path) -> Facts:
    """What the function returned for a shard."""
    found: Facts = json.loads((shard / FACTS).read_text(encoding="utf-8"))
    return found


def _make(function: Callable[[Task, Path], Facts], task: Task, shard: Path) -> None:
    partial = shard.with_name(f"{shard.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        found = function(task, partial)
        (partial / FACTS).write_text(json.dumps(found), encoding="utf-8")
        partial.rename(shard)
    except OSError:
        # A process of a killed command lives on for up to a second, and may have finished the same shard.
        if not shard.is_dir():
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _start(parent: int) -> None:
    os.environ["RAYON_NUM_THREADS"] = "1"  # of the tokenizers library: there is a process for each core
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_exit_with, args=(parent,), daemon=True).start()


def _exit_with(parent: int) -> None:
    """Exit when the process that waits for the shards is killed."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)

"""Work that is split into shards: done on all cores of one or several machines, and continued where a killed one left it.

A shard is a directory that appears by one rename when it is complete, so what is there is done. A machine claims a shard before it
makes it (`bellwether.trainer.data.claims`). Two that make the same shard lose time alone: the second finds it done. Workers import no
torch.
"""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeVar

from bellwether.trainer.config.errors import ConfigError
from bellwether.trainer.data.claims import Claims
from bellwether.trainer.log import EVERY_RANK

log = logging.getLogger(__name__)

_REPORT = 10.0  # seconds between two lines about the progress
_POLL = 0.5  # seconds between two looks at what other machines have done
_WORTH_PROCESSES = 8_000_000  # bytes: less is done before processes have started
_DEATHS = 3  # of worker processes, before it is given up
FACTS = "facts.json"  # what the function has returned, in the directory of the shard

Task = TypeVar("Task")
Facts = dict[str, Any]


def run(
    folder: Path,
    claimed: Path,
    name: str,
    tasks: Sequence[Task],
    function: Callable[[Task, Path], Facts],
    sizes: Sequence[int],
) -> None:
    """Do all tasks whose shard is not there, or wait for the machines that do.

    Args:
        folder: where the shards are, as ``<name>-<number>``; see `found`.
        claimed: a directory for what says who makes which shard, and for unfinished ones.
        name: what the shards hold, for their names and the log.
        tasks: what each shard is made from; picklable, like `function`.
        function: fills the empty directory of a shard, and returns JSON-like facts, which are stored with it.
        sizes: bytes of work of each task. A small total is done in this process.

    Raises:
        FileNotFoundError: if another process has removed the folder.
        ConfigError: if worker processes were killed again and again.
    """
    shards = [folder / f"{name}-{index:05d}" for index in range(len(tasks))]
    claims = Claims(shards, claimed)
    if claims.missing and len(claims.missing) < len(tasks):
        there = len(tasks) - len(claims.missing)
        log.info("%s: %d of %d parts are there", name, there, len(tasks), extra=EVERY_RANK)
    progress = _Progress(name, claims)
    processes = min(len(claims.missing), len(os.sched_getaffinity(0)))
    is_small = processes < 2 or sum(sizes[index] for index in claims.missing) < _WORTH_PROCESSES
    jobs = [(function, task, shard, claimed) for task, shard in zip(tasks, shards, strict=True)]
    try:
        with contextlib.closing(claims):
            if is_small:
                _in_this_process(claims, jobs, progress)
            else:
                _in_processes_that_may_die(processes, claims, jobs, progress)
    except FileNotFoundError:
        if not folder.is_dir():  # another machine has published what they have made together
            progress.end()
        raise
    progress.end()


def found(folder: Path, name: str) -> list[Path]:
    """The shards that `run` has made, in the order of their tasks."""
    return sorted(folder.glob(f"{name}-*"), key=lambda shard: int(shard.name.rpartition("-")[2]))


def facts(shard: Path) -> Facts:
    """What the function returned for a shard."""
    found: Facts = json.loads((shard / FACTS).read_text(encoding="utf-8"))
    return found


def _in_this_process(claims: Claims, jobs: Sequence[tuple[Any, ...]], progress: _Progress) -> None:
    while claims.missing:
        if (index := claims.take()) is None:
            time.sleep(_POLL)
        else:
            _make(*jobs[index])
            claims.finish(index)
        progress.report()


def _in_processes_that_may_die(
    processes: int, claims: Claims, jobs: Sequence[tuple[Any, ...]], progress: _Progress
) -> None:
    claims.begin_anywhere()
    for deaths in range(1, _DEATHS + 1):
        try:
            return _in_processes(processes, claims, jobs, progress)
        except BrokenProcessPool as error:
            claims.close()
            if deaths == _DEATHS:
                problem = f"processes that read it were killed {_DEATHS} times, as where memory is short"
                raise ConfigError("data", None, problem, "give the command more memory or fewer cores") from error
            log.warning("a process that reads the data was killed; its part is done again", extra=EVERY_RANK)
    return None


def _in_processes(processes: int, claims: Claims, jobs: Sequence[tuple[Any, ...]], progress: _Progress) -> None:
    with ProcessPoolExecutor(
        processes, multiprocessing.get_context("spawn"), initializer=_start, initargs=(os.getpid(),)
    ) as pool:
        running: dict[Future[None], int] = {}
        try:
            while claims.missing:
                while len(running) < processes and (index := claims.take()) is not None:
                    running[pool.submit(_make, *jobs[index])] = index
                if running:
                    done, _ = wait(running, _POLL, FIRST_COMPLETED)
                else:  # others make what is missing
                    done = set()
                    time.sleep(_POLL)
                for future in done:
                    future.result()
                    claims.finish(running.pop(future))
                progress.report()
        except Exception:
            pool.shutdown(
                cancel_futures=True
            )  # shards that are begun are finished, or the next command would meet them
            raise
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _make(function: Callable[[Task, Path], Facts], task: Task, shard: Path, claimed: Path) -> None:
    partial = claimed / f"{shard.name}.partial-{socket.gethostname()}-{os.getpid()}"
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


class _Progress:
    """Logs how many parts are done, here and elsewhere, and who makes the others."""

    def __init__(self, name: str, claims: Claims) -> None:
        self._name, self._claims = name, claims
        self._first = len(claims.missing)
        self._began = self._reported = time.monotonic()

    def report(self) -> None:
        now = time.monotonic()
        if now - self._reported < _REPORT:
            return
        self._reported = now
        claims, total = self._claims, len(self._claims.shards)
        done = self._first - len(claims.missing)
        others = claims.others()
        text = f"{total - len(claims.missing)} of {total} parts"
        if others or done > claims.made:
            text += f", {claims.made} of them made here"
        if others:
            text += "; also at work: " + ", ".join(f"{machine} on {count}" for machine, count in others.items())
        if done:
            text += f"; {(now - self._began) / done * len(claims.missing):.0f} s left"
        log.info("%s: %s", self._name, text, extra=EVERY_RANK)

    def end(self) -> None:
        if self._first > self._claims.made:
            done = f"{self._claims.made} of {self._first} parts made here, the others on other machines"
            log.info("%s: %s", self._name, done, extra=EVERY_RANK)

"""Real process groups for tests: N processes with gloo and DeepSpeed that stay up and run one function after another.

They are forked from a server that has imported what they need (`tests.rank_imports`): 6 s of a core for all ranks of a worker of
pytest, instead of for each.
"""

from __future__ import annotations

import os
import queue
import signal
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import wait
from typing import Any

import torch
import torch.multiprocessing as mp

from bellwether.trainer import store


class Ranks:
    """``run(function, *args)`` calls a module-level function on every rank and returns what each returned."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self._start()

    def _start(self) -> None:
        context, world_size = mp.get_context("forkserver"), self.world_size
        context.set_forkserver_preload(["tests.rank_imports"])
        self.inbox = [context.Queue() for _ in range(world_size)]
        self.outbox = context.Queue()
        self.server = store.serve("127.0.0.1")
        self.processes = [
            context.Process(
                target=_serve, args=(rank, world_size, self.server.port, self.inbox[rank], self.outbox), daemon=True
            )
            for rank in range(world_size)
        ]
        for process in self.processes:
            process.start()

    def run(self, function: Callable[..., Any], *args: Any, timeout: float = 120) -> list[Any]:
        if not self.processes:  # an earlier test has ended them
            self._start()
        for inbox in self.inbox:
            inbox.put((function, args))
        results: dict[int, Any] = {}
        errors: list[str] = []
        while len(results) < self.world_size:
            try:
                rank, result, error = self.outbox.get(timeout=timeout)
            except queue.Empty:
                self.close()
                silent = f"{function.__name__}{args}: only {sorted(results)} answered in {timeout:.0f} s"
                raise TimeoutError("\n".join([*errors, silent])) from None
            if error:
                errors.append(f"rank {rank}:\n{error}")
                timeout = 5  # the others may hang in a collective that this one has left
            results[rank] = result
        if errors:
            raise AssertionError("\n".join(errors))
        return [results[rank] for rank in range(self.world_size)]

    def run_until_killed(self, function: Callable[..., Any], *args: Any, timeout: float = 120) -> None:
        """Call a function that kills a rank, and then kill the others."""
        for inbox in self.inbox:
            inbox.put((function, args))
        ended = wait([process.sentinel for process in self.processes], timeout)
        status = [process.exitcode for process in self.processes]
        self.close()
        assert ended, f"{function.__name__}{args} killed no rank in {timeout:.0f} s"
        assert -signal.SIGKILL in status, f"{function.__name__}{args}: {status}"

    def close(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()
        self.processes = []


def _serve(rank: int, world_size: int, port: int, inbox: Any, outbox: Any) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), DS_ACCELERATOR="cpu", **{store.SERVED: "True"},
    )  # fmt: skip
    import tests.rank_imports  # noqa: F401  (the server may have been started before, for something else)

    torch.set_num_threads(1)
    from bellwether.trainer.distributed import start

    start("cpu", timeout=timedelta(seconds=60))
    while True:
        function, args = inbox.get()
        try:
            outbox.put((rank, function(*args), None))
        except BaseException:
            outbox.put((rank, None, traceback.format_exc()))

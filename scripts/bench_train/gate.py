"""The gate at the end of each update, at which a contestant waits while others have their turn."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Stop(BaseException):
    """Ends a contestant's loop from inside; no library may catch it as an error."""


_loading = False  # whether this process is preparing a batch, whose operations are not counted


def uncounted(batches: Iterator[Any]) -> Iterator[Any]:
    """The same batches, of which the preparation is not counted."""
    global _loading
    while True:
        _loading = True
        try:
            batch = next(batches)
        except StopIteration:
            return
        finally:
            _loading = False
        yield batch


class Counts(TorchDispatchMode):
    """Counts operations, and those that read a value, for which a GPU would be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.waits = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten = torch.ops.aten
        self.operations += not _loading
        if not _loading and function in (
            aten._local_scalar_dense.default,
            aten.nonzero.default,
            aten.is_nonzero.default,
        ):
            self.waits += 1
        return function(*args, **(kwargs or {}))


SAMPLED = 64  # elements of each tensor


def sampled(parameters: Iterable[Tensor]) -> Tensor:
    """Some elements of each tensor, evenly spaced, in float64."""
    found = [p.detach().reshape(-1)[:: max(1, p.numel() // SAMPLED)].double() for p in parameters]
    return torch.cat(found)


class Gate:
    """Called by a contestant after each update; answers the coordinator's commands.

    ``("steps", n)``: n updates, timed. ``("losses", n)``: n updates with their losses, and how far the first one has
    moved the weights. ``("count", n)``: n updates with their operations. ``("save",)``: a checkpoint, timed. ``("stop",)``.

    Attributes:
        parameters: yields the weights, in the model's order; None: they cannot be read.
        save: saves a checkpoint; None: it cannot be asked to.
    """

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.parameters: Callable[[], Iterable[Tensor]] | None = None
        self.save: Callable[[], None] | None = None
        self._kind, self._left = "", 0
        self._losses: list[Any] = []
        self._before: Tensor | None = None  # the first update of those whose losses are asked for
        self._moved: list[float] = []
        self._counts: Counts | None = None
        self._wall = self._cpu = 0.0

    def open(self) -> None:
        """Before the first update: all is built."""
        self.connection.send(("ready", None))
        self._next()

    def after_step(self, loss: Any) -> None:
        """After an update.

        Args:
            loss: of this rank's samples, or a tensor of it, which is read only where losses are asked for.
        """
        if self._kind == "losses":
            self._losses.append(loss)
            if self._before is not None and self.parameters is not None:
                self._moved, self._before = (sampled(self.parameters()) - self._before).tolist(), None
        self._left -= 1
        if self._left > 0:
            return
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        if self._counts is not None:
            self._counts.__exit__(None, None, None)
            answer: Any = (self._counts.operations, self._counts.waits)
            self._counts = None
        elif self._kind == "losses":
            answer = [float(loss) for loss in self._losses], self._moved
        else:
            answer = (wall, cpu)
        self.connection.send((self._kind, answer))
        self._next()

    def _next(self) -> None:
        while True:
            self._kind, *rest = self.connection.recv()
            if self._kind == "stop":
                raise Stop
            if self._kind != "save":
                break
            began = time.perf_counter()
            if self.save is not None:
                self.save()
            self.connection.send(("save", None if self.save is None else time.perf_counter() - began))
        self._left = rest[0]
        self._losses, self._moved = [], []
        if self._kind == "losses" and self.parameters is not None:
            self._before = sampled(self.parameters())
        if self._kind == "count":
            self._counts = Counts()
            self._counts.__enter__()
        self._cpu, self._wall = time.process_time(), time.perf_counter()


def serve(contestant: Callable[[Gate], None], connection: Any) -> None:
    """Run a contestant to its end, and report what it raises."""
    try:
        contestant(Gate(connection))
    except Stop:
        return
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        connection.send(
            ("error", f"{type(error).__name__}: {' '.join(str(error).split())[:300]} ({last.name}:{last.lineno})")
        )

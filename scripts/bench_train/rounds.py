"""Lets the contestants of a workload take turns: the same first losses, then five rounds in random order."""

from __future__ import annotations

import multiprocessing
import random
import shutil
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.bench_train import rank
from scripts.bench_train.contestants import ROUNDED_OTHERWISE, Contestant
from scripts.bench_train.shared import PERTURBATIONS, STEPS
from scripts.bench_train.workloads import RANKS, Workload

PATIENCE = 120.0  # seconds for an answer; importing and building on a busy machine are the longest


class Failed(Exception):
    """A contestant has ended, or does not answer."""


@dataclass
class Result:
    """What one contestant has shown on one workload.

    Attributes:
        losses: of the first updates, over all ranks.
        moved: how far the first update has moved some of the weights.
        wall, cpu: samples per second, and per second of a core, in each round.
        operations, waits: per micro-batch of a rank.
        save: seconds that a checkpoint stops the training for.
    """

    contestant: str
    workload: str
    unit: str
    best: bool
    problem: str = ""
    losses: list[float] = field(default_factory=list)
    moved: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    operations: float | None = None
    waits: float | None = None
    save: float | None = None


class Group:
    """The processes of one contestant: rank r on core r."""

    def __init__(self, contestant: Contestant, workload: Workload, best: bool, folder: Path, cores: list[int]) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([rank.PRELOAD])
        self.connections: list[Any] = []
        self.processes: list[Any] = []
        for index in range(RANKS):
            ours, theirs = context.Pipe()
            arguments = (
                contestant.name,
                workload.config,
                str(folder),
                best,
                index,
                RANKS,
                port,
                cores[index % len(cores)],
                theirs,
            )
            process = context.Process(target=rank.run, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self.connections.append(ours)
            self.processes.append(process)

    def answers(self, kind: str) -> list[Any]:
        """The answer of each rank.

        Raises:
            Failed: with what a rank has raised.
        """
        found = []
        for connection in self.connections:
            try:
                if not connection.poll(PATIENCE):
                    raise Failed(f"no answer to {kind!r} in {PATIENCE:.0f} s")
                got, value = connection.recv()
            except (EOFError, ConnectionError):
                raise Failed("a process has ended") from None
            if got == "error":
                raise Failed(str(value))
            assert got == kind, got
            found.append(value)
        return found

    def ask(self, kind: str, *arguments: int) -> list[Any]:
        for connection in self.connections:
            try:
                connection.send((kind, *arguments))
            except (OSError, ValueError):
                raise Failed("a process has ended") from None
        return self.answers(kind)

    def close(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()


@dataclass
class Budget:
    """The time that is left for all rounds of all workloads, and how many turns share it."""

    end: float
    turns: int
    shortest: float = 0.3
    longest: float = 4.0

    def seconds(self) -> float:
        """Of the next turn."""
        share = (self.end - time.monotonic()) / max(1, self.turns)
        return min(self.longest, max(self.shortest, share))


def compete(
    workload: Workload, contestants: list[Contestant], best: bool, folder: Path, cores: list[int], rounds: int, budget: Budget, losses: int = STEPS,
) -> list[Result]:  # fmt: skip
    """One workload under one set of flags. A contestant that fails keeps what it has shown, and the others go on."""
    results = {one.name: Result(one.name, workload.name, workload.unit, best, one.problem()) for one in contestants}
    groups: dict[str, Group] = {}

    def attempt(name: str, kind: str, *arguments: int) -> list[Any] | None:
        try:
            return groups[name].answers(kind) if kind == "ready" else groups[name].ask(kind, *arguments)
        except Failed as error:
            results[name].problem = str(error)
            groups.pop(name).close()
            return None

    try:
        for one in contestants:
            if not results[one.name].problem:  # one after the other, or they would wait for one another's imports
                groups[one.name] = Group(one, workload, best, folder / one.name.replace(" ", "-"), cores)
                attempt(one.name, "ready")
        slowest = 0.0
        for name in list(groups):
            began = time.monotonic()
            answers = attempt(name, "losses", losses)
            if answers is not None:
                results[name].losses, results[name].moved = _mean([curve for curve, _ in answers]), answers[0][1]
                slowest = max(slowest, (time.monotonic() - began) / losses)
        draw = random.Random(workload.name)
        steps = max(1, round(budget.seconds() / max(slowest, 1e-6)))
        for _ in range(rounds):
            for name in draw.sample(sorted(groups), len(groups)):
                answers = attempt(name, "steps", steps)
                budget.turns -= 1
                if answers is not None:
                    samples = steps * RANKS * workload.micro
                    results[name].wall.append(samples / max(wall for wall, _ in answers))
                    results[name].cpu.append(samples / sum(cpu for _, cpu in answers))
        for name in list(groups):
            if (answers := attempt(name, "count", 2)) is not None:
                results[name].operations, results[name].waits = (
                    sum(a[i] for a in answers) / (2 * RANKS) for i in (0, 1)
                )
            if name in groups and (answers := attempt(name, "save")) is not None and answers[0] is not None:
                results[name].save = max(answers)
    finally:
        for group in groups.values():
            group.close()
    return list(results.values())


def rounded_otherwise(workload: Workload, folder: Path, cores: list[int]) -> list[list[float]]:
    """Losses of torch DDP from weights that are 1 ulp larger in part: what rounding alone does to this workload.

    Raises:
        Failed: with what a rank has raised.
    """
    group = Group(ROUNDED_OTHERWISE, workload, False, folder / "rounded-otherwise", cores)
    try:
        group.answers("ready")
        return [_mean([curve for curve, _ in group.ask("losses", STEPS)]) for _ in range(PERTURBATIONS)]
    finally:
        group.close()


def _mean(curves: list[list[float]]) -> list[float]:
    """The mean over ranks of each loss."""
    return [sum(values) / len(values) for values in zip(*curves, strict=True)]

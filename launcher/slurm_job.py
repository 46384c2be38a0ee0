"""This SLURM job, as its batch script knows it: what SLURM says about it, and what the user has set."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

from bellwether.launcher import attempts, resubmit
from bellwether.launcher.attempts import Attempt, best_effort
from bellwether.launcher.placement import usable_nodes
from bellwether.trainer import rendezvous
from bellwether.trainer.config import ConfigError

RESTARTS = 50


@dataclass(frozen=True)
class Job:
    """This job, as its script knows it.

    Attributes:
        shown: the output of ``scontrol show job -o``.
        nodes: that it was given, spares among them; fewer are left when some are lost.
        series: the first job of the chain that this one belongs to; its own number without one.
        link: which job of the series this is, from 1.
        links: how many were submitted at once; 0: no chain.
    """

    number: str
    task: str
    restart: int
    shown: str
    nodes: int
    tasks: int
    spares: int
    restarts: int
    series: str
    link: int = 1
    links: int = 0
    partition: tuple[str, ...] = ()  # its usable nodes; empty: not known
    tries: int = 1  # attempts that this script has made, with the one that begins or ends

    @property
    def made(self) -> int:
        """Attempts before the one that begins or ends, as far as they are known without the record."""
        return self.restart + self.tries - 1 + (0 if self.links else self.link - 1)

    @property
    def attempt(self) -> str:
        """The attempt that begins or ends, as its ranks know it (BELLWETHER_ATTEMPT)."""
        return f"{self.number}.{self.restart}.{self.tries}"

    @property
    def needed(self) -> int:
        """Nodes that the run needs."""
        return self.nodes - self.spares

    @property
    def allocated(self) -> list[str]:
        """The nodes that are left; empty: not known."""
        nodelist = resubmit.fields(self.shown).get("NodeList", "") or os.environ.get("SLURM_JOB_NODELIST", "")
        try:
            return rendezvous.hosts(nodelist)
        except ValueError:
            return []

    def attempts(self, run: Path) -> list[Attempt]:
        """The attempts of this job, and of those that it continues."""
        nothing: list[Attempt] = []
        everything = best_effort("reading attempts.jsonl", lambda: attempts.read(run), nothing)
        return [attempt for attempt in everything if attempt.of == self.series]


def job_of(arguments: argparse.Namespace) -> Job:
    """This job.

    Raises:
        ConfigError: if a variable that the user sets is wrong.
    """
    e = os.environ
    number = e.get("SLURM_JOB_ID", "")
    task = f"{e['SLURM_ARRAY_JOB_ID']}_{e['SLURM_ARRAY_TASK_ID']}" if "SLURM_ARRAY_JOB_ID" in e else number
    nodes, tasks = int(e.get("SLURM_JOB_NUM_NODES", "1")), int(e.get("SLURM_NTASKS", "1"))
    spares = number_of("BELLWETHER_SPARES", 0)
    if spares >= nodes:
        raise ConfigError(
            "BELLWETHER_SPARES", spares, f"the job has {nodes} nodes", "request more: --nodes, spares included"
        )
    if spares and tasks % nodes:
        raise ConfigError(
            "BELLWETHER_SPARES", spares, f"{tasks} tasks on {nodes} nodes", "use --ntasks-per-node, without -n"
        )
    series, _, link = arguments.series.partition(":")
    own_link, _, links = arguments.chain.partition("/")
    return Job(
        number, task, int(e.get("SLURM_RESTART_COUNT", "0")), arguments.job, nodes, tasks, spares,
        number_of("BELLWETHER_RESTARTS", RESTARTS), series or number, int(own_link or link or "1"), int(links or "0"),
        usable_nodes(arguments.partition), arguments.tries,
    )  # fmt: skip


def number_of(name: str, default: int) -> int:
    text = os.environ.get(name) or str(default)
    if not text.isdigit():
        raise ConfigError(name, text, "is not a number", f"write one such as {default}")
    return int(text)

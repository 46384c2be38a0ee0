"""``bellwether doctor``: checks whether this machine, or every node of a cluster, is ready to train.

The nodes run `node`, which reports facts (`system_probe`, `software_probe`, `cluster_probe`) over a `protocol`. Here,
`plan` and `commands` choose what to start, `gather` collects the answers, the ``*_checks`` modules turn them into rows, and
`table` prints those. Imports go one way: node -> probes -> protocol, and doctor -> plan, gather, checks -> result.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from bellwether.launcher import console
from bellwether.launcher.doctor.result import Row

if TYPE_CHECKING:
    from bellwether.launcher.doctor.gather import Answers

log = logging.getLogger(__name__)

TIMEOUT = 240.0  # seconds for all nodes: half for first imports, the rest to connect and measure

# Commands that start a run, which must be on the path.
COMMANDS = {"local": (), "slurm": ("srun", "sbatch", "scontrol"), "mpi": ("mpirun",), "ssh": ("ssh",)}


def doctor(
    on: str = "local",
    nodes: int | None = None,
    hostfile: str | None = None,
    site: str | None = None,
    runs: str = "runs",
    as_json: bool = False,
    timeout: float = TIMEOUT,
    site_overrides: Mapping[str, Any] | None = None,
) -> int:
    """Probe the nodes and print the table. Returns the exit status for the shell: 1 when a row is red.

    Args:
        on: ``local`` (this machine), ``slurm``, ``mpi`` or ``ssh``.
        nodes: number of nodes; default: those of the host file or the SLURM job, outside a job 2.
        hostfile: hosts, one a line, for ``mpi`` and ``ssh``.
        site: the site's file; default: see `bellwether.launcher.site_config.load`.
        runs: directory that is to hold the run directories.
        as_json: print rows and facts as JSON.
        timeout: seconds after which nodes that do not answer are given up.
        site_overrides: keys that override the site's file: ``gpus_per_node``, ``partition``, ``account``, ``qos``, ``constraint``.

    Raises:
        ConfigError: if an argument, the host file or the site's file is wrong.
    """
    from bellwether.launcher.doctor import checks, gather, table
    from bellwether.launcher.doctor.plan import Options, plan

    console.setup()
    planned = plan(Options(on, nodes, hostfile, site, runs, timeout, site_overrides or {}))
    rows = checks.commands(_missing_commands(on), on)
    answers = gather.Answers()
    if not rows:
        size = planned.expected.size
        nodes_text = "this machine" if on == "local" else f"{size} node{'s' if size > 1 else ''} through {on}"
        log.info("checking %s; up to %.0f minutes", nodes_text, planned.seconds / 60)
        try:
            answers = gather.gather(planned.commands, planned.environment, size, planned.seconds, planned.stdin)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(planned.shared_file)
        names = planned.expected.names or _names(answers.nodes)
        expected = replace(
            planned.expected, names=names, bounds=minimum_versions(), launcher_errors=answers.launcher_errors
        )
        rows = checks.rows(answers.nodes, answers.cluster, answers.failures, expected)
    _print_result(rows, answers, as_json)
    return table.exit_status(rows)


def _print_result(rows: Sequence[Row], answers: Answers, as_json: bool) -> None:
    from bellwether.launcher.doctor import table

    if as_json:
        result = {"rows": [asdict(row) for row in rows], "nodes": answers.nodes, "cluster": answers.cluster}
        print(json.dumps(result, indent=1))
    else:
        width = min(120, max(60, shutil.get_terminal_size((80, 24)).columns))
        print(table.render(rows, width, sys.stdout.isatty() and "NO_COLOR" not in os.environ), end="")


def quick_checks(on: str = "local", runs: str = "runs") -> list[Row]:
    """Checks of this machine that `launch` makes first: within a second, without other nodes, a compiler run or torch.

    A red row is a reason not to launch.
    """
    from bellwether.launcher.doctor import checks, software_checks, software_probe, system_checks, system_probe
    from bellwether.launcher.doctor.result import YELLOW

    facts = [
        {
            **system_probe.host(),
            "rank": 0,
            "compiler": software_probe.compiler(build=False),
            "locks": software_probe.locks(),
            "disks": system_probe.disks(runs),
            "ports": system_probe.ports(),
        }
    ]
    return [
        *checks.commands(_missing_commands(on), on),
        *(row for row in system_checks.disk_space(facts) if on == "local" or row.check in ("runs", "cache")),
        # Not red: another machine may be building, and a run deletes stale locks itself.
        *software_checks.jit_locks(facts, stale=YELLOW),
        *software_checks.compilers(facts),
        *system_checks.host_names(facts, 1),
        *(system_checks.ports(facts) if on == "local" else []),
    ]


def minimum_versions() -> dict[str, str]:
    """The minimum version of each package, as pyproject.toml declares it; empty where bellwether is not installed."""
    import importlib.metadata
    import re

    try:
        requirements = importlib.metadata.requires("bellwether") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    matches = (re.match(r"([\w.-]+)\s*>=\s*([\d.]+)", requirement) for requirement in requirements)
    return {match[1]: match[2] for match in matches if match}


def _names(nodes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Host names by rank, from the node list of one that answered: srun assigns ranks in that order."""
    from bellwether.trainer import rendezvous

    nodelist = next((node["nodelist"] for node in nodes if node["nodelist"]), None)
    return rendezvous.hosts(nodelist) if nodelist else []


def _missing_commands(on: str) -> list[str]:
    needed = COMMANDS[on]
    if on == "ssh":
        needed = tuple(shlex.split(os.environ.get("BELLWETHER_SSH") or "ssh")[:1])
    return [command for command in needed if shutil.which(command) is None]

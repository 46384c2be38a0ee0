"""``bellwether doctor``: is this machine, or this cluster, ready to train? Asks every node; a table says what to do.

`node` runs on each node and tells facts, `group` what the nodes find out together, `checks` and `together` make rows of
both, `commands` and `gather` start the nodes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from bellwether.launcher.doctor.result import Asked, Row

TIMEOUT = 240.0  # seconds for all nodes: half for cold imports, the rest for meeting and measuring

# What starts the processes of a run, and must be on the path.
COMMANDS = {"local": (), "slurm": ("srun", "sbatch", "scontrol"), "mpi": ("mpirun",), "ssh": ("ssh",)}


def doctor(
    on: str = "local",
    nodes: int | None = None,
    hostfile: str | None = None,
    site: str | None = None,
    runs: str = "runs",
    as_json: bool = False,
    timeout: float = TIMEOUT,
    given: Mapping[str, Any] | None = None,
) -> int:
    """Ask the nodes, print the table. Returns the exit status for the shell: 1 when a row is red.

    Args:
        on: ``local`` (this machine), ``slurm``, ``mpi`` or ``ssh``.
        nodes: how many; default: those of the host file or the SLURM job, outside of a job 2.
        runs: directory that is to hold the run directories.
        timeout: seconds after which nodes that do not answer are given up.
        given: keys of the site's file for this time: ``gpus_per_node``, ``partition``, ``account``, ``qos``, ``constraint``.

    Raises:
        ConfigError: if an argument, the host file or the site's file is wrong.
    """
    from bellwether.launcher.doctor import checks, gather, table

    plan = _plan(on, nodes, hostfile, site, runs, timeout, given or {})
    found = checks.commands(_missing(on), on)
    answers = gather.Answers()
    if not found:
        size = plan.asked.size
        many = "this machine" if on == "local" else f"{size} node{'s' if size > 1 else ''} through {on}"
        print(f"bellwether: asking {many}; up to {plan.seconds / 60:.0f} minutes", file=sys.stderr, flush=True)
        try:
            answers = gather.gather(plan.commands, plan.environment, size, plan.seconds)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(plan.trace)
        names = plan.asked.names or _names(answers.nodes)
        known = replace(plan.asked, names=names, bounds=bounds(), noise=answers.noise)
        found = checks.rows(answers.nodes, answers.group, answers.troubles, known)
    if as_json:
        told = {"rows": [asdict(row) for row in found], "nodes": answers.nodes, "group": answers.group}
        print(json.dumps(told, indent=1))
    else:
        width = min(120, max(60, shutil.get_terminal_size((80, 24)).columns))
        print(table.render(found, width, sys.stdout.isatty() and "NO_COLOR" not in os.environ), end="")
    return table.status(found)


def cheap(on: str = "local", runs: str = "runs") -> list[Row]:
    """What can be told of this machine within a second, for `launch`: without another node, a compiler run or torch.

    A red row is a reason not to launch.
    """
    from bellwether.launcher.doctor import checks, node
    from bellwether.launcher.doctor.result import YELLOW

    here = {**node.host(), "rank": 0, "compiler": node.compiler(build=False), "locks": node.locks()}
    facts = [{**here, "disks": node.disks(runs), "ports": node.ports()}]
    return [
        *checks.commands(_missing(on), on),
        *(row for row in checks.room(facts) if on == "local" or row.check in ("runs", "cache")),
        # Not red: another machine may be building, and a run deletes what is older than that by itself.
        *checks.jit_locks(facts, stale=YELLOW),
        *checks.compilers(facts),
        *checks.names(facts, 1),
        *(checks.port_range(facts) if on == "local" else []),
    ]


def bounds() -> dict[str, str]:
    """The least version of each package, as pyproject.toml has them; empty where bellwether is not installed."""
    import importlib.metadata
    import re

    try:
        wanted = importlib.metadata.requires("bellwether") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    matches = (re.match(r"([\w.-]+)\s*>=\s*([\d.]+)", requirement) for requirement in wanted)
    return {match[1]: match[2] for match in matches if match}


@dataclass(frozen=True)
class _Plan:
    asked: Asked
    commands: dict[str, list[str]]  # by who is asked
    environment: dict[str, str]
    seconds: float
    trace: str  # the file that the first node writes, and takes away again unless it is killed


def _plan(
    on: str,
    nodes: int | None,
    hostfile: str | None,
    site: str | None,
    runs: str,
    timeout: float,
    given: Mapping[str, Any],
) -> _Plan:
    from bellwether.launcher import site_config as sites
    from bellwether.launcher.doctor import commands
    from bellwether.launcher.doctor.node import existing
    from bellwether.launcher.hostfile import hosts
    from bellwether.trainer import rendezvous
    from bellwether.trainer.config import ConfigError

    if nodes is not None and on == "local":
        raise ConfigError("--nodes", nodes, "this machine is one", "name who starts the others: --on slurm, mpi or ssh")
    for key, value in given.items():
        if on != "slurm" and (key != "gpus_per_node" or on == "local"):
            advice = "take it out, or ask --on slurm"
            raise ConfigError(f"--{key.replace('_', '-')}", value, f"has no meaning with --on {on}", advice)
    if hostfile is not None and on not in ("mpi", "ssh"):
        raise ConfigError("--hostfile", hostfile, f"--on {on} takes none", "write --on ssh or --on mpi")
    if hostfile is None and on == "ssh":
        raise ConfigError("--hostfile", None, "is needed", "name a file with one host a line")
    names = [name for name, _ in hosts(hostfile)] if hostfile is not None else []
    if names and nodes is not None and nodes > len(names):
        raise ConfigError("--nodes", nodes, f"{hostfile} names {len(names)}", "name fewer, or more hosts there")

    # What started this process as one of several is not for those that it starts.
    own = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RUN_ID")
    environment = {name: value for name, value in os.environ.items() if name not in own}
    cluster = commands.settled(sites.load(site), environment) if on != "local" else sites.Site()
    cluster = cluster.model_copy(update=given)
    variables = commands.variables(cluster)
    environment.update(variables)
    job = environment.get("SLURM_JOB_NODELIST")
    if on in ("slurm", "mpi") and job and not names:
        names = rendezvous.hosts(job)
    size = nodes or len(names) or (2 if on == "slurm" else 1)
    names = names[:size] if size <= len(names) else []
    shared = os.path.abspath(os.path.expanduser(runs))
    ask = commands.Node(size, shared, uuid.uuid4().hex[:12], timeout / 4, os.getcwd(), variables)
    trace = os.path.join(existing(shared), f".bellwether-doctor-{ask.nonce}")
    seconds = timeout
    if on == "slurm":
        asking = {"srun": commands.srun(ask, cluster, inside=job is not None)}
        seconds += 0 if job else commands.QUEUE
    elif on == "mpi":
        asking = {"mpirun": commands.mpirun(ask, cluster, names if hostfile else [], environment, os.geteuid() == 0)}
    elif on == "ssh":
        port = next(rendezvous.ports(os.getpid()))
        asking = dict(zip(names, commands.ssh(ask, cluster, names, port, environment), strict=True))
    else:
        asking = {"this machine": commands.node(ask, cluster)}
    return _Plan(Asked(size, on, names, cluster.gpus_per_node), asking, environment, seconds, trace)


def _names(nodes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Of all nodes, from one that answered: srun gives ranks in the order of its list."""
    from bellwether.trainer import rendezvous

    said = next((node["nodelist"] for node in nodes if node["nodelist"]), None)
    return rendezvous.hosts(said) if said else []


def _missing(on: str) -> list[str]:
    needed = COMMANDS[on]
    if on == "ssh":
        needed = tuple(shlex.split(os.environ.get("BELLWETHER_SSH") or "ssh")[:1])
    return [command for command in needed if shutil.which(command) is None]

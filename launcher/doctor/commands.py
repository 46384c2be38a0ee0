"""The commands that start `bellwether.launcher.doctor.node` on every node. Pure functions, but for what `settled` reads."""

from __future__ import annotations

import math
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bellwether.launcher.forwarded_env import forwarded_env
from bellwether.launcher.site_config import Site

QUEUE = 60  # seconds to wait for free nodes, where there is no allocation yet

# Options of sbatch that srun does not know, or that would divert what the nodes print or wait for something else.
_SBATCH_ONLY = {
    "array", "begin", "batch", "deadline", "dependency", "error", "export-file", "get-user-env", "hold", "ignore-pbs",
    "input", "job-name", "kill-on-invalid-dep", "mail-type", "mail-user", "no-requeue", "nodes", "ntasks",
    "ntasks-per-gpu", "ntasks-per-node", "open-mode", "output", "parsable", "requeue", "signal", "tasks-per-node",
    "test-only", "time", "wait", "wait-all-nodes", "wrap", "a", "b", "d", "e", "H", "i", "J", "N", "n", "o", "t", "W",
}  # fmt: skip


@dataclass(frozen=True)
class Node:
    """What is to run on each node."""

    size: int
    shared: str  # absolute
    nonce: str
    limit: float  # seconds for meeting, and for measuring
    folder: str  # to run in
    environment: Mapping[str, str] = field(default_factory=dict)  # in addition


def settled(site: Site, environment: Mapping[str, str]) -> Site:
    """With the variables of the sbatch scripts where the site's file says nothing."""
    named = {
        key: environment.get(f"BELLWETHER_{key.upper()}")
        for key in ("modules", "venv", "container", "interface", "srun")
    } | {key: environment.get(f"SBATCH_{key.upper()}") for key in ("partition", "account", "qos", "constraint")}
    return site.model_copy(update={key: said for key, said in named.items() if said and not getattr(site, key)})


def variables(site: Site) -> dict[str, str]:
    return {**site.environment, **({"BELLWETHER_INTERFACE": site.interface} if site.interface else {})}


def node(asked: Node, site: Site) -> list[str]:
    """Python with its arguments, and what a site puts before it."""
    venv = os.path.abspath(os.path.expanduser(site.venv)) if site.venv else ""
    python = "python" if site.container else f"{venv}/bin/python" if venv else sys.executable
    command = [
        *shlex.split(site.container), python, "-m", "bellwether.launcher.doctor.node", "--shared", asked.shared,
        "--nonce", asked.nonce, "--limit", f"{asked.limit:g}",
    ]  # fmt: skip
    command += ["--no-network"] if asked.size == 1 else ["--size", str(asked.size)]
    if site.modules:
        # A login shell, because that is where sites define `module`.
        return ["bash", "-lc", f'module load {site.modules} >&2 && exec "$@"', "doctor", *command]
    return command


def srun(asked: Node, site: Site, inside: bool) -> list[str]:
    """One task a node.

    Args:
        inside: there is an allocation, whose nodes are taken, also while other steps run on them.
    """
    options = [f"--nodes={asked.size}", f"--ntasks={asked.size}", "--ntasks-per-node=1", "--export=ALL"]
    # When one task fails the others still have something to tell.
    options += ["--kill-on-bad-exit=0", "--wait=0"]
    if inside:
        options.append("--overlap")
    else:
        minutes = math.ceil(4 * asked.limit / 60) + 1
        options += ["--job-name=bellwether-doctor", f"--immediate={QUEUE}", f"--time={minutes}"]
        named = {
            "partition": site.partition, "account": site.account, "qos": site.qos, "constraint": site.constraint,
            "gpus-per-node": site.gpus_per_node or None, "cpus-per-task": site.cpus_per_task,
        }  # fmt: skip
        options += [f"--{key}={value}" for key, value in named.items() if value is not None]
        options += [word for option in site.sbatch if _srun_knows(option) for word in shlex.split(option)]
    return ["srun", *options, *shlex.split(site.srun), *node(asked, site)]


def _srun_knows(option: str) -> bool:
    text = option.strip()
    if text.startswith("--"):
        return text[2:].replace("=", " ").split()[0] not in _SBATCH_ONLY
    return text[1:2] not in _SBATCH_ONLY


def mpirun(
    asked: Node, site: Site, names: Sequence[str], environment: Mapping[str, str], root: bool = False
) -> list[str]:
    """OpenMPI, one process a node, on all of its cores.

    Args:
        names: of the hosts; none: as the allocation that mpirun itself finds says.
        root: whether that is who runs it.
    """
    options = ["-np", str(asked.size), "--map-by", "ppr:1:node", "--bind-to", "none", "--wdir", asked.folder]
    if root:
        options.append("--allow-run-as-root")  # in a container there is nobody else
    if names:
        options += ["--host", ",".join(names)]
    # Alone, its value is that of mpirun's own environment.
    exported = [word for name in {**forwarded_env(environment), **asked.environment} for word in ("-x", name)]
    return ["mpirun", *options, *exported, *node(asked, site)]


def ssh(asked: Node, site: Site, names: Sequence[str], port: int, environment: Mapping[str, str]) -> list[list[str]]:
    """A command for each host; all meet at the first. ``BELLWETHER_SSH`` stands for ssh, as in ``bellwether launch``."""
    commands = []
    client = shlex.split(environment.get("BELLWETHER_SSH") or "ssh")
    for rank, host in enumerate(names):
        seat = {"RANK": rank, "WORLD_SIZE": asked.size, "LOCAL_RANK": 0}
        meeting = {"MASTER_ADDR": names[0].rpartition("@")[2], "MASTER_PORT": port}
        given = {**forwarded_env(environment), **asked.environment, **seat, **meeting}
        words = ["env", *(f"{key}={value}" for key, value in given.items()), *node(asked, site)]
        remote = f"cd {shlex.quote(asked.folder)} && exec {shlex.join(words)}"
        commands.append([*client, "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", host, remote])
    return commands

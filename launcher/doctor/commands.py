"""Builds the commands that start `bellwether.launcher.doctor.node` on every node. Pure functions."""

from __future__ import annotations

import math
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bellwether.launcher.forwarded_env import forwarded_env, header, remote_command
from bellwether.launcher.site_config import Site

QUEUE = 60  # seconds to wait for free nodes, where there is no allocation yet

# Options of sbatch that srun does not accept, or that would redirect the nodes' output or wait for something else.
_SBATCH_ONLY = {
    "array", "begin", "batch", "deadline", "dependency", "error", "export-file", "get-user-env", "hold", "ignore-pbs",
    "input", "job-name", "kill-on-invalid-dep", "mail-type", "mail-user", "no-requeue", "nodes", "ntasks",
    "ntasks-per-gpu", "ntasks-per-node", "open-mode", "output", "parsable", "requeue", "signal", "tasks-per-node",
    "test-only", "time", "wait", "wait-all-nodes", "wrap", "a", "b", "d", "e", "H", "i", "J", "N", "n", "o", "t", "W",
}  # fmt: skip


@dataclass(frozen=True)
class Probe:
    """What to run on each node."""

    size: int  # nodes
    shared: str  # absolute path of the directory that all nodes should share
    nonce: str
    limit: float  # seconds to connect, and again to measure
    folder: str  # working directory
    environment: Mapping[str, str] = field(default_factory=dict)  # added to the forwarded variables


def with_environment(site: Site, environment: Mapping[str, str]) -> Site:
    """The site with the variables of the sbatch scripts for keys that its file does not set."""
    named = {
        key: environment.get(f"BELLWETHER_{key.upper()}")
        for key in ("modules", "venv", "container", "interface", "srun")
    } | {key: environment.get(f"SBATCH_{key.upper()}") for key in ("partition", "account", "qos", "constraint")}
    return site.model_copy(update={key: value for key, value in named.items() if value and not getattr(site, key)})


def variables(site: Site) -> dict[str, str]:
    """The environment variables that a site sets."""
    return {**site.environment, **({"BELLWETHER_INTERFACE": site.interface} if site.interface else {})}


def node(probe: Probe, site: Site) -> list[str]:
    """The Python command of one node, with the site's modules, virtual environment or container."""
    venv = os.path.abspath(os.path.expanduser(site.venv)) if site.venv else ""
    python = "python" if site.container else f"{venv}/bin/python" if venv else sys.executable
    command = [
        *shlex.split(site.container), python, "-m", "bellwether.launcher.doctor.node", "--shared", probe.shared,
        "--nonce", probe.nonce, "--limit", f"{probe.limit:g}",
    ]  # fmt: skip
    command += ["--no-network"] if probe.size == 1 else ["--size", str(probe.size)]
    if site.modules:
        # A login shell, because that is where sites define `module`.
        return ["bash", "-lc", f'module load {site.modules} >&2 && exec "$@"', "doctor", *command]
    return command


def srun(probe: Probe, site: Site, in_job: bool) -> list[str]:
    """One task a node.

    Args:
        in_job: use the nodes of the current job, also while other steps run on them.
    """
    options = [f"--nodes={probe.size}", f"--ntasks={probe.size}", "--ntasks-per-node=1", "--export=ALL"]
    # The other tasks still report when one fails.
    options += ["--kill-on-bad-exit=0", "--wait=0"]
    if in_job:
        options.append("--overlap")
    else:
        minutes = math.ceil(4 * probe.limit / 60) + 1
        options += ["--job-name=bellwether-doctor", f"--immediate={QUEUE}", f"--time={minutes}"]
        named = {
            "partition": site.partition, "account": site.account, "qos": site.qos, "constraint": site.constraint,
            "gpus-per-node": site.gpus_per_node or None, "cpus-per-task": site.cpus_per_task,
        }  # fmt: skip
        options += [f"--{key}={value}" for key, value in named.items() if value is not None]
        options += [word for option in site.sbatch if _srun_accepts(option) for word in shlex.split(option)]
    return ["srun", *options, *shlex.split(site.srun), *node(probe, site)]


def _srun_accepts(option: str) -> bool:
    text = option.strip()
    if text.startswith("--"):
        return text[2:].replace("=", " ").split()[0] not in _SBATCH_ONLY
    return text[1:2] not in _SBATCH_ONLY


def mpirun(
    probe: Probe, site: Site, names: Sequence[str], environment: Mapping[str, str], root: bool = False
) -> list[str]:
    """OpenMPI's command, one process a node, on all of its cores.

    Args:
        names: of the hosts; empty: those of the allocation that mpirun detects.
        root: whether the user is root.
    """
    options = ["-np", str(probe.size), "--map-by", "ppr:1:node", "--bind-to", "none", "--wdir", probe.folder]
    if root:
        options.append("--allow-run-as-root")  # the only user in many containers
    if names:
        options += ["--host", ",".join(names)]
    # -x NAME forwards the value that mpirun's own environment has.
    exported = [word for name in {**forwarded_env(environment), **probe.environment} for word in ("-x", name)]
    return ["mpirun", *options, *exported, *node(probe, site)]


def ssh(probe: Probe, site: Site, names: Sequence[str], port: int, environment: Mapping[str, str]) -> list[list[str]]:
    """A command for each host, which reads `ssh_variables`; the first host is the master.

    ``BELLWETHER_SSH`` replaces ``ssh``, as in `bellwether.launcher.ssh`.
    """
    commands = []
    client = shlex.split(environment.get("BELLWETHER_SSH") or "ssh")
    for rank, host in enumerate(names):
        process = {"RANK": rank, "WORLD_SIZE": probe.size, "LOCAL_RANK": 0}
        master = {"MASTER_ADDR": names[0].rpartition("@")[2], "MASTER_PORT": port}
        words = ["env", *(f"{key}={value}" for key, value in {**process, **master}.items()), *node(probe, site)]
        remote = remote_command(probe.folder, words)
        commands.append([*client, "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", host, remote])
    return commands


def ssh_variables(probe: Probe, environment: Mapping[str, str]) -> bytes:
    """What the commands of `ssh` get on standard input."""
    return header({**forwarded_env(environment), **probe.environment})

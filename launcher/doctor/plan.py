"""Decides which nodes the doctor probes, and with which commands."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bellwether.launcher import hostfile, site_config
from bellwether.launcher.doctor import commands
from bellwether.launcher.doctor.result import Expected
from bellwether.launcher.doctor.system_probe import existing
from bellwether.trainer import rendezvous
from bellwether.trainer.config import ConfigError


@dataclass(frozen=True)
class Options:
    """The command line of ``bellwether doctor``; see `bellwether.launcher.doctor.doctor`."""

    on: str
    nodes: int | None
    hostfile: str | None
    site: str | None
    runs: str
    timeout: float
    site_overrides: Mapping[str, Any]


@dataclass(frozen=True)
class Plan:
    """What to run, and what to expect of the answers."""

    expected: Expected
    commands: dict[str, list[str]]  # by launcher or host
    environment: dict[str, str]
    stdin: bytes  # of each command
    seconds: float  # for all commands
    shared_file: str  # written by rank 0, which deletes it unless it is killed


def plan(options: Options) -> Plan:
    """Check the options and build the commands.

    Raises:
        ConfigError: if an option, the host file or the site's file is wrong.
    """
    _check(options)
    on = options.on
    names = [name for name, _ in hostfile.hosts(options.hostfile)] if options.hostfile is not None else []
    if names and options.nodes is not None and options.nodes > len(names):
        problem = f"{options.hostfile} names {len(names)}"
        raise ConfigError("--nodes", options.nodes, problem, "use fewer nodes, or add hosts to the file")
    # If this process is a rank of a run itself, the processes that it starts must not inherit that.
    inherited = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RUN_ID")
    environment = {name: value for name, value in os.environ.items() if name not in inherited}
    site = site_config.Site()
    if on != "local":
        site = commands.with_environment(site_config.load(options.site), environment)
    site = site.model_copy(update=options.site_overrides)
    variables = commands.variables(site)
    environment.update(variables)
    job = environment.get("SLURM_JOB_NODELIST")
    if on in ("slurm", "mpi") and job and not names:
        names = rendezvous.hosts(job)
    size = options.nodes or len(names) or (2 if on == "slurm" else 1)
    names = names[:size] if size <= len(names) else []
    shared = os.path.abspath(os.path.expanduser(options.runs))
    probe = commands.Probe(size, shared, uuid.uuid4().hex[:12], options.timeout / 4, os.getcwd(), variables)
    return Plan(
        Expected(size, on, names, site.gpus_per_node),
        _commands(options, probe, site, names, environment, in_job=job is not None),
        environment,
        commands.ssh_variables(probe, environment) if on == "ssh" else b"",
        options.timeout + (commands.QUEUE if on == "slurm" and not job else 0),
        os.path.join(existing(shared), f".bellwether-doctor-{probe.nonce}"),
    )


def _check(options: Options) -> None:
    on = options.on
    if options.nodes is not None and on == "local":
        fix = "choose the launcher of the other nodes: --on slurm, mpi or ssh"
        raise ConfigError("--nodes", options.nodes, "--on local checks this machine only", fix)
    for key, value in options.site_overrides.items():
        if on != "slurm" and (key != "gpus_per_node" or on == "local"):
            fix = "remove it, or use --on slurm"
            raise ConfigError(f"--{key.replace('_', '-')}", value, f"does not apply to --on {on}", fix)
    if options.hostfile is not None and on not in ("mpi", "ssh"):
        raise ConfigError("--hostfile", options.hostfile, f"does not apply to --on {on}", "use --on ssh or --on mpi")
    if options.hostfile is None and on == "ssh":
        raise ConfigError("--hostfile", None, "is required", "name a file with one host a line")


def _commands(
    options: Options,
    probe: commands.Probe,
    site: site_config.Site,
    names: list[str],
    environment: Mapping[str, str],
    in_job: bool,
) -> dict[str, list[str]]:
    if options.on == "slurm":
        return {"srun": commands.srun(probe, site, in_job)}
    if options.on == "mpi":
        hosts = names if options.hostfile else []
        return {"mpirun": commands.mpirun(probe, site, hosts, environment, root=os.geteuid() == 0)}
    if options.on == "ssh":
        port = next(rendezvous.ports(os.getpid()))
        return dict(zip(names, commands.ssh(probe, site, names, port, environment), strict=True))
    return {"this machine": commands.node(probe, site)}

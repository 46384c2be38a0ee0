"""``bellwether launch``: one config, started on this machine, over MPI or ssh, or by SLURM."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

from bellwether.launcher import doctor, hostfile, requeue, sbatch, site_config
from bellwether.launcher.doctor import table
from bellwether.launcher.doctor.result import GREEN
from bellwether.launcher.forwarded_env import forwarded_env
from bellwether.launcher.status import is_queued
from bellwether.trainer import run_paths
from bellwether.trainer.config import Config, ConfigError, load, phases

_ALLOCATIONS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "PE_HOSTFILE")
_VARIABLES = {
    "partition": "SBATCH_PARTITION",
    "account": "SBATCH_ACCOUNT",
    "qos": "SBATCH_QOS",
    "constraint": "SBATCH_CONSTRAINT",
    "time": "SBATCH_TIMELIMIT",
}


@dataclass(frozen=True)
class Request:
    """What the command line says. None: not said."""

    config: str
    overrides: Sequence[str]
    on: str
    nodes: int | None = None
    gpus_per_node: int | None = None
    tasks_per_node: int | None = None
    cpus_per_task: int | None = None
    time: str | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    sbatch: Sequence[str] = ()
    hostfile: str | None = None
    site: str | None = None
    dry_run: bool = False

    @property
    def each(self) -> int | None:
        """Processes a machine."""
        return self.tasks_per_node or self.gpus_per_node or None

    @property
    def arguments(self) -> list[str]:
        return [self.config, *self.overrides]


def launch(request: Request) -> int:
    """Check what can be checked here and now, then start the run. Returns the exit status for the shell."""
    config = load(request.config, request.overrides)
    _refuse_unfit(request)
    if not request.dry_run:
        rows = doctor.quick_checks(request.on, config.runs)
        worth = [row for row in rows if row.state != GREEN]
        if worth:
            print(table.render(worth), end="", file=sys.stderr)
        if table.status(rows):
            print("bellwether: not launched; bellwether doctor tells more", file=sys.stderr)
            return 1
    act = {"local": _local, "slurm": _slurm, "mpi": _mpi, "ssh": _ssh}[request.on]
    return act(request, config)


# SLURM


def job(request: Request, config: Config, where: site_config.Site) -> sbatch.Job:
    """What is asked of SLURM: our defaults, the site's file laid over them, the command line over that."""
    asked = sbatch.Job(name=config.name).at(where)
    keys = ("nodes", "cpus_per_task", "time", "partition", "account", "qos", "constraint")
    said = {key: getattr(request, key) for key in keys if getattr(request, key) is not None}
    if request.gpus_per_node is not None:
        said |= {"gpus_per_node": request.gpus_per_node, "tasks_per_node": max(1, request.gpus_per_node)}
    if request.tasks_per_node is not None:
        said["tasks_per_node"] = request.tasks_per_node
    return replace(asked, **said, more=(*asked.more, *request.sbatch))


def _slurm(request: Request, config: Config) -> int:
    where = site_config.load(request.site)
    asked = job(request, config, where)
    check_split(config, asked.nodes * asked.tasks_per_node)
    script = sbatch.render(asked, where, request.arguments)
    if request.dry_run:
        print(script, end="")
        return 0
    run = run_paths.directory(config)
    if requeue.is_finished(run):
        raise ConfigError("name", config.name, f"{run} is finished", "nothing is left to do; choose another name=...")
    if (waiting := requeue.waiting(run)) is not None and is_queued(waiting["job"]):
        advice = "wait for it, scancel it, or choose another name=..."
        raise ConfigError("name", config.name, f"job {waiting['job']} waits to train {run}", advice)
    number = submit(script, request, where)
    if number is None:
        return 1
    requeue.submitted(run, number, os.path.join(os.getcwd(), "logs", f"{number}-rank0.log"))
    print(f"submitted job {number}: {asked.nodes} x {asked.tasks_per_node} processes, run {run}")
    print(f"  job's story   {config.name}-{number}.log")
    print(f"  rank 0        logs/{number}-rank0.log")
    print(f"  how it goes   bellwether status {run}")
    print(f"  follow it     bellwether logs {run} -f")
    print(f"  end it        scancel {number}    (what is done is saved first)")
    return 0


def submit(script: str, request: Request, where: site_config.Site, *options: str) -> str | None:
    """Give a script to sbatch; returns the job's number, or None where it was refused, which is told."""
    # sbatch takes its variables before what stands in the script: where the command line or the site's file speaks, they
    # are not to.
    spoken = {variable for key, variable in _VARIABLES.items() if getattr(request, key) or getattr(where, key)}
    environment = {name: value for name, value in os.environ.items() if name not in spoken}
    command = ["sbatch", "--parsable", *options]
    done = subprocess.run(command, input=script, capture_output=True, text=True, env=environment)
    if done.returncode:
        print(f"bellwether: sbatch refused the job: {done.stderr.strip()}", file=sys.stderr)
        return None
    return done.stdout.strip().split(";")[0]


# Without a scheduler


def mpirun(request: Request, hosts: Sequence[tuple[str, int]], processes: int) -> list[str]:
    """The command of OpenMPI for a run.

    Args:
        hosts: with the processes of each; none: as the allocation that mpirun itself finds says.
    """
    command = ["mpirun", "-np", str(processes), "--bind-to", "none"]
    if os.geteuid() == 0:
        command.append("--allow-run-as-root")  # in a container there is nobody else
    if hosts:
        command += ["--host", ",".join(f"{host}:{count}" for host, count in hosts)]
    elif request.each is not None:
        command += ["--map-by", f"ppr:{request.each}:node"]
    exported = [word for name in forwarded_env(os.environ) for word in ("-x", name)]
    return [*command, *exported, sys.executable, "-m", "bellwether.trainer", *request.arguments]


def _mpi(request: Request, config: Config) -> int:
    hosts = _hosts(request)
    if request.nodes is not None and hosts and request.nodes != len(hosts):
        raise ConfigError("--nodes", request.nodes, f"{request.hostfile} names {len(hosts)} hosts", "leave --nodes out")
    if (
        not hosts
        and request.nodes is None
        and request.each is None
        and not any(name in os.environ for name in _ALLOCATIONS)
    ):
        advice = "name one, or say --tasks-per-node N for this machine alone"
        raise ConfigError("--hostfile", "none", "is needed with --on mpi, outside of an allocation", advice)
    # In an allocation of SLURM or PBS mpirun knows the hosts itself.
    nodes = request.nodes or int(os.environ.get("SLURM_JOB_NUM_NODES", "1"))
    processes = sum(count for _, count in hosts) or nodes * (request.each or 1)
    check_split(config, processes)
    command = mpirun(request, hosts, processes)
    if request.dry_run:
        print(shlex.join(command))
        return 0
    with subprocess.Popen(command) as process:
        while True:
            # Ctrl-C goes to the whole group: the command ends its ranks, this waits for it.
            with contextlib.suppress(KeyboardInterrupt):
                return process.wait()


def _hosts(request: Request) -> list[tuple[str, int]]:
    """The hosts of the file, if one is named, with the processes of each."""
    named = [] if request.hostfile is None else hostfile.hosts(request.hostfile)
    if named and request.each is None and all(slots is None for _, slots in named):
        print(
            f"bellwether: one process a host: {request.hostfile} names no slots=N, nor is there --tasks-per-node",
            file=sys.stderr,
        )
    return [(host, request.each or slots or 1) for host, slots in named]


def _local(request: Request, config: Config) -> int:
    from bellwether.launcher.local import train

    if request.dry_run:
        number = [] if request.each is None else ["--nproc", str(request.each)]
        print(shlex.join(["bellwether", "train", *request.arguments, *number]))
        return 0
    return train(request.config, request.overrides, request.each)


def _ssh(request: Request, config: Config) -> int:
    from bellwether.launcher.ssh import train

    if request.hostfile is None:
        raise ConfigError("--hostfile", "none", "is needed with --on ssh", "name a file with one host a line")
    hosts = _hosts(request)
    counts = {count for _, count in hosts}
    if len(counts) > 1:
        problem = f"its hosts have different slots: {sorted(counts)}"
        raise ConfigError("--hostfile", request.hostfile, problem, "give all the same, or write --tasks-per-node")
    check_split(config, sum(count for _, count in hosts))
    return train([host for host, _ in hosts], hosts[0][1], request.arguments, request.dry_run)


# What can be known before anything starts


def check_split(config: Config, processes: int) -> None:
    """Whether so many processes make up the global batch of each phase, before they have waited in a queue.

    Raises:
        ConfigError: naming the nearest batches that work.
    """
    wanted = config.engine.world_size
    if wanted is not None and wanted != processes:
        advice = "set it so, or change --nodes and --gpus-per-node"
        raise ConfigError("engine.world_size", wanted, f"{processes} processes are to be started", advice)
    from bellwether.trainer.phases import splits

    splits(phases(config), processes)


def _refuse_unfit(request: Request) -> None:
    """Options that say nothing where the run is to go: told, rather than passed over.

    Raises:
        ConfigError: naming the option.
    """
    alone = {
        "slurm": ("cpus_per_task", "time", "partition", "account", "qos", "constraint", "sbatch", "site"),
        "mpi ssh": ("hostfile",),
        "slurm mpi": ("nodes",),
    }
    for places, keys in alone.items():
        for key in keys:
            if getattr(request, key) not in (None, [], ()) and request.on not in places.split():
                option = f"--{key.replace('_', '-')}"
                advice = f"take it out, or launch --on {places.replace(' ', ' or ')}"
                raise ConfigError(option, getattr(request, key), f"has no meaning with --on {request.on}", advice)

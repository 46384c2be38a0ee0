"""``bellwether launch``: starts a run on this machine, on SLURM, over MPI or over ssh."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bellwether.launcher import attempts, console, doctor, hostfile, sbatch, site_config
from bellwether.launcher.attempts import best_effort
from bellwether.launcher.doctor import table
from bellwether.launcher.doctor.result import GREEN
from bellwether.launcher.forwarded_env import forwarded_env
from bellwether.launcher.squeue import is_queued
from bellwether.trainer import deepspeed_keys, existing_run, run_paths
from bellwether.trainer.checked_config import load_checked
from bellwether.trainer.config import Config, ConfigError, phases
from bellwether.trainer.data import contents
from bellwether.trainer.data.warm import is_warm

log = logging.getLogger(__name__)

# Variables of an allocation in which mpirun detects the hosts.
_ALLOCATIONS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "PE_HOSTFILE")
# sbatch prefers these variables to the options in the script.
_SBATCH_VARIABLES = {
    "partition": "SBATCH_PARTITION",
    "account": "SBATCH_ACCOUNT",
    "qos": "SBATCH_QOS",
    "constraint": "SBATCH_CONSTRAINT",
    "time": "SBATCH_TIMELIMIT",
}


@dataclass(frozen=True)
class LaunchRequest:
    """The command line of ``bellwether launch``. None: not given."""

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
    spares: int | None = None
    chain: int | None = None
    hostfile: str | None = None
    site: str | None = None
    dry_run: bool = False

    @property
    def processes_per_node(self) -> int | None:
        return self.tasks_per_node or self.gpus_per_node or None

    @property
    def arguments(self) -> list[str]:
        """The arguments of ``python -m bellwether.trainer``."""
        return [self.config, *self.overrides]


def launch(request: LaunchRequest) -> int:
    """Check the config and this machine, then start the run. Returns the exit status for the shell.

    Raises:
        ConfigError: if an option, the config, the host file or the site's file is wrong.
    """
    console.setup()
    config = load_checked(request.config, request.overrides)
    deepspeed_keys.check(config)
    _check_options(request)
    existing_run.check_early(config)
    if not request.dry_run:
        rows = doctor.quick_checks(request.on, config.runs)
        problems = [row for row in rows if row.state != GREEN]
        if problems:
            print(table.render(problems), end="", file=sys.stderr)
        if table.exit_status(rows):
            log.error("not launched; bellwether doctor shows all checks")
            return 1
    _warn_if_cold(request, config)
    start = {"local": _local, "slurm": _slurm, "mpi": _mpi, "ssh": _ssh}[request.on]
    return start(request, config)


def _warn_if_cold(request: LaunchRequest, config: Config) -> None:
    """Say that a job will have to prepare its data first, while its processes wait, or will refuse them."""
    cold = [phase.data for phase in phases(config) if not is_warm(phase.data)]
    if request.on != "local" and not request.dry_run and cold:
        log.warning(
            "the data of %s are not prepared in %s: the job does it first, while all its processes wait; "
            "bellwether prepare %s does it here", cold[0].source, cold[0].cache, " ".join(request.arguments),
        )  # fmt: skip
    for phase in phases(config):
        try:
            contents.check(phase.data)
        except ConfigError as error:  # or the files are not on this machine
            if request.on != "local":
                log.warning("%s: the job will refuse it", error)


# SLURM


def sbatch_job(request: LaunchRequest, config: Config, site: site_config.Site) -> sbatch.SbatchJob:
    """The sbatch job of a run. The command line overrides the site's file, which overrides the defaults."""
    base = sbatch.SbatchJob(name=config.name).at(site)
    keys = ("nodes", "cpus_per_task", "time", "partition", "account", "qos", "constraint")
    site_overrides = {key: getattr(request, key) for key in keys if getattr(request, key) is not None}
    if request.gpus_per_node is not None:
        site_overrides |= {"gpus_per_node": request.gpus_per_node, "tasks_per_node": max(1, request.gpus_per_node)}
    if request.tasks_per_node is not None:
        site_overrides["tasks_per_node"] = request.tasks_per_node
    site_overrides |= {"spares": site.spares or 0, "requeue": (site.chain or 1) == 1}
    return replace(base, **site_overrides, more=(*base.more, *request.sbatch))


def _slurm(request: LaunchRequest, config: Config) -> int:
    site = site_config.load(request.site).with_venv()
    given = {key: getattr(request, key) for key in ("spares", "chain") if getattr(request, key) is not None}
    site = site.model_copy(update=given)
    requested = sbatch_job(request, config, site)
    check_split(config, requested.nodes * requested.tasks_per_node)
    script = sbatch.render(requested, site, request.arguments)
    if request.dry_run:
        print(script, end="")
        return 0
    run = run_paths.directory(config)
    if attempts.is_finished(run):
        raise ConfigError("name", config.name, f"{run} is finished", "choose another name=... for a new run")
    if (waiting := attempts.waiting(run)) is not None and is_queued(waiting["job"]):
        fix = "wait for it, scancel it, or choose another name=..."
        raise ConfigError("name", config.name, f"job {waiting['job']} is queued for {run}", fix)
    numbers = submit_chain(script, request, site, run)
    if not numbers:
        return 1
    number = numbers[0]
    spares = f" and {requested.spares} spare node{'s' if requested.spares > 1 else ''}" if requested.spares else ""
    print(f"submitted job {number}: {requested.nodes} x {requested.tasks_per_node} processes{spares}, run {run}")
    if len(numbers) > 1:
        print(f"  then      jobs {', '.join(numbers[1:])}, each after the one before")
    print(f"  job log   {config.name}-{number}.log")
    print(f"  rank 0    {attempts.rank0_log(number)}")
    print(f"  status    bellwether status {run}")
    print(f"  output    bellwether logs {run} -f")
    print(f"  cancel    scancel {' '.join(numbers)}    (saves a checkpoint first)")
    return 0


def submit_chain(script: str, request: LaunchRequest, site: site_config.Site, run: Path) -> list[str]:
    """Submit a run's job, or as many as the site's `chain` says, each of which starts when the one before has ended."""
    numbers: list[str] = []
    links = site.chain or 1
    for link in range(1, links + 1):
        options = []
        if links > 1:
            series = f",BELLWETHER_SERIES={numbers[0]}" if numbers else ""
            options = [f"--export=ALL,BELLWETHER_CHAIN={link}/{links}{series}"]
            options += [f"--dependency=afterany:{numbers[-1]}"] if numbers else []
        number = submit(script, request, site, *options)
        if number is None:
            break
        log = os.path.join(os.getcwd(), attempts.rank0_log(number))
        series = (numbers or [number])[0] if links > 1 else ""
        best_effort("writing attempts.jsonl", lambda: attempts.submitted(run, number, log, series), None)  # noqa: B023
        numbers.append(number)
    return numbers


def submit(script: str, request: LaunchRequest, site: site_config.Site, *options: str) -> str | None:
    """Pass a script to sbatch. Returns the job's number, or None after logging why sbatch refused it."""
    # A variable must not win over the command line or the site's file.
    overridden = {
        variable for key, variable in _SBATCH_VARIABLES.items() if getattr(request, key) or getattr(site, key)
    }
    inherited = sbatch.submission_env(os.environ)
    environment = {name: value for name, value in inherited.items() if name not in overridden}
    command = ["sbatch", "--parsable", *options]
    done = subprocess.run(command, input=script, capture_output=True, text=True, env=environment)
    if done.returncode:
        log.error("sbatch refused the job: %s", done.stderr.strip())
        return None
    return done.stdout.strip().split(";")[0]


# Without a scheduler


def mpirun(request: LaunchRequest, hosts: Sequence[tuple[str, int]], processes: int) -> list[str]:
    """OpenMPI's command for a run.

    Args:
        hosts: with the number of processes of each; empty: those of the allocation that mpirun detects.
    """
    command = ["mpirun", "-np", str(processes), "--bind-to", "none"]
    if os.geteuid() == 0:
        command.append("--allow-run-as-root")  # the only user in many containers
    if hosts:
        command += ["--host", ",".join(f"{host}:{count}" for host, count in hosts)]
    elif request.processes_per_node is not None:
        command += ["--map-by", f"ppr:{request.processes_per_node}:node"]
    exported = [word for name in forwarded_env(os.environ) for word in ("-x", name)]
    return [*command, *exported, sys.executable, "-m", "bellwether.trainer", *request.arguments]


def _mpi(request: LaunchRequest, config: Config) -> int:
    hosts = _hosts(request)
    if request.nodes is not None and hosts and request.nodes != len(hosts):
        raise ConfigError("--nodes", request.nodes, f"{request.hostfile} names {len(hosts)} hosts", "remove --nodes")
    detectable = any(name in os.environ for name in _ALLOCATIONS)
    if not hosts and request.nodes is None and request.processes_per_node is None and not detectable:
        fix = "name one, or add --tasks-per-node N to use this machine only"
        raise ConfigError("--hostfile", "none", "is required with --on mpi, outside of an allocation", fix)
    nodes = request.nodes or int(os.environ.get("SLURM_JOB_NUM_NODES", "1"))
    processes = sum(count for _, count in hosts) or nodes * (request.processes_per_node or 1)
    check_split(config, processes)
    command = mpirun(request, hosts, processes)
    if request.dry_run:
        print(shlex.join(command))
        return 0
    with subprocess.Popen(command) as process:
        while True:
            # Ctrl-C reaches mpirun too, as it is in the same process group: wait until it has ended its ranks.
            with contextlib.suppress(KeyboardInterrupt):
                return process.wait()


def _hosts(request: LaunchRequest) -> list[tuple[str, int]]:
    """The hosts of the host file, if there is one, with the number of processes of each."""
    named = [] if request.hostfile is None else hostfile.hosts(request.hostfile)
    if named and request.processes_per_node is None and all(slots is None for _, slots in named):
        log.warning("one process per host: %s has no slots=N, and --tasks-per-node is not given", request.hostfile)
    return [(host, request.processes_per_node or slots or 1) for host, slots in named]


def _local(request: LaunchRequest, config: Config) -> int:
    from bellwether.launcher.local import train

    if request.dry_run:
        count = request.processes_per_node
        number = [] if count is None else ["--nproc", str(count)]
        print(shlex.join(["bellwether", "train", *request.arguments, *number]))
        return 0
    return train(request.config, request.overrides, request.processes_per_node)


def _ssh(request: LaunchRequest, config: Config) -> int:
    from bellwether.launcher.ssh import train

    if request.hostfile is None:
        raise ConfigError("--hostfile", "none", "is required with --on ssh", "name a file with one host a line")
    hosts = _hosts(request)
    counts = {count for _, count in hosts}
    if len(counts) > 1:
        problem = f"its hosts have different slots: {sorted(counts)}"
        raise ConfigError("--hostfile", request.hostfile, problem, "make them equal, or add --tasks-per-node")
    check_split(config, sum(count for _, count in hosts))
    return train([host for host, _ in hosts], hosts[0][1], request.arguments, request.dry_run)


# Checks before anything starts


def check_split(config: Config, processes: int) -> None:
    """Check that the global batch of each phase can be divided among the processes.

    Raises:
        ConfigError: naming the nearest batches that work.
    """
    from bellwether.trainer.phases import check_world_size, splits

    check_world_size(config, processes, "change --nodes and --gpus-per-node")
    splits(phases(config), processes)


def _check_options(request: LaunchRequest) -> None:
    """Refuse options that have no effect with this ``--on``, instead of ignoring them.

    Raises:
        ConfigError: naming the option.
    """
    restricted = {
        "slurm": (
            "cpus_per_task",
            "time",
            "partition",
            "account",
            "qos",
            "constraint",
            "sbatch",
            "site",
            "spares",
            "chain",
        ),
        "mpi ssh": ("hostfile",),
        "slurm mpi": ("nodes",),
    }
    for launchers, keys in restricted.items():
        for key in keys:
            if getattr(request, key) not in (None, [], ()) and request.on not in launchers.split():
                option = f"--{key.replace('_', '-')}"
                fix = f"remove it, or use --on {launchers.replace(' ', ' or ')}"
                raise ConfigError(option, getattr(request, key), f"does not apply to --on {request.on}", fix)

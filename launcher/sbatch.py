"""Renders the sbatch scripts: those that `bellwether launch` submits, and slurm/*.sbatch.

``python -m bellwether.launcher.sbatch slurm`` writes the two scripts in slurm/; a test compares them with this module. A
rendered script needs no checkout: it only runs modules of the installed package.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bellwether.launcher import script_text
from bellwether.launcher.site_config import Site


@dataclass(frozen=True)
class SbatchJob:
    """The options of sbatch, and the kind of script. None: sbatch's own default, or its command line."""

    name: str = "bellwether"
    nodes: int = 1
    gpus_per_node: int = 8
    tasks_per_node: int = 8
    cpus_per_task: int = 8
    time: str = "1-00:00:00"
    warning: int = 300  # seconds before the time limit at which the tasks get SIGUSR2
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    spares: int = 0  # nodes besides those, which replace bad ones
    requeue: bool = True
    sweep: bool = False  # a job array, each task of which runs one line of a file
    study: str | None = None  # directory of a sweep (`bellwether sweep`) whose trials the lines name
    more: tuple[str, ...] = ()  # further options of sbatch

    def at(self, site: Site) -> SbatchJob:
        """This job with the values of the site's file."""
        site_values = {
            key: getattr(site, key) for key in ("partition", "account", "qos", "constraint", "time", "cpus_per_task")
        }
        if site.gpus_per_node is not None:
            site_values["gpus_per_node"] = site.gpus_per_node
            site_values["tasks_per_node"] = max(1, site.gpus_per_node)
        site_values = {key: value for key, value in site_values.items() if value is not None}
        return replace(self, **site_values, more=(*self.more, *site.sbatch))


def render(job: SbatchJob, site: Site, arguments: Sequence[str] | None = None) -> str:
    """The text of a script. Pure.

    Args:
        arguments: the config and its overrides; None: they follow the script on sbatch's command line.
    """
    log = "%x-%A_%a.log" if job.sweep else "%x-%j.log"
    parts = [
        script_text.HEAD_SWEEP if job.sweep else script_text.HEAD,
        script_text.VARIABLES,
        "".join(f"#SBATCH {option}\n" for option in _options(job, log)),
        script_text.OWN_JOB,
        _site(site, arguments),
        script_text.BODY_SWEEP if job.sweep else "",
        _body(job),
    ]
    return "".join(parts)


def submission_env(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment for sbatch: without the variables of a job, a step or a run in which it is called."""
    kept = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT")  # how to reach the controller
    return {
        name: value
        for name, value in environment.items()
        if name in kept
        or not (name in script_text.LEFTOVERS or name.startswith(("SLURM_", *script_text.LEFTOVER_PREFIXES)))
    }


def _body(job: SbatchJob) -> str:
    """The part of the script that is the same for every site and config."""
    begin, end = ("", "") if job.study is None else (script_text.BEGIN, script_text.END)
    body = (
        script_text.BODY.replace("@BEGIN@", begin)
        .replace("@END@", end)
        .replace("@STUDY@", shlex.quote(job.study or ""))
    )
    return body


def _options(job: SbatchJob, log: str) -> list[str]:
    named = {
        "job-name": job.name, "partition": job.partition, "account": job.account, "qos": job.qos,
        "constraint": job.constraint, "nodes": job.nodes + job.spares, "ntasks-per-node": job.tasks_per_node,
        "gpus-per-node": job.gpus_per_node or None, "cpus-per-task": job.cpus_per_task, "time": job.time,
        "signal": f"USR2@{job.warning}", "requeue": job.requeue or None, "no-requeue": not job.requeue or None,
        "no-kill": bool(job.spares) or None, "open-mode": "append", "output": log,
    }  # fmt: skip
    options = [
        f"--{key}" if value is True else f"--{key}={shlex.quote(str(value))}"
        for key, value in named.items() if value is not None
    ]  # fmt: skip
    return [*options, *job.more]


def _site(site: Site, arguments: Sequence[str] | None) -> str:
    """The variables and arguments that a user sets when submitting by hand."""
    named = {
        "MODULES": site.modules, "VENV": site.venv, "CONTAINER": site.container, "IMAGE": site.image, "MOUNTS": site.mounts, "INTERFACE": site.interface,
        "SRUN": site.srun, "PACKED_ENV": site.packed_env, "NODE_DIR": site.node_directory,
        "RESTARTS": "" if site.restarts is None else str(site.restarts), "SPARES": str(site.spares or ""),
    }  # fmt: skip
    lines = [f"export BELLWETHER_{key}={shlex.quote(value)}" for key, value in named.items() if value]
    lines += [f"export {key}={shlex.quote(value)}" for key, value in site.environment.items()]
    if arguments is not None:
        lines.append(f"set -- {shlex.join(arguments)}")
    return "".join(f"{line}\n" for line in ["", *lines]) if lines else ""


def main() -> int:
    """Write train.sbatch and sweep.sbatch to a folder."""
    folder = Path(sys.argv[1])
    (folder / "train.sbatch").write_text(render(SbatchJob(), Site()))
    (folder / "sweep.sbatch").write_text(render(SbatchJob(sweep=True), Site()))
    return 0


if __name__ == "__main__":
    sys.exit(main())

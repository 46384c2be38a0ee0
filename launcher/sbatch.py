"""The text of an sbatch script, by one pure function: what `bellwether launch` submits, and slurm/*.sbatch.

``python -m bellwether.launcher.sbatch slurm`` writes the two scripts there anew; a test holds them to it.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bellwether.launcher.site_config import Site


@dataclass(frozen=True)
class Job:
    """What is asked of sbatch. None: left to sbatch's own defaults, or to its command line."""

    name: str = "bellwether"
    nodes: int = 1
    gpus_per_node: int = 8
    tasks_per_node: int = 8
    cpus_per_task: int = 8
    time: str = "1-00:00:00"
    notice: int = 300  # seconds before the time limit at which tasks are told
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    sweep: bool = False  # each task of an array takes a line of a file
    study: str | None = None  # the lines are runs of the sweep in this directory, as `bellwether sweep` has it
    more: tuple[str, ...] = ()  # further options of sbatch

    def at(self, site: Site) -> Job:
        """With what the site's file says laid over it."""
        said = {
            key: getattr(site, key) for key in ("partition", "account", "qos", "constraint", "time", "cpus_per_task")
        }
        if site.gpus_per_node is not None:
            said["gpus_per_node"] = site.gpus_per_node
            said["tasks_per_node"] = max(1, site.gpus_per_node)
        told = {key: value for key, value in said.items() if value is not None}
        return replace(self, **told, more=(*self.more, *site.sbatch))


def render(job: Job, site: Site, arguments: Sequence[str] | None = None) -> str:
    """The script.

    Args:
        arguments: the config and its overrides; None leaves them to sbatch's command line.
    """
    shown = "%x-%A_%a.log" if job.sweep else "%x-%j.log"
    parts = [
        _HEAD_SWEEP if job.sweep else _HEAD,
        _VARIABLES,
        "".join(f"#SBATCH {option}\n" for option in _options(job, shown)),
        _site(site, arguments),
        _BODY_SWEEP if job.sweep else "",
        _body(job),
    ]
    return "".join(parts)


def _body(job: Job) -> str:
    begin, end = ("", "") if job.study is None else (_BEGIN, _END)
    body = _BODY.replace("@BEGIN@", begin).replace("@END@", end).replace("@STUDY@", shlex.quote(job.study or ""))
    return body.replace("@LOG@", "%A_%a" if job.sweep else "%j")


def _options(job: Job, log: str) -> list[str]:
    named = {
        "job-name": job.name, "partition": job.partition, "account": job.account, "qos": job.qos,
        "constraint": job.constraint, "nodes": job.nodes, "ntasks-per-node": job.tasks_per_node,
        "gpus-per-node": job.gpus_per_node or None, "cpus-per-task": job.cpus_per_task, "time": job.time,
        "signal": f"USR2@{job.notice}", "requeue": True, "open-mode": "append", "output": log,
    }  # fmt: skip
    options = [
        f"--{key}" if value is True else f"--{key}={shlex.quote(str(value))}"
        for key, value in named.items() if value is not None
    ]  # fmt: skip
    return [*options, *job.more]


def _site(site: Site, arguments: Sequence[str] | None) -> str:
    """What a person would have put into the environment and on the command line."""
    named = {
        "MODULES": site.modules, "VENV": site.venv, "CONTAINER": site.container, "INTERFACE": site.interface,
        "SRUN": site.srun, "RESTARTS": "" if site.restarts is None else str(site.restarts),
    }  # fmt: skip
    lines = [f"export BELLWETHER_{key}={shlex.quote(value)}" for key, value in named.items() if value]
    lines += [f"export {key}={shlex.quote(value)}" for key, value in site.environment.items()]
    if arguments is not None:
        lines.append(f"set -- {shlex.join(arguments)}")
    return "".join(f"{line}\n" for line in ["", *lines]) if lines else ""


_HEAD = """\
#!/usr/bin/env bash
# Trains a config on as many nodes as SLURM gives, one process a GPU. It goes on by itself after a preemption, a time limit
# or a failure, until the run is finished:
#
#     sbatch --nodes=16 slurm/train.sbatch configs/bert-large-64k.yaml [key=value ...]
#
"""
_HEAD_SWEEP = """\
#!/usr/bin/env bash
# Trains many configs as a job array, one a task. Each line of a file is what train.sbatch takes, a config and overrides:
#
#     sbatch --array=1-12%4 --nodes=1 slurm/sweep.sbatch runs.txt
#
# Every line needs a name=... of its own, as a name stands for one run.
#
"""
_VARIABLES = """\
# What is asked for below can be overridden on sbatch's command line; on nodes of 4 GPUs and 48 cores: --gpus-per-node=4
# --ntasks-per-node=4 --cpus-per-task=12. What is a site's own stands in the environment:
#
#     BELLWETHER_MODULES     environment modules to load, as in "cuda/12.8 gcc/13"
#     BELLWETHER_VENV        virtual environment to activate (.venv, where there is one)
#     BELLWETHER_CONTAINER   what stands before python, as in "apptainer exec --nv image.sif"
#     BELLWETHER_INTERFACE   network interface that the ranks meet on, as in ib0
#     BELLWETHER_SRUN        further options of srun, as in "--mpi=pmix"
#     BELLWETHER_RESTARTS    how often the job may start again (50)
#
# Logs: this one for the job's own story, logs/ for each rank. More in docs/slurm.md.
#
"""
_BODY_SWEEP = """
# Line N of the file is for task N.
line=$(sed -n "${SLURM_ARRAY_TASK_ID:?submit this as an array: sbatch --array=1-N}p" "${1:?which file?}")
if [[ -z $line ]]; then
    echo "bellwether: line $SLURM_ARRAY_TASK_ID of $1 is empty, or not there" >&2
    exit 2
fi
eval "set -- $line"
"""
_BODY = """
if (($# == 0)); then
    echo "bellwether: which config? sbatch [options] slurm/train.sbatch CONFIG [key=value ...]" >&2
    exit 2
fi

# The tasks get the signals that announce an end, save, and end by themselves. This shell must outlive them.
trap : TERM USR2
# As many open files as may be: 1,024 ranks hold more connections than the usual limit.
ulimit -Sn hard
# The id of a task of an array that means no other: its plain number may be that of the whole array.
id=${SLURM_ARRAY_TASK_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
id=${id:-$SLURM_JOB_ID}

if [[ -n ${BELLWETHER_MODULES:-} ]]; then
    # shellcheck disable=SC2086  # one word a module
    module load $BELLWETHER_MODULES || exit 1
fi
if [[ -n ${BELLWETHER_VENV:-} || -f .venv/bin/activate ]]; then
    # shellcheck disable=SC1091
    source "${BELLWETHER_VENV:-.venv}/bin/activate" || exit 1
fi
read -ra container <<<"${BELLWETHER_CONTAINER:-}"
read -ra options <<<"${BELLWETHER_SRUN:-}"
python=("${container[@]}" python)
@BEGIN@
# Since SLURM 22.05, srun no longer takes --cpus-per-task over from sbatch.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$SRUN_CPUS_PER_TASK}
if [[ -n ${BELLWETHER_INTERFACE:-} ]]; then
    export NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-$BELLWETHER_INTERFACE}
    export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-$BELLWETHER_INTERFACE}
fi

"${python[@]}" -m bellwether.launcher.requeue begin "$@"
case $? in
    0) ;;
    3) exit 0 ;;  # finished
    *) exit 1 ;;
esac

# This shell runs on the first node, so it knows that node's address, and which of its ports is free. Ranks are each task's
# own business: what were expanded here would be rank 0 for all.
meeting=$("${python[@]}" -m bellwether.trainer.rendezvous) || exit 1
eval "$meeting"

mkdir -p logs
echo "$(date '+%F %T') bellwether: attempt $((${SLURM_RESTART_COUNT:-0} + 1)): $SLURM_NTASKS tasks on $SLURM_JOB_NODELIST," \\
    "meeting at $MASTER_ADDR:$MASTER_PORT"
# The first rank that fails takes the others along; none waits for ever for one that is gone.
srun --export=ALL --kill-on-bad-exit=1 --wait=60 --cpu-bind=cores --open-mode=append \\
    --output=logs/@LOG@-rank%t.log "${options[@]}" "${python[@]}" -m bellwether.trainer "$@"
status=$?

job=$(scontrol show job -o "$id")
"${python[@]}" -m bellwether.launcher.requeue end --status "$status" --job "$job" "$@"
verdict=$?
@END@if ((verdict == 75)); then
    for try in {1..60}; do
        # Requeueing would bring back a job that somebody has cancelled in the meantime.
        now=$(scontrol show job -o "$id") && [[ $now != *JobState=RUNNING* && $job == *JobState=RUNNING* ]] && break
        scontrol requeue "$id" && exit 0
        # The controller may be away for a while. What it says no to while it is there, such as a job that SLURM itself has
        # requeued by now, waiting does not change.
        ((try > 2)) && scontrol ping | grep -q "is UP" && break
        sleep 5
    done
fi
exit "$verdict"
"""
_BEGIN = """
# The run's settings are decided now, from what the others have shown by now, and once for all its attempts.
run=$1
config=$("${python[@]}" -m bellwether.experiments.sweep.array begin @STUDY@ "$run") ||
    exit $(($? == 3 ? 0 : 1)) # 3: there is nothing to do
set -- "$config"
"""
_END = """\
((verdict == 75)) || "${python[@]}" -m bellwether.experiments.sweep.array end @STUDY@ "$run"
"""


def main() -> int:
    folder = Path(sys.argv[1])
    (folder / "train.sbatch").write_text(render(Job(), Site()))
    (folder / "sweep.sbatch").write_text(render(Job(sweep=True), Site()))
    return 0


if __name__ == "__main__":
    sys.exit(main())

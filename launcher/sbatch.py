"""Renders the sbatch scripts: those that `bellwether launch` submits, and slurm/*.sbatch.

``python -m bellwether.launcher.sbatch slurm`` writes the two scripts in slurm/; a test compares them with this module. A
rendered script needs no checkout: it only runs modules of the installed package.
"""

from __future__ import annotations

import shlex
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

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
        _HEAD_SWEEP if job.sweep else _HEAD,
        _VARIABLES,
        "".join(f"#SBATCH {option}\n" for option in _options(job, log)),
        _OWN_JOB,
        _site(site, arguments),
        _BODY_SWEEP if job.sweep else "",
        _body(job),
    ]
    return "".join(parts)


def submission_env(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment for sbatch: without the variables of a job, a step or a run in which it is called."""
    kept = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT")  # how to reach the controller
    return {
        name: value
        for name, value in environment.items()
        if name in kept or not (name in _LEFTOVERS or name.startswith(("SLURM_", *_LEFTOVER_PREFIXES)))
    }


def _body(job: SbatchJob) -> str:
    """The part of the script that is the same for every site and config."""
    begin, end = ("", "") if job.study is None else (_BEGIN, _END)
    return _BODY.replace("@BEGIN@", begin).replace("@END@", end).replace("@STUDY@", shlex.quote(job.study or ""))


def _options(job: SbatchJob, log: str) -> list[str]:
    named = {
        "job-name": job.name, "partition": job.partition, "account": job.account, "qos": job.qos,
        "constraint": job.constraint, "nodes": job.nodes, "ntasks-per-node": job.tasks_per_node,
        "gpus-per-node": job.gpus_per_node or None, "cpus-per-task": job.cpus_per_task, "time": job.time,
        "signal": f"USR2@{job.warning}", "requeue": True, "open-mode": "append", "output": log,
    }  # fmt: skip
    options = [
        f"--{key}" if value is True else f"--{key}={shlex.quote(str(value))}"
        for key, value in named.items() if value is not None
    ]  # fmt: skip
    return [*options, *job.more]


def _site(site: Site, arguments: Sequence[str] | None) -> str:
    """The variables and arguments that a user sets when submitting by hand."""
    named = {
        "MODULES": site.modules, "VENV": site.venv, "CONTAINER": site.container, "INTERFACE": site.interface,
        "SRUN": site.srun, "PACKED_ENV": site.packed_env, "NODE_DIR": site.node_directory,
        "RESTARTS": "" if site.restarts is None else str(site.restarts),
    }  # fmt: skip
    lines = [f"export BELLWETHER_{key}={shlex.quote(value)}" for key, value in named.items() if value]
    lines += [f"export {key}={shlex.quote(value)}" for key, value in site.environment.items()]
    if arguments is not None:
        lines.append(f"set -- {shlex.join(arguments)}")
    return "".join(f"{line}\n" for line in ["", *lines]) if lines else ""


_HEAD = """\
#!/usr/bin/env bash
# Trains a config on one or more nodes, one process per GPU. After a preemption, a time limit or a failure the job is
# requeued and resumes from the newest checkpoint, until the run is finished:
#
#     sbatch --nodes=16 slurm/train.sbatch configs/bert-large-64k.yaml [key=value ...]
#
"""
_HEAD_SWEEP = """\
#!/usr/bin/env bash
# Trains many configs as a job array, one per task. Each line of the file has the arguments of train.sbatch: a config and
# overrides.
#
#     sbatch --array=1-12%4 --nodes=1 slurm/sweep.sbatch runs.txt
#
# Every line needs a different name=..., as each name is one run.
#
"""
_VARIABLES = """\
# The options below can be overridden on sbatch's command line; on nodes with 4 GPUs and 48 cores: --gpus-per-node=4
# --ntasks-per-node=4 --cpus-per-task=12. Environment variables hold what depends on the site:
#
#     BELLWETHER_MODULES     environment modules to load, as in "cuda/12.8 gcc/13"
#     BELLWETHER_VENV        virtual environment to activate (.venv, where there is one)
#     BELLWETHER_PACKED_ENV  archive that each node unpacks, as written by bellwether env pack
#     BELLWETHER_NODE_DIR    directory on each node's own disk (/tmp)
#     BELLWETHER_CONTAINER   prefix of the python command, as in "apptainer exec --nv image.sif"
#     BELLWETHER_INTERFACE   network interface for communication between ranks, as in ib0
#     BELLWETHER_SRUN        further options of srun, as in "--mpi=pmix"
#     BELLWETHER_RESTARTS    maximum number of restarts (50)
#
# Logs: this job's log has one line per attempt and its outcome; logs/JOB/ has the output of each rank. See docs/slurm.md.
#
"""
# Variables that launchers of processes set, besides SLURM_*.
_LEFTOVER_PREFIXES = ("PMI", "OMPI_COMM_WORLD_", "TORCHELASTIC_")
_LEFTOVERS = (
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "BELLWETHER_WORLD_SIZE",
    "BELLWETHER_SECRET",
)  # fmt: skip
# SLURM sets these for every job. Other variables may be those of the job in which sbatch was called.
_OF_EVERY_JOB = (
    "CLUSTER_NAME", "CONF", "CONF_SERVER", "CPUS_ON_NODE", "GTIDS", "JOBID", "JOB_CPUS_PER_NODE", "JOB_GID", "JOB_ID", "JOB_NAME",
    "JOB_NODELIST", "JOB_NUM_NODES", "JOB_PARTITION", "JOB_UID", "JOB_USER", "JWT", "LOCALID", "NNODES", "NODEID",
    "NODELIST", "NODE_ALIASES", "PROCID", "SUBMIT_DIR", "SUBMIT_HOST", "TASKS_PER_NODE", "TASK_PID", "TOPOLOGY_ADDR",
    "TOPOLOGY_ADDR_PATTERN", "WORKING_CLUSTER",
)  # fmt: skip
_OWN_JOB = r"""
# Where sbatch is called inside another job, it passes that job's variables on: only SLURM knows what belongs to this one.
for ((try = 1; ; try++)); do
    own=$(scontrol show job -o "$SLURM_JOB_ID" | grep "^JobId=$SLURM_JOB_ID ") && break
    if ((try == 60)); then
        echo "bellwether: scontrol does not show job $SLURM_JOB_ID" >&2
        exit 1
    fi
    sleep 5
done
if [[ $own != *" BatchHost=$SLURMD_NODENAME "* ]]; then
    echo "bellwether: this is not the batch script of job $SLURM_JOB_ID; submit it with sbatch" >&2
    exit 1
fi
of_every_job="@OF_EVERY_JOB@"
for name in "${!SLURM_@}" "${!SBATCH_@}" @PREFIXES@; do
    [[ " $of_every_job " == *" ${name#SLURM_} "* ]] || unset "$name"
done
unset @LEFTOVERS@
id=$SLURM_JOB_ID
if [[ $own =~ ^JobId=[0-9]+\ ArrayJobId=([0-9]+)\ ArrayTaskId=([0-9]+)\  ]]; then
    # ARRAY_TASK: the job id of a task may be the same number as that of the whole array.
    id=${BASH_REMATCH[1]}_${BASH_REMATCH[2]}
    export SLURM_ARRAY_JOB_ID=${BASH_REMATCH[1]} SLURM_ARRAY_TASK_ID=${BASH_REMATCH[2]}
fi
[[ $own =~ \ Restarts=([1-9][0-9]*)\ BatchFlag= ]] && export SLURM_RESTART_COUNT=${BASH_REMATCH[1]}
[[ $own =~ \ NtasksPerN:B:S:C=([1-9][0-9]*): ]] && export SLURM_NTASKS_PER_NODE=${BASH_REMATCH[1]}
export SLURM_NTASKS=1 SLURM_CPUS_PER_TASK=1
if [[ $own =~ \ NumTasks=([0-9]+)\ CPUs/Task=([0-9]+)\  ]]; then
    SLURM_NTASKS=${BASH_REMATCH[1]} SLURM_CPUS_PER_TASK=${BASH_REMATCH[2]}
fi
"""
_OWN_JOB = (
    _OWN_JOB.replace("@OF_EVERY_JOB@", " \\\n    ".join(textwrap.wrap(" ".join(_OF_EVERY_JOB), 110)))
    .replace("@PREFIXES@", " ".join(f'"${{!{prefix}@}}"' for prefix in _LEFTOVER_PREFIXES))
    .replace("@LEFTOVERS@", " ".join(_LEFTOVERS))
)
_BODY_SWEEP = """
# Task N runs line N of the file.
line=$(sed -n "${SLURM_ARRAY_TASK_ID:?submit this as an array: sbatch --array=1-N}p" "${1:?no file given}")
if [[ -z $line ]]; then
    echo "bellwether: line $SLURM_ARRAY_TASK_ID of $1 is empty or missing" >&2
    exit 2
fi
eval "set -- $line"
"""
_BODY = """
if (($# == 0)); then
    echo "bellwether: no config given; usage: sbatch [options] slurm/train.sbatch CONFIG [key=value ...]" >&2
    exit 2
fi

# On SIGTERM and SIGUSR2 the tasks save a checkpoint and exit. This shell must outlive them.
trap : TERM USR2
# Raise the limit of open files: 1,024 ranks hold more connections than the default allows.
ulimit -Sn hard

if [[ -n ${BELLWETHER_MODULES:-} ]]; then
    # shellcheck disable=SC2086  # one word per module
    module load $BELLWETHER_MODULES || exit 1
fi
if [[ -n ${BELLWETHER_VENV:-} || -f .venv/bin/activate ]]; then
    # shellcheck disable=SC1091
    source "${BELLWETHER_VENV:-.venv}/bin/activate" || exit 1
fi
read -ra container <<<"${BELLWETHER_CONTAINER:-}"
read -ra options <<<"${BELLWETHER_SRUN:-}"
python=("${container[@]}" python)
if [[ -n ${BELLWETHER_PACKED_ENV:-} ]]; then
    packed=${BELLWETHER_NODE_DIR:-/tmp}/bellwether-$SLURM_JOB_ID
    on_each_node=(srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1)
    trap '"${on_each_node[@]}" rm -rf "$packed"' EXIT
    "${on_each_node[@]}" "${python[@]}" -m bellwether.launcher.packed_env "$BELLWETHER_PACKED_ENV" "$packed" || exit 1
    python=("${container[@]}" "$packed/bin/python")
fi
@BEGIN@
# Since SLURM 22.05, srun does not inherit --cpus-per-task from sbatch.
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
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

# MASTER_ADDR, MASTER_PORT and a secret: this shell runs on the first node, so it knows the address and a free port. Each task
# detects its own rank: a variable expanded here would give rank 0 to all.
rendezvous=$("${python[@]}" -m bellwether.trainer.rendezvous) || exit 1
eval "$rendezvous"

mkdir -p "logs/$id"
export BELLWETHER_KEEP_OUTPUT=0 # srun keeps each rank's output in logs/JOB/
echo "$(date '+%F %T') bellwether: attempt $((${SLURM_RESTART_COUNT:-0} + 1)): $SLURM_NTASKS tasks on $SLURM_JOB_NODELIST," \\
    "rendezvous at $MASTER_ADDR:$MASTER_PORT"
# When a rank fails, srun ends the others; otherwise they would wait for it forever.
srun --export=ALL --kill-on-bad-exit=1 --wait=60 --cpu-bind=cores --open-mode=append \\
    --output="logs/$id/rank%t.log" "${options[@]}" "${python[@]}" -m bellwether.trainer "$@"
status=$?
find "logs/$id" -maxdepth 1 -name 'rank*.log' -empty -delete # most ranks print nothing

job=$(scontrol show job -o "$id")
"${python[@]}" -m bellwether.launcher.requeue end --status "$status" --job "$job" "$@"
exit_code=$?
@END@if ((exit_code == 75)); then
    for try in {1..60}; do
        # Do not requeue a job that was cancelled in the meantime.
        now=$(scontrol show job -o "$id") && [[ $now != *JobState=RUNNING* && $job == *JobState=RUNNING* ]] && break
        scontrol requeue "$id" && exit 0
        # Retry while the controller is down. A refusal while it is up is final, as when SLURM itself has requeued the job.
        ((try > 2)) && scontrol ping | grep -q "is UP" && break
        sleep 5
    done
fi
exit "$exit_code"
"""
_BEGIN = """
# The trial's settings are chosen now, from the results so far, and stay the same in all its attempts.
run=$1
config=$("${python[@]}" -m bellwether.experiments.sweep.array begin @STUDY@ "$run") ||
    exit $(($? == 3 ? 0 : 1)) # 3: nothing to do
set -- "$config"
"""
_END = """\
((exit_code == 75)) || "${python[@]}" -m bellwether.experiments.sweep.array end @STUDY@ "$run"
"""


def main() -> int:
    """Write train.sbatch and sweep.sbatch to a folder."""
    folder = Path(sys.argv[1])
    (folder / "train.sbatch").write_text(render(SbatchJob(), Site()))
    (folder / "sweep.sbatch").write_text(render(SbatchJob(sweep=True), Site()))
    return 0


if __name__ == "__main__":
    sys.exit(main())

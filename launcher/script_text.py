"""The text of the sbatch scripts, which `bellwether.launcher.sbatch` puts together. Decisions belong to `bellwether.launcher.requeue`."""

from __future__ import annotations

import textwrap

HEAD = """\
#!/usr/bin/env bash
# Trains a config on one or more nodes, one process per GPU. After a preemption, a time limit or a failure the job is
# requeued and resumes from the newest checkpoint, until the run is finished:
#
#     sbatch --nodes=16 slurm/train.sbatch configs/bert-large-64k.yaml [key=value ...]
#
"""
HEAD_SWEEP = """\
#!/usr/bin/env bash
# Trains many configs as a job array, one per task. Each line of the file has the arguments of train.sbatch: a config and
# overrides.
#
#     sbatch --array=1-12%4 --nodes=1 slurm/sweep.sbatch runs.txt
#
# Every line needs a different name=..., as each name is one run.
#
"""
VARIABLES = """\
# The options below can be overridden on sbatch's command line; on nodes with 4 GPUs and 48 cores: --gpus-per-node=4
# --ntasks-per-node=4 --cpus-per-task=12. Environment variables hold what depends on the site:
#
#     BELLWETHER_MODULES     environment modules to load, as in "cuda/12.8 gcc/13"
#     BELLWETHER_VENV        virtual environment to activate (.venv, where there is one)
#     BELLWETHER_PACKED_ENV  archive that each node unpacks, as written by bellwether env pack
#     BELLWETHER_NODE_DIR    directory on each node's own disk (/tmp)
#     BELLWETHER_CONTAINER   prefix of the python command, as in "apptainer exec --nv image.sif"
#     BELLWETHER_IMAGE       image in which pyxis and enroot run all tasks, as in /shared/bellwether.sqsh
#     BELLWETHER_MOUNTS      directories of the host in that image, as in /shared,/scratch; the working directory is mounted too
#     BELLWETHER_INTERFACE   network interface for communication between ranks, as in ib0
#     BELLWETHER_SRUN        further options of srun, as in "--mpi=pmix"
#     BELLWETHER_RESTARTS    maximum number of restarts (50)
#     BELLWETHER_SPARES      how many of the nodes are spares, which replace bad ones (0); submit with --no-kill then
#     BELLWETHER_WAIT        seconds to wait while another job trains in the same run directory (300)
#
# Logs: this job's log has one line per attempt and its outcome; logs/JOB/ has the output of each rank. See docs/slurm.md.
#
"""
# Variables that launchers of processes set, besides SLURM_*.
LEFTOVER_PREFIXES = ("PMI", "OMPI_COMM_WORLD_", "TORCHELASTIC_")
LEFTOVERS = (
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "BELLWETHER_WORLD_SIZE",
    "BELLWETHER_SECRET", "BELLWETHER_LOCAL_RANK", "BELLWETHER_ATTEMPT",
)  # fmt: skip
# SLURM sets these for every job. Other variables may be those of the job in which sbatch was called.
OF_EVERY_JOB = (
    "CLUSTER_NAME", "CONF", "CONF_SERVER", "CPUS_ON_NODE", "GTIDS", "JOBID", "JOB_CPUS_PER_NODE", "JOB_GID", "JOB_ID", "JOB_NAME",
    "JOB_NODELIST", "JOB_NUM_NODES", "JOB_PARTITION", "JOB_UID", "JOB_USER", "JWT", "LOCALID", "NNODES", "NODEID",
    "NODELIST", "NODE_ALIASES", "PROCID", "SUBMIT_DIR", "SUBMIT_HOST", "TASKS_PER_NODE", "TASK_PID", "TOPOLOGY_ADDR",
    "TOPOLOGY_ADDR_PATTERN", "WORKING_CLUSTER",
)  # fmt: skip
OWN_JOB = r"""
# Where sbatch is called inside another job, it passes that job's variables on: only SLURM knows what belongs to this one.
if ! command -v scontrol >/dev/null; then
    echo "bellwether: scontrol is not in the PATH of this batch script on $SLURMD_NODENAME ($PATH); load SLURM's module before sbatch" >&2
    exit 1
fi
# What SLURM says about this job, in one line, without its name, which may look like any other field.
show_job() {
    local text name=${SLURM_JOB_NAME//$'\n'/ }
    text=$(scontrol show job -o "$1" | awk -v own="JobId=$SLURM_JOB_ID " \
        '/^JobId=/ { ours = index($0, own) == 1 } ours { printf "%s ", $0 }')
    [[ -n $text ]] && echo "${text/" JobName=$name "/ }"
}
for ((try = 1; ; try++)); do
    own=$(show_job "$SLURM_JOB_ID") && break
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
if [[ $own == *" HetJobId="* ]]; then
    echo "bellwether: a heterogeneous job (sbatch ... : ...) is not supported: its components are separate jobs, and the ranks of a" \
        "run are the tasks of one srun; submit one job with one kind of nodes" >&2
    exit 2
fi
series=${BELLWETHER_SERIES:-} chain=${BELLWETHER_CHAIN:-} arguments=("$@")
for name in "${!SLURM_@}" "${!SBATCH_@}" @PREFIXES@; do
    [[ " $of_every_job " == *" ${name#SLURM_} "* ]] || unset "$name"
done
forget() {
    unset @LEFTOVERS@
}
forget
unset BELLWETHER_SERIES BELLWETHER_CHAIN
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
OWN_JOB = (
    OWN_JOB.replace("@OF_EVERY_JOB@", " \\\n    ".join(textwrap.wrap(" ".join(OF_EVERY_JOB), 110)))
    .replace("@PREFIXES@", " ".join(f'"${{!{prefix}@}}"' for prefix in LEFTOVER_PREFIXES))
    .replace("@LEFTOVERS@", " \\\n        ".join(textwrap.wrap(" ".join(LEFTOVERS), 110)))
)
BODY_SWEEP = """
# Task N runs line N of the file.
line=$(sed -n "${SLURM_ARRAY_TASK_ID:?submit this as an array: sbatch --array=1-N}p" "${1:?no file given}")
if [[ -z $line ]]; then
    echo "bellwether: line $SLURM_ARRAY_TASK_ID of $1 is empty or missing" >&2
    exit 2
fi
eval "set -- $line"
"""
BODY = """
if (($# == 0)); then
    echo "bellwether: no config given; usage: sbatch [options] slurm/train.sbatch CONFIG [key=value ...]" >&2
    exit 2
fi

# On SIGTERM and SIGUSR2 the tasks save a checkpoint and exit. This shell must outlive them.
notified=0
trap 'notified=1' TERM USR2
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
if [[ -n ${BELLWETHER_IMAGE:-} ]]; then
    options+=(--container-image="$BELLWETHER_IMAGE" --container-workdir="$PWD"
        --container-mounts="$PWD:$PWD${BELLWETHER_MOUNTS:+,$BELLWETHER_MOUNTS}")
fi
python=("${container[@]}" python)
if [[ -n ${BELLWETHER_PACKED_ENV:-} ]]; then
    packed=${BELLWETHER_NODE_DIR:-/tmp}/bellwether-$SLURM_JOB_ID
    on_each_node() {
        local nodes=$SLURM_JOB_NUM_NODES # fewer when one was lost
        [[ $own =~ \\ NumNodes=([0-9]+)\\  ]] && nodes=${BASH_REMATCH[1]}
        timeout 600 srun --overlap --kill-on-bad-exit=0 --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 "$@"
    }
    trap 'on_each_node rm -rf "$packed"' EXIT
    if on_each_node "${python[@]}" -m bellwether.launcher.packed_env "$BELLWETHER_PACKED_ENV" "$packed"; then
        python=("${container[@]}" "$packed/bin/python")
    else
        echo "bellwether: ranks start from the shared environment, because not all nodes could unpack theirs" >&2
    fi
fi
@BEGIN@
# Since SLURM 22.05, srun does not inherit --cpus-per-task from sbatch.
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$SRUN_CPUS_PER_TASK}
if [[ -n ${BELLWETHER_INTERFACE:-} ]]; then
    export NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-$BELLWETHER_INTERFACE}
    export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-$BELLWETHER_INTERFACE}
fi

mkdir -p "logs/$id"
export BELLWETHER_KEEP_OUTPUT=0 # srun keeps each rank's output in logs/JOB/

# Every node checks itself, and whether it reaches this one over the network of the rendezvous. One srun per node: a node that does
# not answer must not end the check of the others.
check_nodes() {
    local address node server started=0 pids=()
    address=$("${python[@]}" -m bellwether.trainer.rendezvous --attempt "$((attempt + 1))") || return
    eval "$address"
    "${python[@]}" -m bellwether.launcher.doctor.quick --serve "$MASTER_ADDR:$MASTER_PORT" >/dev/null &
    server=$!
    for node in $(scontrol show hostnames "$(sed -E 's/.* NodeList=([^ ]*).*/\\1/' <<<"$own")"); do
        timeout -k 10 60 srun --export=ALL --overlap "${options[@]}" --nodes=1 --ntasks=1 --cpus-per-task=1 --nodelist="$node" \\
            "${python[@]}" -m bellwether.launcher.doctor.quick --reach "$MASTER_ADDR:$MASTER_PORT" "$@" 2>&1 &
        pids+=($!)
        ((++started % 64)) || wait "${pids[@]}"
    done
    wait "${pids[@]}"
    kill "$server" 2>/dev/null
}

# A failed attempt is followed by another one inside this allocation, as long as enough of its nodes are well.
attempt=0 tries=0 undecided=0
while true; do
    shown=$(show_job "$id") && own=$shown
    [[ $own =~ \\ Partition=([^\\ ,]+) ]] && usable=$(sinfo --noheader --Node --partition="${BASH_REMATCH[1]}" --format="%N %t")
    common=(--job "$own" --partition "${usable:-}" --series "$series" --chain "$chain" --tries "$((++tries))")
    checked=()
    ((tries > 1 || ${BELLWETHER_SPARES:-0} > 0)) && checked=(--check "$(check_nodes "$@")")

    # What to do, as assignments. Without an answer (Python cannot start, or its files cannot be read) the run goes on anyway.
    action=run code=1 step=() first=$SLURMD_NODENAME used=$SLURM_JOB_NODELIST tasks=$SLURM_NTASKS exclude="" grow="" resubmit=() next=""
    attempt=$((attempt + 1)) needed=$((SLURM_JOB_NUM_NODES - ${BELLWETHER_SPARES:-0}))
    ((needed == SLURM_JOB_NUM_NODES)) || step=(--nodes="$needed" --ntasks=$((tasks * needed / SLURM_JOB_NUM_NODES)))
    eval "$("${python[@]}" -m bellwether.launcher.requeue begin "${common[@]}" "${checked[@]}" "$@")"
    [[ $action == run ]] || break

    # MASTER_ADDR, MASTER_PORT and a secret, from the first node of the attempt, which knows its address and a free port. Each task
    # detects its own rank: a variable expanded here would give rank 0 to all.
    there=()
    [[ $first == "$SLURMD_NODENAME" ]] ||
        there=(srun --export=ALL --overlap "${options[@]}" --nodes=1 --ntasks=1 --cpus-per-task=1 --nodelist="$first")
    rendezvous=$("${there[@]}" "${python[@]}" -m bellwether.trainer.rendezvous --attempt "$attempt")
    status=$?
    eval "$rendezvous"
    size=$(stat -L --format=%s "/proc/$$/fd/2" 2>/dev/null)
    if ((notified)); then
        status=75 # SLURM is about to end this job
    elif ((status == 0)); then
        echo "$(date '+%F %T') bellwether: attempt $attempt: $tasks tasks on $used, rendezvous at $MASTER_ADDR:$MASTER_PORT"
        # In the run's heartbeat, which may be that of an earlier attempt, or of a node with another time.
        export BELLWETHER_ATTEMPT="$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}.$tries"
        # When a rank fails, srun ends the others; otherwise they would wait for it forever.
        srun --export=ALL --kill-on-bad-exit=1 --wait=600 --cpu-bind=cores --open-mode=append \\
            --output="logs/$id/rank%t.log" "${step[@]}" "${options[@]}" "${python[@]}" -m bellwether.trainer "$@"
        status=$?
        find "logs/$id" -maxdepth 1 -name 'rank*.log' -empty -delete # most ranks print nothing
    fi
    # srun's own messages name the task that failed first.
    messages=""
    [[ -f /proc/$$/fd/2 ]] && messages=$(tail -c "+$((${size:-0} + 1))" "/proc/$$/fd/2" | grep -a "^srun: " | head -n 50)

    shown=$(show_job "$id") && own=$shown
    action=none code=$status
    for try in 1 2 3; do
        eval "$("${python[@]}" -m bellwether.launcher.requeue end "${common[@]}" --job "$own" --status "$status" \\
            --messages "$messages" "$@")"
        [[ $action == none ]] || break
        sleep 10
    done
    if [[ $action == none ]]; then
        # As above, but not forever.
        echo "bellwether: no decision could be made; srun ended with status $status" >&2
        ((status == 0 || status == 2 || ++undecided + ${SLURM_RESTART_COUNT:-0} > 5)) && exit "$status"
        action=requeue
    fi
    [[ $action == retry ]] || break
done

# Only a pending job can be changed, and SLURM may be late to call it that.
change_nodes() {
    local answer try
    [[ -n $exclude$grow ]] || return 0
    for try in {1..20}; do
        # shellcheck disable=SC2086  # no option where there is nothing to change
        answer=$(scontrol update job="$id" ${grow:+NumNodes=$grow} ${exclude:+ExcNodeList=$exclude} 2>&1) && return
        sleep 1
    done
    echo "bellwether: scontrol update job=$id ${grow:+NumNodes=$grow} ${exclude:+ExcNodeList=$exclude}: $answer" >&2
}

requeue() {
    local answer now try
    for try in {1..60}; do
        # Do not requeue a job that was cancelled in the meantime.
        now=$(show_job "$id") && [[ $now != *JobState=RUNNING* && $own == *JobState=RUNNING* ]] && return 1
        # SLURM ends the processes of this script as soon as it has requeued the job.
        if answer=$(trap "" TERM && scontrol requeue "$id" 2>&1); then
            # The job cannot start before this script has ended.
            (trap "" TERM && change_nodes)
            return 0
        fi
        echo "bellwether: scontrol requeue: $answer" >&2
        [[ $answer == *disabled* ]] && break
        # Retry while the controller is down. A refusal while it is up is final, as when SLURM itself has requeued the job.
        ((try > 2)) && scontrol ping | grep -q "is UP" && return 1
        sleep 5
    done
    submit_again "$@"
}

# Where jobs may not be requeued, the next one goes on when this one has ended. It inherits nothing of this job.
submit_again() {
    local new
    [[ ${#resubmit[@]} -gt 0 ]] || return 1
    new=$(
        for name in "${!SLURM_@}" "${!SBATCH_@}"; do
            [[ $name == SLURM_CONF* || $name == SLURM_JWT ]] || unset "$name"
        done
        forget
        unset BELLWETHER_KEEP_OUTPUT SRUN_CPUS_PER_TASK
        sbatch --parsable "${resubmit[@]}" --dependency="afterany:$id" --export="ALL,BELLWETHER_SERIES=$series" "$0" "${arguments[@]}"
    ) || return 1
    new=${new%%;*}
    echo "$(date '+%F %T') bellwether: job $new goes on"
    "${python[@]}" -m bellwether.launcher.requeue submitted "${common[@]}" --new "$new" "$@"
}

if [[ $action == requeue ]]; then
    requeue "$@" && exit 0
    exit "$code"
fi
[[ -n $next && -n $exclude ]] && scontrol update job="$next" ExcNodeList="$exclude"
@END@exit "$code"
"""
BEGIN = """
# The trial's settings are chosen now, from the results so far, and stay the same in all its attempts.
run=$1
config=$("${python[@]}" -m bellwether.experiments.sweep.array begin @STUDY@ "$run") ||
    exit $(($? == 3 ? 0 : 1)) # 3: nothing to do
set -- "$config"
"""
END = """\
[[ -z ${status:-} ]] || "${python[@]}" -m bellwether.experiments.sweep.array end @STUDY@ "$run"
"""

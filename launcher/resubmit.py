"""The options of sbatch with which a job submits itself again, where it may not be requeued. A pure function.

The script has the options of its ``#SBATCH`` lines, and those of the command line are in what ``scontrol show job`` prints, except
``--signal``.
"""

from __future__ import annotations

import re
from collections.abc import Collection

_NONE = ("", "(null)", "N/A", "None", "Unknown")
# Fields of `scontrol show job -o` whose values sbatch takes as they are.
_OPTIONS = {
    "JobName": "job-name", "Partition": "partition", "Account": "account", "QOS": "qos", "Reservation": "reservation",
    "Features": "constraint", "Licenses": "licenses", "TimeLimit": "time", "CPUs/Task": "cpus-per-task", "WorkDir": "chdir",
    "MinMemoryNode": "mem", "MinMemoryCPU": "mem-per-cpu", "Comment": "comment", "WCKey": "wckey", "MailUser": "mail-user",
    "MailType": "mail-type", "Network": "network", "ArrayTaskId": "array",
}  # fmt: skip
_GPUS = {"TresPerTask": "gpus-per-task", "TresPerJob": "gpus", "TresPerSocket": "gpus-per-socket"}


def options(job: str, nodes: int, tasks: int, exclude: Collection[str] = ()) -> list[str]:
    """sbatch's options for a job like this one.

    Args:
        job: the output of ``scontrol show job -o``.
        nodes: number of nodes; what scontrol shows shrinks when one is lost.
        tasks: number of tasks.
        exclude: nodes that the new job must not get, besides those that this job excludes.
    """
    values = fields(job)
    found = [f"--nodes={nodes}", f"--ntasks={tasks}"]
    for name, option in _OPTIONS.items():
        value = values.get(name, "").strip()
        if value not in _NONE and (name, value) != ("MinMemoryNode", "0"):
            found.append(f"--{option}={value}")
    per_node = _gres(values.get("TresPerNode", "")).split(",")
    # Another option than this one would add to the GPUs of the script.
    found += [f"--gpus-per-node={gres.removeprefix('gpu:')}" for gres in per_node[:1] if gres.startswith("gpu")]
    if others := ",".join(gres for gres in per_node if gres and not gres.startswith("gpu")):
        found.append(f"--gres={others}")
    found += [
        f"--{option}={gres.removeprefix('gpu:')}"
        for name, option in _GPUS.items()
        if (gres := _gres(values.get(name, "")))
    ]
    if tasks_per_node(job):
        found.append(f"--ntasks-per-node={tasks_per_node(job)}")
    if values.get("OverSubscribe") == "NO":
        found.append("--exclusive")
    if values.get("StdOut", "") not in _NONE:
        found.append(f"--output={_log_pattern(values)}")
    excluded = [name for name in (values.get("ExcNodeList", ""), *sorted(exclude)) if name not in _NONE]
    if excluded:
        found.append(f"--exclude={','.join(excluded)}")
    return found


def fields(job: str) -> dict[str, str]:
    """The fields of a job, from the output of ``scontrol show job -o``; a value may have spaces.

    >>> fields("JobId=7 Comment=two words StdIn=/dev/null ")
    {'JobId': '7', 'Comment': 'two words', 'StdIn': '/dev/null'}
    """
    return dict(re.findall(r"(?:^| )([A-Z][\w/:]*)=(.*?)(?=\s+[A-Z][\w/:]*=|\s*$)", job))


def tasks_per_node(job: str) -> int:
    """``--ntasks-per-node``; 0 where it was not given."""
    match = re.match(r"(\d+):", fields(job).get("NtasksPerN:B:S:C", ""))
    return int(match[1]) if match else 0


def _gres(tres: str) -> str:
    """The value of --gres for one of TresPerNode.

    >>> _gres("gres:gpu:a100:8"), _gres("gres/gpu:2,gres/shard:1"), _gres("(null)")
    ('gpu:a100:8', 'gpu:2,shard:1', '')
    """
    return ",".join(part[5:] for part in tres.split(",") if part.startswith(("gres:", "gres/")))


def _log_pattern(values: dict[str, str]) -> str:
    """The job's log, with patterns in place of its numbers, so that the new job gets its own."""
    log, job, array, task = (values.get(name, "") for name in ("StdOut", "JobId", "ArrayJobId", "ArrayTaskId"))
    if array and task.isdigit():
        return log.replace(f"{array}_{task}", "%A_%a")
    return re.sub(rf"(?<!\d){re.escape(job)}(?!\d)", "%j", log) if job else log

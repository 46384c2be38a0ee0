"""What a SLURM job does before and after each attempt. Its batch script calls this, and executes what it prints.

    python -m bellwether.launcher.requeue begin --job "$(scontrol show job -o ...)" CONFIG [key=value ...]
    python -m bellwether.launcher.requeue end --status N --job "$(scontrol show job -o ...)" CONFIG [key=value ...]

The output is assignments for the shell: ``action`` is ``run`` (on the nodes of ``step``), ``retry`` (begin again), ``requeue`` (without
the nodes of ``exclude``) or ``exit`` (with ``code``). Messages go to standard error. `bellwether.launcher.decision` decides, from the
record of the attempts in ``<run>/logs/attempts.jsonl``; `bellwether.launcher.placement` chooses nodes. The record is best effort: a
file system that fails ends no run. Imports nothing heavy.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from bellwether.launcher import attempts, console, resubmit
from bellwether.launcher.attempts import Attempt, best_effort, is_finished, newest_checkpoint
from bellwether.launcher.decision import EXIT, REQUEUE, Decision, decide, is_repeated, suspects
from bellwether.launcher.doctor import quick
from bellwether.launcher.outcome import heartbeat_at_end, true_status, who_failed
from bellwether.launcher.placement import RUN, Placement, bad_nodes, place
from bellwether.launcher.slurm_job import Job, job_of, number_of
from bellwether.launcher.srun_messages import first_failure
from bellwether.trainer import run_lock, run_paths, signals
from bellwether.trainer.config import Config, ConfigError, ConfigErrors, load

log = logging.getLogger("bellwether.launcher.requeue")  # __name__ is __main__ in the batch script

WAIT = 300  # seconds for which a job waits for another one that trains in its run directory
_POLL_SECONDS = 5.0


def begin(run: Path, config: Config | None, job: Job, check: str | None) -> dict[str, object]:
    """Record the start of an attempt. Returns the assignments.

    Args:
        check: the output of `bellwether.launcher.doctor.quick` on all nodes; None: not made.
    """
    if (occupied := _wait_for_others(run, job)) is not None:
        _print(job, f"{occupied} trains in {run}, nothing to do here")
        return _exit(0)
    if best_effort("looking for finished.json", lambda: is_finished(run), False):
        _print(job, f"{run} is finished, nothing to do")
        return _exit(0)
    before = job.attempts(run)
    # Checked here too: when the first node dies, `end` does not run.
    made = max(len(before), job.made)
    if made > job.restarts:
        _print(job, f"started {made} times, and BELLWETHER_RESTARTS allows {job.restarts} restarts")
        return _exit(1)
    if before and before[-1].stopped and before[-1].job != job.number:
        _print(job, f"job {before[-1].job} of this chain has ended: {before[-1].reason}")
        return _exit(1)
    if config is not None:
        _check_gpus(config, job)
    if before and before[-1].ended is None:
        _print(job, "the previous attempt recorded no end: its first node was lost, or its script was killed")
    placement = _place(run, job, before, check)
    if placement.reason:
        _print(job, placement.reason, made + 1)
    if placement.exclude:
        best_effort("writing attempts.jsonl", lambda: attempts.excluded(run, job.number, placement.exclude), None)
    if placement.action == EXIT:
        return _exit(1)
    if placement.action == REQUEUE:
        return _requeue(run, job, placement.exclude)
    used = list(placement.nodes)
    tasks = job.tasks // job.nodes * job.needed if job.spares else job.tasks
    attempt = Attempt(
        job=job.number, restart=job.restart, time=round(time.time(), 3),
        nodes=",".join(used) or os.environ.get("SLURM_JOB_NODELIST", ""), tasks=tasks,
        log=str(Path.cwd() / attempts.rank0_log(job.task)),
        step=best_effort("looking for checkpoints", lambda: newest_checkpoint(run), 0),
        series="" if job.series == job.number else job.series,
    )  # fmt: skip
    best_effort("writing attempts.jsonl", lambda: attempts.began(run, attempt), None)
    found: dict[str, object] = {"action": RUN, "attempt": made + 1, "tasks": tasks}
    if used:
        found |= {"used": attempt.nodes, "first": used[0], "step": _step_options(used, tasks)}
    return found


def end(run: Path, status: int, messages: str, job: Job) -> dict[str, object]:
    """Record the end of an attempt. Returns the assignments.

    Args:
        status: exit status of srun.
        messages: what srun wrote to standard error.
    """
    history = job.attempts(run)
    # Another job may have tried the same run in the meantime, and been refused.
    own = [attempt for attempt in history if attempt.job == job.number]
    if not own:  # no start could be recorded
        own = history = [*history, Attempt(job.number, job.restart, 0.0, "", job.tasks, "", 0, series=job.series)]
    reached, slack, outcome, silent = heartbeat_at_end(run, own[-1], job.attempt)
    failure = first_failure(messages)
    status = true_status(status, outcome, failure)
    saved = best_effort("looking for checkpoints", lambda: newest_checkpoint(run), own[-1].step)
    last = replace(own[-1], status=status, reached=max(reached, saved), slack=slack, saved=saved)
    if status not in (0, 2, signals.SAVED):
        nodes, ranks = who_failed(status, failure, silent)
        last = replace(last, failed_on=nodes, failed_ranks=ranks)
    history = [*(attempt for attempt in history if attempt is not own[-1]), last]
    decision = decide(
        history, status, finished=best_effort("looking for finished.json", lambda: is_finished(run), False),
        restarts=job.restarts, job=job.shown, busy=_holder(run, job) or "", made=job.made + 1,
    )  # fmt: skip
    if status == 0 and outcome == "diverged":
        decision = replace(decision, reason=f"the loss diverged; the newest checkpoint is that of step {saved:,}")
    last = replace(last, ended=round(time.time(), 3), reason=decision.reason, stopped=decision.stopped)
    best_effort("writing attempts.jsonl", lambda: attempts.ended(run, last), None)
    _print(job, decision.reason, max(len(history), job.made + 1))
    return _follow(run, job, decision, history)


def _follow(run: Path, job: Job, decision: Decision, history: Sequence[Attempt]) -> dict[str, object]:
    if decision.action == EXIT:
        return _exit(decision.code)
    if decision.action == REQUEUE:
        nodes = suspects(history)
        if job.partition and len(set(job.partition) - set(nodes)) < job.nodes:
            nodes = {}
        return _requeue(run, job, nodes)
    return {"action": decision.action}


def _exit(code: int) -> dict[str, object]:
    return {"action": EXIT, "code": code}


def _requeue(run: Path, job: Job, exclude: Mapping[str, str]) -> dict[str, object]:
    """Requeue the job, or let the next job of the chain go on. If SLURM refuses, the script submits the job again."""
    before = resubmit.fields(job.shown).get("ExcNodeList", "")
    excluded = ",".join([*([before] if before not in ("", "(null)") else []), *sorted(exclude)]) if exclude else ""
    if exclude:
        _print(job, f"excluded from now on: {', '.join(f'{node} ({why})' for node, why in exclude.items())}")
    if job.links:
        following = best_effort("reading attempts.jsonl", lambda: attempts.next_of(run, job.number), "")
        if job.link < job.links:
            _print(job, f"the next job of the chain goes on ({job.link} of {job.links} have run)")
            return {**_exit(0), "next": following, "exclude": excluded}
        _print(job, f"all {job.links} jobs of the chain have run: submit the run again to go on")
        return _exit(1)
    named = [f"--job-name={os.environ['SLURM_JOB_NAME']}"] if "SLURM_JOB_NAME" in os.environ else []
    shrunk = job.nodes if resubmit.fields(job.shown).get("NumNodes") != str(job.nodes) else ""
    return {
        "action": REQUEUE, "code": 1, "exclude": excluded, "grow": shrunk, "series": f"{job.series}:{job.link + 1}",
        "resubmit": [*named, *resubmit.options(job.shown, job.nodes, job.tasks, exclude)],
    }  # fmt: skip


def _place(run: Path, job: Job, before: Sequence[Attempt], check: str | None) -> Placement:
    allocated, suspected = job.allocated, suspects(before)
    if not allocated or (check is None and not suspected.keys() & set(allocated)):
        return Placement(RUN)
    reports = [] if check is None else quick.reports(check)
    if check is not None and not reports:
        _print(job, f"the check of the nodes had no answer: {' '.join(check.split())[-300:]}")
        return (
            Placement(RUN, tuple(allocated[: job.needed]))
            if not before
            else Placement(REQUEUE, reason="no node answers")
        )
    bad = {} if check is None else bad_nodes(allocated, reports, allocated[0])
    return place(
        allocated, job.needed, requested=job.nodes, bad=bad, suspects=suspected, partition=job.partition,
        repeated=len(before) > 1 and is_repeated(before[-2], before[-1]),
    )  # fmt: skip


def _step_options(nodes: Sequence[str], tasks: int) -> list[str]:
    per_node = -(-tasks // len(nodes))
    return [
        f"--nodes={len(nodes)}",
        f"--ntasks={tasks}",
        f"--ntasks-per-node={per_node}",
        f"--nodelist={','.join(nodes)}",
    ]


def _wait_for_others(run: Path, job: Job) -> str | None:
    """Wait while another job trains in the run directory. Returns its lock's holder if it still does."""
    seconds = number_of("BELLWETHER_WAIT", WAIT)
    deadline = time.monotonic() + seconds
    announced = False
    while (occupied := _holder(run, job)) is not None and time.monotonic() < deadline:
        if not announced:
            _print(job, f"waits up to {seconds} s for {occupied or 'another process'}, which trains in {run}")
            announced = True
        time.sleep(min(_POLL_SECONDS, max(0.0, deadline - time.monotonic())))
    return None if occupied is None else occupied or "another process"


def _holder(run: Path, job: Job) -> str | None:
    """The process of another job that trains in the run directory, or None. `trainer.rundir` waits for those of this job."""
    occupied = best_effort("looking for a lock", lambda: run_lock.holder(run), None)
    return occupied if occupied is not None and run_lock.job_of(occupied) != job.number else None


def _check_gpus(config: Config, job: Job) -> None:
    """Refuse a job whose tasks leave GPUs idle.

    Raises:
        ConfigError: naming the option of sbatch.
    """
    if config.engine.device == "cpu":
        return
    gpus = sum(
        int(part.rpartition(":")[2])
        for part in re.split("[,]", resubmit.fields(job.shown).get("TresPerNode", ""))
        if re.match(r"gres[:/]gpu:(\w+:)?\d+$", part)
    )
    tasks = -(-job.tasks // max(1, job.nodes))
    if gpus > tasks:
        option = "--ntasks" if resubmit.tasks_per_node(job.shown) > tasks else "--ntasks-per-node"
        problem = f"{tasks} task{'s' if tasks > 1 else ''} a node would use as many of its {gpus} GPUs, and leave the others idle"
        fix = f"one task per GPU: --ntasks-per-node={gpus} without -n, or --gpus-per-node={tasks}"
        raise ConfigError(f"sbatch {option}", job.tasks, problem, fix)


def _print(job: Job, text: str, attempt: int | None = None) -> None:
    number = f" attempt {attempt}:" if attempt is not None else ""
    print(f"{time.strftime('%F %T')} bellwether:{number} {text}", file=sys.stderr, flush=True)


def _shell(assignments: Mapping[str, object]) -> str:
    """Assignments that a shell evaluates; lists become arrays."""
    words = [
        f"{name}=({shlex.join(value)})" if isinstance(value, list) else f"{name}={shlex.quote(str(value))}"
        for name, value in assignments.items()
    ]
    return " ".join(words)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bellwether.launcher.requeue", description="Decides what a SLURM job does next."
    )
    parser.add_argument("when", choices=["begin", "end", "submitted"])
    parser.add_argument("--status", type=int, default=0, help="exit status of srun")
    parser.add_argument("--messages", default="", help="srun's standard error")
    parser.add_argument("--job", default="", help="output of scontrol show job -o")
    parser.add_argument("--check", help="output of the check of all nodes")
    parser.add_argument("--partition", default="", help="output of sinfo -N -o '%%N %%t'")
    parser.add_argument("--tries", type=int, default=1, help="attempts that this script has made, with this one")
    parser.add_argument("--series", default="", help="first job of the chain, and number of this one in it, as in 12:3")
    parser.add_argument("--chain", default="", help="number of this job, and of those that were submitted, as in 2/4")
    parser.add_argument("--new", default="", help="the job that was submitted")
    parser.add_argument("config", metavar="CONFIG")
    parser.add_argument("overrides", metavar="key=value", nargs="*")
    arguments = parser.parse_args(argv)
    console.setup()
    try:
        job = job_of(arguments)
        config = load(arguments.config, arguments.overrides)
        run = run_paths.directory(config)
        if arguments.when == "submitted":
            file = str(Path.cwd() / attempts.rank0_log(arguments.new))
            best_effort(
                "writing attempts.jsonl", lambda: attempts.submitted(run, arguments.new, file, job.series), None
            )
            return 0
        if arguments.when == "begin":
            best_effort("deleting old logs", lambda: attempts.prune_logs(run, config.log.keep), None)
            found = begin(run, config, job, arguments.check)
        else:
            found = end(run, arguments.status, arguments.messages, job)
    except (ConfigError, ConfigErrors) as error:
        for line in str(error).splitlines():
            log.error("%s", line)
        found = _exit(2)
    print(_shell(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A sweep as SLURM job arrays: a task a run, each decided when it begins.

    python -m bellwether.experiments.sweep.array begin SWEEP_DIR RUN      prints the run's config, made when it is asked for first
    python -m bellwether.experiments.sweep.array end SWEEP_DIR RUN        notes how it ended

are for the batch script that `bellwether sweep --on slurm` submits.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout

from bellwether.experiments.sweep import spec
from bellwether.experiments.sweep.slots import Slot, slots
from bellwether.experiments.sweep.spec import Sweep
from bellwether.experiments.sweep.study import ConfigChanged, NothingToRepeat, Study, open_study
from bellwether.launcher import launch, requeue, sbatch, site_config
from bellwether.launcher.launch import Request
from bellwether.trainer import signals
from bellwether.trainer.config import ConfigError, ConfigErrors
from bellwether.trainer.report.facts import count

JOBS = "jobs.txt"  # numbers of the arrays that were submitted
_DONE = 3  # exit status, as of launcher.requeue begin
_LARGEST = 1001  # SLURM's own MaxArraySize, where scontrol does not tell


def submit(sweep: Sweep, request: Request, jobs: int | None, retry: bool) -> int:
    """Submit what is left of a sweep. Returns the exit status for the shell."""
    where = site_config.load(request.site)
    asked = job(sweep, request, where)
    study = Study(sweep)
    directory = os.path.abspath(study.directory)
    if request.dry_run:
        left = study.pending()
        best = sum(slot.setting is None for slot in left)
        after = f", and {count(best, 'repetition')} of the best in another, after it" if best else ""
        told = f"a job array of {count(len(left) - best, 'run')}{after}" if left else "nothing is left to do"
        print(f"bellwether: {told}", file=sys.stderr)
        print(sbatch.render(asked, where, [os.path.join(directory, "array-1.txt")]), end="")
        return 0
    study.prepare()
    with alone(study):
        if retry:
            study.retry()
        return _submit(study, study.pending(), request, where, asked, jobs)


def _submit(
    study: Study, left: list[Slot], request: Request, where: site_config.Site, asked: sbatch.Job, jobs: int | None
) -> int:
    parts = [[s for s in left if s.setting is not None], [s for s in left if s.setting is None]]
    size = _largest() - 1
    after: list[str] = []
    for part in parts:
        numbers: list[str] = []
        for chunk in (part[i : i + size] for i in range(0, len(part), size)):
            # A name of its own: tasks read their line when they begin.
            file = study.directory / f"array-{time.strftime('%Y%m%d-%H%M%S')}-{len(after) + len(numbers) + 1}.txt"
            file.write_text("".join(f"{slot.name}\n" for slot in chunk))
            script = sbatch.render(asked, where, [os.path.abspath(file)])
            # The best of a batch is known once all that is searched there has ended, however it did.
            wait = [f"--dependency=afterany:{':'.join(after)}"] if after else []
            throttle = "" if jobs is None else f"%{jobs}"
            number = launch.submit(script, request, where, f"--array=1-{len(chunk)}{throttle}", *wait)
            if number is None:
                return 1
            numbers.append(number)
            with open(study.directory / JOBS, "a") as stream:
                stream.write(f"{number}\n")
            print(f"submitted job array {number}: {count(len(chunk), 'run')}" + (", after the others" if wait else ""))
        after += numbers
    if not left:
        print(f"nothing is left to do in {study.directory}")
        return 0
    print(f"  how it goes   squeue --jobs {','.join(after)}")
    print(f"  what came out bellwether report {study.directory}    (at any time)")
    print(f"  end it        scancel {' '.join(after)}    (what is done is saved; the same command goes on)")
    return 0


def job(sweep: Sweep, request: Request, where: site_config.Site) -> sbatch.Job:
    """What is asked for each run: the processes that the sweep names, unless the command line says others."""
    base = spec.base(sweep)
    asked = launch.job(request, base, where)
    if request.gpus_per_node is None and request.tasks_per_node is None:
        each = min(sweep.processes, asked.tasks_per_node)
        nodes = -(-sweep.processes // each)
        gpus = 0 if base.engine.device == "cpu" else each
        asked = replace(asked, nodes=request.nodes or nodes, tasks_per_node=each, gpus_per_node=gpus)
    if request.cpus_per_task is None and where.cpus_per_task is None and not asked.gpus_per_node:
        asked = replace(asked, cpus_per_task=sweep.cores)
    for batch in sweep.batches:
        launch.check_split(spec.config(sweep, {**sweep.set, "batch.global": batch}), asked.nodes * asked.tasks_per_node)
    return replace(asked, name=sweep.name, sweep=True, study=os.path.abspath(sweep.directory))


@contextmanager
def alone(study: Study) -> Iterator[None]:
    """While nobody else starts runs of a sweep: neither another command, nor a job array that SLURM still has.

    Raises:
        ConfigError: if somebody does.
    """
    key, name, where = "name", study.sweep.name, study.directory
    try:
        with FileLock(where / ".lock", blocking=False):
            file = where / JOBS
            for number in file.read_text().split() if file.exists() and shutil.which("squeue") else []:
                done = subprocess.run(["squeue", "--noheader", "--jobs", number], capture_output=True, text=True)
                if done.returncode == 0 and done.stdout.strip():
                    raise ConfigError(key, name, f"job {number} works on {where}", "wait for it, or scancel it")
            yield
    except Timeout:
        problem = f"another bellwether sweep works in {where}"
        raise ConfigError(key, name, problem, "wait for it, or end it") from None


def _largest() -> int:
    done = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True)
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", done.stdout, re.MULTILINE)
    return int(found[1]) if found else _LARGEST


def begin(study: Study, slot: Slot) -> int:
    """Print the path of the run's config. Returns `_DONE` where there is nothing to do."""
    # Two that begin at once would choose the same setting.
    with FileLock(study.directory / ".begin.lock"):
        try:
            run = study.decided(slot)
        except NothingToRepeat as error:
            print(f"bellwether: {error}", file=sys.stderr)
            return _DONE
        if run is None:
            print(f"bellwether: {slot.name} waits for the runs that it is the best of", file=sys.stderr)
            return 1
        if study.status(run) not in ("unfinished", "failed"):
            print(f"bellwether: {run.name} is at its end", file=sys.stderr)
            return _DONE
        try:
            study.begin(run)
        except ConfigChanged as error:
            print(f"bellwether: {error}", file=sys.stderr)
            return 1
        except (ConfigError, ConfigErrors) as error:
            study.fail(run, str(error))
            raise
    print(os.path.abspath(study.config_file(run)))
    return 0


def end(study: Study, slot: Slot) -> int:
    """Note a failure, take away checkpoints that nobody needs, and bring the table up to date."""
    with FileLock(study.directory / ".begin.lock"):
        run = study.decided(slot)
    assert run is not None  # it has begun
    last = requeue.attempts(study.trials / run.name)[-1]
    if study.status(run) == "unfinished":
        if last.status not in (signals.SAVED, signals.LOST):  # not where somebody cancelled it, or SLURM took it back
            study.fail(run, f"{last.reason}; its log is {last.log}")
    elif study.status(run) != "failed":
        study.tidy(run)
    with FileLock(study.directory / ".begin.lock"):
        study.write_table()
    return 0


def main() -> int:
    when, directory, name = sys.argv[1:]
    try:
        study = open_study(Path(directory))
        slot = next((slot for slot in slots(study.sweep) if slot.name == name), None)
        if slot is None:
            raise ConfigError("RUN", name, f"is none of {directory}", "submit the sweep anew")
        return begin(study, slot) if when == "begin" else end(study, slot)
    except (ConfigError, ConfigErrors) as error:
        print(f"bellwether: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

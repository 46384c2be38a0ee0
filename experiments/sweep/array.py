"""A sweep as SLURM job arrays: one task per trial. The parameters of a trial are decided when its task starts.

The batch script that `bellwether sweep --on slurm` submits calls::

    python -m bellwether.experiments.sweep.array begin STUDY_DIR TRIAL      starts the trial and prints the path of its config
    python -m bellwether.experiments.sweep.array end STUDY_DIR TRIAL        records how the trial ended
"""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from filelock import BaseFileLock

from bellwether.experiments.sweep import spec
from bellwether.experiments.sweep.lock import JOBS, exclusive
from bellwether.experiments.sweep.spec import Sweep
from bellwether.experiments.sweep.study import ConfigChanged, NothingToRepeat, Study, open_study
from bellwether.experiments.sweep.trial_ids import TrialId, trial_ids
from bellwether.launcher import attempts, console, launch, sbatch, site_config
from bellwether.launcher.launch import LaunchRequest
from bellwether.trainer import signals
from bellwether.trainer.config import ConfigError, ConfigErrors
from bellwether.trainer.file_locks import file_lock
from bellwether.trainer.report.facts import count

_log = logging.getLogger(__name__)

_DONE = 3  # exit status of `begin`: nothing to do; as of launcher.requeue begin
_MAX_ARRAY_SIZE = 1001  # SLURM's default of MaxArraySize, where scontrol does not tell


def submit(sweep: Sweep, request: LaunchRequest, jobs: int | None, retry: bool) -> int:
    """Submit the trials of a sweep that are left. Returns the exit status for the shell.

    Args:
        jobs: maximum number of concurrent trials; None: no limit.
        retry: whether failed trials are run again.
    """
    site = site_config.load(request.site).with_venv()
    resources = trial_job(sweep, request, site)
    study = Study(sweep)
    if request.dry_run:
        _print_dry_run(study, resources, site)
        return 0
    study.prepare()
    with exclusive(study):
        if retry:
            study.reset_failed()
        return _submit(study, study.pending(), request, site, resources, jobs)


def _print_dry_run(study: Study, resources: sbatch.SbatchJob, site: site_config.Site) -> None:
    pending = study.pending()
    repetitions = sum(trial_id.setting is None for trial_id in pending)
    after = f", then an array of {count(repetitions, 'repetition')} of the best settings" if repetitions else ""
    summary = f"a job array of {count(len(pending) - repetitions, 'trial')}{after}" if pending else "nothing to run"
    _log.info("%s", summary)
    file = os.path.join(os.path.abspath(study.directory), "array-1.txt")
    print(sbatch.render(resources, site, [file]), end="")


def _submit(
    study: Study,
    pending: list[TrialId],
    request: LaunchRequest,
    site: site_config.Site,
    resources: sbatch.SbatchJob,
    jobs: int | None,
) -> int:
    if not pending:
        print(f"nothing is left to do in {study.directory}")
        return 0
    searched = [trial_id for trial_id in pending if trial_id.setting is not None]
    repetitions = [trial_id for trial_id in pending if trial_id.setting is None]
    size = _max_array_size() - 1
    submitted: list[str] = []
    for part in (searched, repetitions):
        # The best setting is known once all searched trials have ended, whatever their status.
        options = [f"--dependency=afterany:{':'.join(submitted)}"] if submitted else []
        after = ", after the others" if submitted else ""
        for chunk in [part[i : i + size] for i in range(0, len(part), size)]:
            file = _write_task_list(study, chunk, len(submitted) + 1)
            script = sbatch.render(resources, site, [os.path.abspath(file)])
            limit = "" if jobs is None else f"%{jobs}"
            number = launch.submit(script, request, site, f"--array=1-{len(chunk)}{limit}", *options)
            if number is None:
                return 1
            submitted.append(number)
            with open(study.directory / JOBS, "a") as stream:
                stream.write(f"{number}\n")
            print(f"submitted job array {number}: {count(len(chunk), 'trial')}{after}")
    print(f"  queue   squeue --jobs {','.join(submitted)}")
    print(f"  report  bellwether report {study.directory}    (at any time)")
    print(f"  cancel  scancel {' '.join(submitted)}    (running trials save; the same command resumes them)")
    return 0


def _write_task_list(study: Study, chunk: list[TrialId], number: int) -> Path:
    """One trial per line. The name is unique: tasks read their line when they start."""
    file = study.directory / f"array-{time.strftime('%Y%m%d-%H%M%S')}-{number}.txt"
    file.write_text("".join(f"{trial_id.name}\n" for trial_id in chunk))
    return file


def trial_job(sweep: Sweep, request: LaunchRequest, site: site_config.Site) -> sbatch.SbatchJob:
    """The resources of each trial: the sweep's number of processes, unless the command line sets another."""
    base = spec.base(sweep)
    resources = launch.sbatch_job(request, base, site)
    if request.gpus_per_node is None and request.tasks_per_node is None:
        per_node = min(sweep.processes, resources.tasks_per_node)
        nodes = request.nodes or -(-sweep.processes // per_node)
        gpus = 0 if base.engine.device == "cpu" else per_node
        resources = replace(resources, nodes=nodes, tasks_per_node=per_node, gpus_per_node=gpus)
    if request.cpus_per_task is None and site.cpus_per_task is None and not resources.gpus_per_node:
        resources = replace(resources, cpus_per_task=sweep.cores)
    for batch in sweep.batches:
        config = spec.config(sweep, {**sweep.set, "batch.global": batch})
        launch.check_split(config, resources.nodes * resources.tasks_per_node)
    # An array task that may not be requeued submits itself again.
    return replace(resources, name=sweep.name, requeue=True, sweep=True, study=os.path.abspath(sweep.directory))


def _max_array_size() -> int:
    done = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True)
    match = re.search(r"^MaxArraySize\s*=\s*(\d+)", done.stdout, re.MULTILINE)
    return int(match[1]) if match else _MAX_ARRAY_SIZE


# In the tasks


def begin(study: Study, trial_id: TrialId) -> int:
    """Start a trial and print the path of its config. Returns `_DONE` if there is nothing to do."""
    with _lock(study):  # two tasks that start at once would choose the same setting
        try:
            resolved = study.resolve(trial_id)
        except NothingToRepeat as error:
            _log.info("%s", error)
            return _DONE
        if resolved is None:
            _log.error("%s waits for trials that have not ended", trial_id.name)
            return 1
        if study.status(resolved) not in ("unfinished", "failed"):
            _log.info("%s has ended already", resolved.name)
            return _DONE
        try:
            study.start(resolved)
        except ConfigChanged as error:
            _log.error("%s", error)
            return 1
        except (ConfigError, ConfigErrors) as error:
            study.fail(resolved, str(error))
            raise
    print(os.path.abspath(study.config_file(resolved)))
    return 0


def end(study: Study, trial_id: TrialId) -> int:
    """Record a failure, delete checkpoints that are no longer needed, and update the measurements."""
    with _lock(study):
        resolved = study.resolve(trial_id)
    assert resolved is not None  # the trial has started
    tries = attempts.read(study.trials_dir / resolved.name)
    if study.status(resolved) == "unfinished":
        # Cancelled by a user or requeued by SLURM is no failure.
        if not tries:
            study.fail(resolved, "no record of its attempts")
        elif tries[-1].status not in (signals.SAVED, signals.LOST):
            study.fail(resolved, f"{tries[-1].reason}; its log is {tries[-1].log}")
    elif study.status(resolved) != "failed":
        study.delete_checkpoints(resolved)
    with _lock(study):
        study.write_measurements()
    return 0


def _lock(study: Study) -> BaseFileLock:
    return file_lock(study.directory / ".begin.lock")


def main() -> int:
    console.setup()
    when, directory, name = sys.argv[1:]
    try:
        study = open_study(Path(directory))
        trial_id = next((each for each in trial_ids(study.sweep) if each.name == name), None)
        if trial_id is None:
            raise ConfigError("TRIAL", name, f"is not a trial of {directory}", "submit the sweep again")
        return begin(study, trial_id) if when == "begin" else end(study, trial_id)
    except (ConfigError, ConfigErrors) as error:
        for line in str(error).splitlines():
            _log.error("%s", line)
        return 2


if __name__ == "__main__":
    sys.exit(main())

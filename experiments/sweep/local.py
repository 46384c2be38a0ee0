"""A sweep on this machine: as many trials at a time as it has cores or GPUs for."""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from tqdm import tqdm

from bellwether.experiments.sweep import search
from bellwether.experiments.sweep.lock import exclusive
from bellwether.experiments.sweep.slots import Slot, available_cores, available_gpus, slots
from bellwether.experiments.sweep.spec import Sweep
from bellwether.experiments.sweep.study import ConfigChanged, NothingToRepeat, Study
from bellwether.experiments.sweep.trial_ids import TrialId, trial_ids
from bellwether.trainer import signals
from bellwether.trainer.config import ConfigError, ConfigErrors
from bellwether.trainer.report.facts import count

_log = logging.getLogger(__name__)

_POLL = 0.2  # seconds
_SAVE_TIMEOUT = 120  # seconds that trials have to save after a signal
_WRITE_INTERVAL = 30  # seconds between two updates of measurements.csv


@dataclass
class Running:
    """A trial that runs in a slot."""

    trial_id: TrialId
    slot: Slot
    process: ForkServerProcess | subprocess.Popen[bytes]
    log: Path

    @property
    def exit_status(self) -> int | None:
        return self.process.exitcode if isinstance(self.process, ForkServerProcess) else self.process.poll()


def run(sweep: Sweep, jobs: int | None, retry: bool) -> int:
    """Run the trials of a sweep that are left. Returns the exit status for the shell.

    Args:
        jobs: maximum number of concurrent trials; None: as many as fit.
        retry: whether failed trials are run again.
    """
    study = Study(sweep)
    study.prepare()
    with exclusive(study):
        if retry and (failed := study.reset_failed()):
            _log.info("retrying %s", count(failed, "failed trial"))
        return _Scheduler(study, jobs).run()


class _Scheduler:
    """Starts pending trials in free slots until none is left or a signal arrives."""

    def __init__(self, study: Study, jobs: int | None) -> None:
        self.study, self.sweep = study, study.sweep
        self.gpus = available_gpus(self.sweep)
        self.free = slots(self.sweep, available_cores(), self.gpus, jobs)
        self.pending: list[TrialId] = []
        self.running: list[Running] = []
        self.signals: list[int] = []  # that asked to stop
        self.blocked = False  # every pending trial waits for a running one
        self.config_changed = ""  # message of the error after which no trial may start
        self.last_written = 0.0
        self.context = multiprocessing.get_context("forkserver")
        # Importing takes longer than many a small trial. A forked process cannot use GPUs, so it is for CPUs alone.
        if self._forks:
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
            self.context.set_forkserver_preload(["bellwether.experiments.sweep.worker"])

    @property
    def _forks(self) -> bool:
        return not self.gpus and self.sweep.processes == 1

    def run(self) -> int:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
            signal.signal(number, lambda number, _: self.signals.append(number))
        total = sum(1 for _ in trial_ids(self.sweep))
        self.pending = self.study.pending()
        _log.info(
            "sweep %s: %d trials, %d left, %d at a time, in %s",
            self.sweep.name, total, len(self.pending), len(self.free), self.study.directory,
        )  # fmt: skip
        with tqdm(total=total, initial=total - len(self.pending), unit="trial", disable=not sys.stderr.isatty()) as bar:
            while (self.pending or self.running) and not (self.signals and not self.running):
                if self.signals:
                    self._stop()
                self._reap(bar)
                bar.update(total - len(self.pending) - len(self.running) - bar.n)
                self._fill_slots()
                if self.pending and not self.running and not self.signals:
                    names = ", ".join(trial_id.name for trial_id in self.pending)
                    _log.error("cannot start %s: trials that they depend on cannot be read", names)
                    break
                if time.monotonic() - self.last_written > _WRITE_INTERVAL:
                    self._write_measurements()
                time.sleep(_POLL)
        self._write_measurements()
        return self._summarize()

    def _reap(self, bar: tqdm) -> None:
        """Free the slots of trials whose processes have ended."""
        for ended in [running for running in self.running if running.exit_status is not None]:
            self.running.remove(ended)
            self.free.append(ended.slot)
            self.blocked = False
            self._record_end(ended, bar)

    def _fill_slots(self) -> None:
        """Start pending trials in the free slots."""
        while self.free and self.pending and not self.signals and not self.blocked:
            done = self._start_next()
            if self.config_changed:
                self.pending = []
            elif done is None:
                self.blocked = True
            else:
                self.pending.remove(done)

    def _start_next(self) -> TrialId | None:
        """Start the first pending trial that depends on no other. Returns it, or one that turns out to need no run."""
        for trial_id in self.pending:
            try:
                resolved = self.study.resolve(trial_id)
            except NothingToRepeat as error:
                _log.warning("%s", error)
                return trial_id
            if resolved is None:
                continue
            if self.study.status(resolved) != "unfinished":  # an extended search found the same best setting again
                return trial_id
            try:
                self.study.start(resolved)
            except ConfigChanged as error:
                self.config_changed = str(error)
                return None
            except (ConfigError, ConfigErrors) as error:
                self.study.fail(resolved, str(error))
                _log.error("%s: %s", resolved.name, error)
                return trial_id
            slot = self.free.pop(0)
            log = self.study.trials_dir / f"{resolved.name}.log"
            self.running.append(Running(resolved, slot, self._launch(resolved, slot, log), log))
            return trial_id
        return None

    def _launch(self, trial_id: TrialId, slot: Slot, log: Path) -> ForkServerProcess | subprocess.Popen[bytes]:
        config = str(self.study.config_file(trial_id))
        if self._forks:
            from bellwether.experiments.sweep import worker

            process = self.context.Process(target=worker.run, args=(config, str(log), slot.cores))
            process.start()
            return process
        environment = dict(os.environ)
        if slot.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(_visible_devices(slot.gpus))
        command = [sys.executable, "-m", "bellwether", "train", config, "--nproc", str(self.sweep.processes)]
        if slot.cores and shutil.which("taskset"):
            command = ["taskset", "--cpu-list", ",".join(map(str, slot.cores)), *command]
        with open(log, "ab") as out:
            # In a new session: Ctrl-C in this terminal must not kill the trial before it has saved.
            return subprocess.Popen(command, stdout=out, stderr=out, env=environment, start_new_session=True)

    def _record_end(self, ended: Running, bar: tqdm) -> None:
        status = self.study.status(ended.trial_id)
        if status == "unfinished" and not self.signals:
            reason = f"exit status {ended.exit_status}; the end of its log:\n{_tail(ended.log)}"
            self.study.fail(ended.trial_id, reason)
            status = "failed"
        if status == "unfinished":
            return
        if status != "failed":
            self.study.delete_checkpoints(ended.trial_id)
        see = f"; {ended.log} ends with: {_tail(ended.log, lines=1)}" if status == "failed" else ""
        with bar.external_write_mode(sys.stderr):
            _log.info("%s: %s, %s%s", ended.trial_id.name, status, self._result(ended.trial_id), see)

    def _result(self, trial_id: TrialId) -> str:
        """What a trial reached, and its parameters."""
        trial = self.study.trial(trial_id.name)
        assert trial is not None
        steps = search.steps(trial, self.sweep.goal)
        metric, at_least = self.sweep.metric
        best = abs(search.score(trial, metric, at_least))
        result = f"{metric} {best:.4g}" if math.isfinite(best) else "nothing measured"
        if math.isfinite(steps):
            result = f"reached {self.sweep.target} at step {steps:,.0f}"
        parameters = ", ".join(f"{key.rpartition('.')[2]} {_short(value)}" for key, value in trial.parameters.items())
        return f"{result} ({parameters})"

    def _stop(self) -> None:
        """Let the running trials save, and kill those that do not end in time."""
        _log.info("stopping: %s will save; the same command resumes them", count(len(self.running), "running trial"))
        for running in self.running:
            with suppress(ProcessLookupError):
                os.kill(running.process.pid or 0, signal.SIGTERM)
        deadline = time.monotonic() + _SAVE_TIMEOUT
        while any(running.exit_status is None for running in self.running) and time.monotonic() < deadline:
            time.sleep(_POLL)
        for running in self.running:
            if running.exit_status is None:
                running.process.kill()

    def _write_measurements(self) -> None:
        self.study.write_measurements()
        self.last_written = time.monotonic()

    def _summarize(self) -> int:
        """Log how the trials ended. Returns the exit status for the shell."""
        trials = self.study.collect()
        ended = {
            status: sum(t.status == status for t in trials) for status in ("complete", "pruned", "diverged", "failed")
        }
        counts = ", ".join(f"{number} {status}" for status, number in ended.items() if number)
        _log.info("sweep %s: %s", "stopped" if self.signals else "done", counts or "no trial has ended")
        if self.signals:
            return 130 if self.signals[0] == signal.SIGINT else signals.SAVED
        if self.config_changed:
            _log.error("%s", self.config_changed)
            return 2
        if ended["failed"]:
            _log.info("run again with --retry to retry the failed trials")
        _log.info("show the results with bellwether report %s", self.study.directory)
        return 1 if ended["failed"] else 0


def _visible_devices(gpus: list[int]) -> list[str]:
    """The names of GPUs for CUDA_VISIBLE_DEVICES, which may be set for this process already."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [visible.split(",")[gpu] if visible is not None else str(gpu) for gpu in gpus]


def _tail(log: Path, lines: int = 20) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else ""


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)

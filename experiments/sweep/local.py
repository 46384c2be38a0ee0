"""A sweep on this machine: as many runs at a time as it has cores or GPUs for."""

from __future__ import annotations

import math
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from tqdm import tqdm

from bellwether.experiments.sweep import search
from bellwether.experiments.sweep.array import alone
from bellwether.experiments.sweep.slots import Slot, slots
from bellwether.experiments.sweep.spec import Sweep
from bellwether.experiments.sweep.study import ConfigChanged, NothingToRepeat, Study
from bellwether.trainer import signals
from bellwether.trainer.config import ConfigError, ConfigErrors

_POLL = 0.2  # seconds
_SAVING = 120  # seconds that runs have to save after a signal
_TABLE = 30  # seconds between two writings of the table


@dataclass(frozen=True)
class Place:
    """What one run has to itself."""

    cores: list[int]
    gpus: list[int]


@dataclass
class Running:
    slot: Slot
    place: Place
    process: ForkServerProcess | subprocess.Popen[bytes]
    log: Path

    @property
    def status(self) -> int | None:
        return self.process.exitcode if isinstance(self.process, ForkServerProcess) else self.process.poll()


def places(sweep: Sweep, cores: Sequence[int], gpus: int, jobs: int | None) -> list[Place]:
    """How the machine is shared out.

    Args:
        cores: that this process may use.
        gpus: that torch sees.
        jobs: most runs at a time; None: as many as fit, and one even where none does.

    Raises:
        ConfigError: if a run asks for more GPUs than there are.
    """
    each = sweep.processes
    if gpus and each > gpus:
        advice = "lower it, or go --on slurm"
        raise ConfigError("processes", each, f"a process has a GPU, and there are {gpus} here", advice)
    wanted = each * sweep.cores
    fit = gpus // each if gpus else max(1, len(cores) // wanted)
    count = min(fit, jobs) if jobs is not None and (gpus or jobs <= fit) else jobs or fit
    share = max(1, len(cores) // count) if gpus else wanted
    # More runs than cores: they share all of them, and the system sees to it.
    own = [list(cores[i * share : (i + 1) * share]) if count <= fit else [] for i in range(count)]
    return [Place(own[i], list(range(i * each, (i + 1) * each)) if gpus else []) for i in range(count)]


def run(sweep: Sweep, jobs: int | None, retry: bool) -> int:
    """Run what is left of a sweep. Returns the exit status for the shell."""
    study = Study(sweep)
    study.prepare()
    with alone(study):
        if retry and (count := study.retry()):
            _say(f"{count} that failed {'are' if count > 1 else 'is'} tried again")
        return _Packer(study, jobs).run()


class _Packer:
    def __init__(self, study: Study, jobs: int | None) -> None:
        self.study, self.sweep = study, study.sweep
        self.gpus = _gpus(self.sweep)
        self.free = places(self.sweep, _cores(), self.gpus, jobs)
        self.running: list[Running] = []
        self.told: list[int] = []
        self.waiting = False  # what is left waits for what runs
        self.changed = ""  # why nothing more may begin
        self.written = 0.0
        self.context = multiprocessing.get_context("forkserver")
        # Importing takes longer than many a small run. Not with GPUs, which a forked process cannot take up.
        if not self.gpus and self.sweep.processes == 1:
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
            self.context.set_forkserver_preload(["bellwether.experiments.sweep.worker"])

    def run(self) -> int:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
            signal.signal(number, lambda number, _: self.told.append(number))
        total = sum(1 for _ in slots(self.sweep))
        left = self.study.pending()
        where = f"{len(self.free)} at a time"
        _say(f"sweep {self.sweep.name}: {total} runs, {len(left)} left, {where}, in {self.study.directory}")
        with tqdm(total=total, initial=total - len(left), unit="run", disable=not sys.stderr.isatty()) as bar:
            while (left or self.running) and not (self.told and not self.running):
                if self.told:
                    self._stop()
                for done in [running for running in self.running if running.status is not None]:
                    self.running.remove(done)
                    self.waiting = False
                    self.free.append(done.place)
                    self._ended(done, bar)
                bar.update(total - len(left) - len(self.running) - bar.n)
                while self.free and left and not self.told and not self.waiting:
                    slot = self._begin(left)
                    if self.changed:
                        left = []
                    elif slot is None:
                        self.waiting = True
                    else:
                        left.remove(slot)
                if left and not self.running and not self.told:
                    _say(f"what is left waits for runs that cannot be read: {', '.join(slot.name for slot in left)}")
                    break
                if time.monotonic() - self.written > _TABLE:
                    self._write()
                time.sleep(_POLL)
        self._write()
        return self._close()

    def _begin(self, left: Sequence[Slot]) -> Slot | None:
        """Start the first run that need not wait for others."""
        for slot in left:
            try:
                run = self.study.decided(slot)
            except NothingToRepeat as error:
                _say(str(error))
                return slot
            if run is None:
                continue
            if self.study.status(run) != "unfinished":  # the best is what it was before there were more settings
                return slot
            try:
                self.study.begin(run)
            except ConfigChanged as error:
                self.changed = str(error)
                return None
            except (ConfigError, ConfigErrors) as error:
                self.study.fail(run, str(error))
                _say(f"{run.name}: {error}")
                return slot
            place = self.free.pop(0)
            log = self.study.trials / f"{run.name}.log"
            self.running.append(Running(run, place, self._start(run, place, log), log))
            return slot
        return None

    def _start(self, slot: Slot, place: Place, log: Path) -> ForkServerProcess | subprocess.Popen[bytes]:
        path = str(self.study.config_file(slot))
        if not self.gpus and self.sweep.processes == 1:
            from bellwether.experiments.sweep.worker import run as body

            process = self.context.Process(target=body, args=(path, str(log), place.cores))
            process.start()
            return process
        environment = dict(os.environ)
        if place.gpus:
            visible = (
                os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if "CUDA_VISIBLE_DEVICES" in os.environ else []
            )
            names = [visible[gpu] if visible else str(gpu) for gpu in place.gpus]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(names)
        command = [sys.executable, "-m", "bellwether", "train", path, "--nproc", str(self.sweep.processes)]
        if place.cores and shutil.which("taskset"):
            command = ["taskset", "--cpu-list", ",".join(map(str, place.cores)), *command]
        with open(log, "ab") as out:
            # A session of its own: Ctrl-C here must not end it before it has saved.
            return subprocess.Popen(command, stdout=out, stderr=out, env=environment, start_new_session=True)

    def _ended(self, done: Running, bar: tqdm) -> None:
        status = self.study.status(done.slot)
        if status == "unfinished" and not self.told:
            self.study.fail(done.slot, f"exit status {done.status}; its last words:\n{_tail(done.log)}")
            status = "failed"
        if status == "unfinished":
            return
        if status != "failed":
            self.study.tidy(done.slot)
        trial = self.study.trial(done.slot.name)
        assert trial is not None
        reached = search.steps(trial, self.sweep.goal)
        metric, at_least = self.sweep.metric
        found = abs(search.score(trial, metric, at_least))
        told = f"{metric} {found:.4g}" if math.isfinite(found) else "nothing measured"
        if math.isfinite(reached):
            told = f"reached {self.sweep.target} at step {reached:,.0f}"
        settings = ", ".join(f"{key.rpartition('.')[2]} {_short(value)}" for key, value in trial.parameters.items())
        with bar.external_write_mode(sys.stderr):
            note = f"; see {done.log}" if status == "failed" else ""
            _say(f"{done.slot.name}: {status}, {told} ({settings}){note}")

    def _stop(self) -> None:
        _say(f"stopping: {len(self.running)} runs save; the same command goes on from there")
        for running in self.running:
            with suppress(ProcessLookupError):
                os.kill(running.process.pid or 0, signal.SIGTERM)
        deadline = time.monotonic() + _SAVING
        while any(running.status is None for running in self.running) and time.monotonic() < deadline:
            time.sleep(_POLL)
        for running in self.running:
            if running.status is None:
                running.process.kill()

    def _write(self) -> None:
        self.study.write_table()
        self.written = time.monotonic()

    def _close(self) -> int:
        trials = self.study.collect()
        counts = {
            status: sum(t.status == status for t in trials) for status in ("complete", "pruned", "diverged", "failed")
        }
        _say(
            "sweep " + ("stopped: " if self.told else "done: ") + ", ".join(f"{n} {s}" for s, n in counts.items() if n)
        )
        if self.told:
            return 130 if self.told[0] == signal.SIGINT else signals.SAVED
        if self.changed:
            _say(self.changed)
            return 2
        if counts["failed"]:
            _say("what failed is tried again with --retry")
        _say(f"bellwether report {self.study.directory} draws what came out")
        return 1 if counts["failed"] else 0


def _gpus(sweep: Sweep) -> int:
    from bellwether.experiments.sweep import spec

    if spec.base(sweep).engine.device == "cpu":
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _cores() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-20:]) if log.exists() else ""


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _say(text: str) -> None:
    print(f"bellwether: {text}", file=sys.stderr, flush=True)

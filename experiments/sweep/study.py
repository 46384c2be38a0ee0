"""A study: the directory of a sweep. Its files are the only record of the sweep's trials.

::

    runs/<sweep>/
      sweep.yaml               SWEEP.yaml as resolved
      measurements.csv         all measurements in one table (`bellwether.experiments.sweep.measurements`)
      report.html
      trials/NAME.json         decided when a trial starts: its parameters, its seed, the step at which it is pruned
      trials/NAME.yaml         its config, for `bellwether train`
      trials/NAME/             its run directory
      trials/NAME.failed       why it failed; once the file is deleted the trial is tried again
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from bellwether.experiments.sweep import measurements, search, spec
from bellwether.experiments.sweep.measurements import Status, Trial
from bellwether.experiments.sweep.renamed_keys import with_new_names
from bellwether.experiments.sweep.spec import Sweep
from bellwether.experiments.sweep.spec_changes import check_unchanged
from bellwether.experiments.sweep.trial_ids import TrialId, trial_ids
from bellwether.experiments.sweep.trial_record import TrialRecord, read_trial
from bellwether.trainer import run_paths
from bellwether.trainer.config import Config, dump, to_yaml
from bellwether.trainer.config.yaml_syntax import parse_yaml

SWEEP = "sweep.yaml"
MEASUREMENTS = "measurements.csv"


class NothingToRepeat(Exception):
    """All settings of an optimizer at a batch size diverged or failed, so that none of them is the best."""


class ConfigChanged(Exception):
    """The config that all trials start from differs from what it was when the sweep began."""


class Study:
    """The directory of a sweep.

    Args:
        base: the config that all trials start from, as it was when the sweep began; None: as it is now.
    """

    def __init__(self, sweep: Sweep, base: dict[str, Any] | None = None) -> None:
        self.sweep, self.directory, self.base = sweep, sweep.directory, base
        self._finished: dict[str, Trial] = {}

    @property
    def trials_dir(self) -> Path:
        return self.directory / "trials"

    def config_file(self, trial_id: TrialId) -> Path:
        return self.trials_dir / f"{trial_id.name}.yaml"

    def prepare(self) -> None:
        """Create the directory, or check that it belongs to this sweep.

        Raises:
            ConfigErrors: if it belongs to another one, with an error for each key that differs.
        """
        self.trials_dir.mkdir(parents=True, exist_ok=True)
        file = self.directory / SWEEP
        self.base = dump(spec.base(self.sweep))
        new = self.sweep.model_dump(mode="json") | {"base": self.base}
        if any(
            isinstance(values, spec.Range) and values.batch
            for name in self.sweep.optimizers
            for values in self.sweep.space_of(name).values()
        ):
            new["first_batch"] = self.sweep.batches[0]  # such ranges scale from it
        if file.exists():
            check_unchanged(with_new_names(parse_yaml(file.read_text())), new, self.directory)
        run_paths.publish(file, yaml.safe_dump(new, sort_keys=False, allow_unicode=True))

    # Which trials there are, and what is left to do

    def pending(self) -> list[TrialId]:
        """Trials that have not ended or are not known yet; those that have started come first."""
        return [trial_id for _, trial_id in sorted(self._pending(), key=lambda pair: not pair[0])]

    @property
    def not_started(self) -> int:
        """Number of trials that have not started."""
        return sum(not started for started, _ in self._pending())

    def _pending(self) -> list[tuple[bool, TrialId]]:
        """(has started, id) of each trial that has not ended."""
        pending: list[tuple[bool, TrialId]] = []
        for trial_id in trial_ids(self.sweep):
            with contextlib.suppress(NothingToRepeat):
                resolved = self.resolve(trial_id)
                if resolved is None or self.status(resolved) == "unfinished":
                    pending.append((resolved is not None and self.config_file(resolved).exists(), trial_id))
        return pending

    def resolve(self, trial_id: TrialId) -> TrialId | None:
        """Replace the setting ``best`` by the one that was best on the first seed; None while that is not known.

        A search that is extended may find another best setting, which is then repeated; earlier repetitions remain.

        Raises:
            NothingToRepeat: if no setting of the cell completed.
        """
        if trial_id.setting is not None:
            return trial_id
        searched: dict[TrialId, Trial] = {}
        for other in trial_ids(self.sweep):
            if other.cell == trial_id.cell and other.setting is not None and other.seed == 0:
                trial = self.trial(other.name)
                if trial is None or trial.status == "unfinished":
                    return None
                searched[other] = trial
        best = search.best(searched.values(), self.sweep.goal, *self.sweep.metric)
        if best is None:
            cell = f"{trial_id.optimizer} at batch {trial_id.batch}"
            raise NothingToRepeat(f"{cell}: no setting completed, so none is repeated")
        return replace(trial_id, setting=next(other.setting for other, trial in searched.items() if trial is best))

    # The life of a trial

    def start(self, trial_id: TrialId) -> Config:
        """Decide a trial's parameters and write its config, unless that is done already.

        Raises:
            ConfigErrors: if the parameters give no valid config.
            ConfigChanged: if the base config changed, so that earlier and later trials would not be comparable.
        """
        if not self.config_file(trial_id).exists():
            if self.base is not None and dump(spec.base(self.sweep)) != self.base:
                raise ConfigChanged(f"{self.sweep.config} has changed since the sweep began: restore it to resume")
            assert trial_id.setting is not None
            members = self._members(trial_id)
            first = self.trial(replace(trial_id, seed=0).name) if trial_id.seed else None
            if first is not None:
                parameters = dict(first.parameters)
            else:
                parameters = search.setting(
                    self.sweep, trial_id.optimizer, trial_id.batch, trial_id.setting, members
                )  # fmt: skip
            searched = trial_id.seed == 0 or self.sweep.repeat == "all"
            record = TrialRecord(
                trial_id.optimizer, trial_id.batch, spec.base(self.sweep).seed + trial_id.seed, trial_id.setting, parameters,
                self._pruning_step(members) if searched else None,
            )  # fmt: skip
            self._write(trial_id.name, record)
        return spec.load(self.config_file(trial_id), quiet=True)

    def fail(self, trial_id: TrialId, reason: str) -> None:
        """Mark a trial as failed."""
        run_paths.publish(self.trials_dir / f"{trial_id.name}.failed", reason.rstrip() + "\n")

    def reset_failed(self) -> int:
        """Make failed trials pending again; returns their number."""
        failed = list(self.trials_dir.glob("*.failed"))
        for file in failed:
            file.unlink()
        self._finished.clear()
        return len(failed)

    def delete_checkpoints(self, trial_id: TrialId) -> None:
        """Delete the checkpoints of a trial that has ended, unless the sweep keeps them."""
        if not self.sweep.keep:
            shutil.rmtree(self.trials_dir / trial_id.name / "checkpoints", ignore_errors=True)

    # Results

    def trial(self, name: str) -> Trial | None:
        """The current state of a trial; None if it has not started."""
        if name not in self._finished:
            trial = read_trial(self.trials_dir, name, self.sweep.processes)
            if trial is None or trial.status == "unfinished":
                return trial
            self._finished[name] = trial
        return self._finished[name]

    def status(self, trial_id: TrialId) -> Status:
        trial = self.trial(trial_id.name)
        return "unfinished" if trial is None else trial.status

    def collect(self) -> list[Trial]:
        """All trials, numbered in the order of the sweep; last those that SWEEP.yaml no longer contains."""
        order = {trial_id.name: index for index, trial_id in enumerate(trial_ids(self.sweep))}
        names = sorted(self._names(), key=lambda name: (order.get(name, len(order)), name))
        trials = filter(None, map(self.trial, names))
        return [replace(trial, trial=number) for number, trial in enumerate(trials)]

    def write_measurements(self) -> None:
        """Write ``measurements.csv``."""
        measurements.write(self.directory / MEASUREMENTS, self.collect())

    def _members(self, trial_id: TrialId) -> list[Trial]:
        """The trials of the same cell that have started."""
        started = filter(None, map(self.trial, self._names()))
        return [trial for trial in started if (trial.optimizer, trial.batch_size) == trial_id.cell]

    def _names(self) -> list[str]:
        return [path.stem for path in self.trials_dir.glob("*.json")]

    def _write(self, name: str, record: TrialRecord) -> None:
        overrides: dict[str, Any] = {
            "log.report": False, "log.trackers": [], "checkpoint.export": False,
            **self.sweep.set, **self.sweep.optimizers[record.optimizer].set, **record.parameters,
            "batch.global": record.batch, "seed": record.seed, "name": name, "runs": str(self.trials_dir),
        }  # fmt: skip
        if self.sweep.target is not None:
            overrides["evaluate.target"] = str(self.sweep.target)
        if record.stop_after is not None:
            overrides["stop_after"] = f"{record.stop_after} steps"
        text = to_yaml(spec.config(self.sweep, overrides))
        run_paths.publish(self.trials_dir / f"{name}.json", json.dumps(vars(record), indent=1) + "\n")
        run_paths.publish(self.trials_dir / f"{name}.yaml", text)

    def _pruning_step(self, cell: Sequence[Trial]) -> int | None:
        """The step at which a new trial of a cell is pruned: it can no longer be the best."""
        factor = self.sweep.stop.prune_factor
        least = min((search.steps(trial, self.sweep.goal) for trial in cell), default=math.inf)
        return None if factor is None or math.isinf(least) else math.ceil(factor * least)


def open_study(directory: Path) -> Study:
    """Open the study in a directory, as described by its ``sweep.yaml``."""
    raw = with_new_names(parse_yaml((directory / SWEEP).read_text()))
    base = raw.pop("base", None)
    raw.pop("first_batch", None)
    # The directory may be a copy, so its path and name win over those in the file.
    location = {"runs": str(directory.parent), "name": directory.resolve().name}
    return Study(spec.validate({**raw, **location}, str(directory / SWEEP), quiet=True), base)

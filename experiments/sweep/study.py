"""The runs of a sweep on disk, which are the only record of it.

::

    runs/<sweep>/
      sweep.yaml               as resolved
      measurements.csv         all that was measured, in one table (`bellwether.experiments.sweep.measurements`)
      report.html
      trials/NAME.json         what was decided for a run: its settings, its seed, where it is beaten
      trials/NAME.yaml         its config; `bellwether train` takes it
      trials/NAME/             its run directory
      trials/NAME.failed       why it failed, if it did; taken away, it is tried again
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from bellwether.experiments.sweep import measurements, search, spec
from bellwether.experiments.sweep.measurements import Status, Trial, Value
from bellwether.experiments.sweep.slots import Slot, slots
from bellwether.experiments.sweep.spec import Sweep
from bellwether.trainer import metrics, run_paths
from bellwether.trainer.config import Config, ConfigError, ConfigErrors, dump, to_yaml
from bellwether.trainer.config.load import parse_yaml
from bellwether.trainer.config.renamed import convert_paths
from bellwether.trainer.config.schema import BertModel, ResNetModel

SWEEP = "sweep.yaml"
TABLE = "measurements.csv"

# What may change while a sweep goes on, as it leaves every run that is there as it was.
_FREE = (
    "runs",
    "batches",
    "optimizers",
    "search.trials",
    "seeds",
    "repeat",
    "stop",
    "processes",
    "cores",
    "price",
    "keep",
)


@dataclass(frozen=True)
class Record:
    """What was decided for a run when it began, and does not change again."""

    optimizer: str
    batch: int
    seed: int  #: of the config
    setting: int
    parameters: dict[str, Value]
    stop_after: int | None  #: steps at which it is beaten


class NothingToRepeat(Exception):
    """All settings of an optimizer at a batch diverged or failed: there is no best one."""


class ConfigChanged(Exception):
    """The config that all runs start from is no longer what it was when the sweep began."""


class Study:
    """A sweep's directory.

    Args:
        base: what the config was when the sweep began; None: as it is now.
    """

    def __init__(self, sweep: Sweep, base: dict[str, Any] | None = None) -> None:
        self.sweep, self.directory, self.base = sweep, sweep.directory, base
        self._ended: dict[str, Trial] = {}

    @property
    def trials(self) -> Path:
        return self.directory / "trials"

    def config_file(self, slot: Slot) -> Path:
        return self.trials / f"{slot.name}.yaml"

    def prepare(self) -> None:
        """Make the directory, or check that it holds this sweep.

        Raises:
            ConfigErrors: if it holds another, with a line for each key that differs.
        """
        self.trials.mkdir(parents=True, exist_ok=True)
        file = self.directory / SWEEP
        self.base = dump(spec.base(self.sweep))
        new = self.sweep.model_dump(mode="json") | {"base": self.base}
        if any(
            isinstance(where, spec.Range) and where.batch
            for name in self.sweep.optimizers
            for where in self.sweep.space_of(name).values()
        ):
            new["first_batch"] = self.sweep.batches[0]  # which such ranges move from
        if file.exists():
            _check_same(spec.with_new_names(parse_yaml(file.read_text())), new, self.directory)
        run_paths.publish(file, yaml.safe_dump(new, sort_keys=False, allow_unicode=True))

    def pending(self) -> list[Slot]:
        """Runs that are not at their end, or not known yet; those first that have begun."""
        return [slot for _, slot in sorted(self._left(), key=lambda left: not left[0])]

    @property
    def to_come(self) -> int:
        """How many runs have not begun."""
        return sum(not begun for begun, _ in self._left())

    def _left(self) -> list[tuple[bool, Slot]]:
        """Whether it has begun, and a place, of each run that is not at its end."""
        left: list[tuple[bool, Slot]] = []
        for slot in slots(self.sweep):
            with contextlib.suppress(NothingToRepeat):
                run = self.decided(slot)
                if run is None or self.status(run) == "unfinished":
                    left.append((run is not None and self.config_file(run).exists(), slot))
        return left

    def decided(self, slot: Slot) -> Slot | None:
        """The run that a slot stands for: itself, or the setting that did best on the first seed; None until that is known.

        A search that grows may find another best, which is repeated then; what was repeated before stays.

        Raises:
            NothingToRepeat: if it stands for the best, and there is none.
        """
        if slot.setting is not None:
            return slot
        tried: dict[Slot, Trial] = {}
        for first in slots(self.sweep):
            if first.cell == slot.cell and first.setting is not None and first.seed == 0:
                trial = self.trial(first.name)
                if trial is None or trial.status == "unfinished":
                    return None
                tried[first] = trial
        best = search.best(tried.values(), self.sweep.goal, *self.sweep.metric)
        if best is None:
            where = f"{slot.optimizer} at batch {slot.batch}"
            raise NothingToRepeat(f"{where}: no setting has come to its end, so none is repeated")
        return replace(slot, setting=next(first.setting for first, trial in tried.items() if trial is best))

    def status(self, slot: Slot) -> Status:
        found = self.trial(slot.name)
        return "unfinished" if found is None else found.status

    def begin(self, slot: Slot) -> Config:
        """Decide a run's settings and write its config, once.

        Raises:
            ConfigErrors: if the settings make no config.
            ConfigChanged: if runs of before and after could not be compared.
        """
        if not self.config_file(slot).exists():
            if self.base is not None and dump(spec.base(self.sweep)) != self.base:
                raise ConfigChanged(f"{self.sweep.config} has changed since the sweep began: set it back to go on")
            assert slot.setting is not None
            cell = self._members(slot)
            first = self.trial(replace(slot, seed=0).name) if slot.seed else None
            if first is not None:
                parameters = dict(first.parameters)
            else:
                parameters = search.setting(self.sweep, slot.optimizer, slot.batch, slot.setting, cell)
            searched = slot.seed == 0 or self.sweep.repeat == "all"
            record = Record(
                slot.optimizer, slot.batch, spec.base(self.sweep).seed + slot.seed, slot.setting, parameters,
                self._beaten(cell) if searched else None,
            )  # fmt: skip
            self._write(slot.name, record)
        return spec.load(self.config_file(slot))

    def fail(self, slot: Slot, why: str) -> None:
        run_paths.publish(self.trials / f"{slot.name}.failed", why.rstrip() + "\n")

    def retry(self) -> int:
        """Let what failed be tried again; returns how many."""
        failed = list(self.trials.glob("*.failed"))
        for file in failed:
            file.unlink()
        self._ended.clear()
        return len(failed)

    def tidy(self, slot: Slot) -> None:
        """A run that has ended needs its checkpoints no more, unless the sweep is to keep them."""
        if not self.sweep.keep:
            shutil.rmtree(self.trials / slot.name / "checkpoints", ignore_errors=True)

    def collect(self) -> list[Trial]:
        """All that was measured, in the sweep's order, numbered; also what SWEEP.yaml no longer asks for."""
        order = {slot.name: index for index, slot in enumerate(slots(self.sweep))}
        names = sorted(self._names(), key=lambda name: (order.get(name, len(order)), name))
        found = filter(None, map(self.trial, names))
        return [Trial(**{**vars(trial), "trial": number}) for number, trial in enumerate(found)]

    def write_table(self) -> list[Trial]:
        trials = self.collect()
        measurements.write(self.directory / TABLE, trials)
        return trials

    def trial(self, name: str) -> Trial | None:
        """A run as it stands; None if it has not begun."""
        if name not in self._ended:
            found = self._read(name)
            if found is None or found.status == "unfinished":
                return found
            self._ended[name] = found
        return self._ended[name]

    def _members(self, slot: Slot) -> list[Trial]:
        """The runs of a slot's optimizer and batch that have begun."""
        found = filter(None, map(self.trial, self._names()))
        return [trial for trial in found if (trial.optimizer, trial.batch_size) == slot.cell]

    def _names(self) -> list[str]:
        return [path.stem for path in self.trials.glob("*.json")]

    def _write(self, name: str, record: Record) -> None:
        overrides: dict[str, Any] = {
            "log.report": False, "log.tensorboard": False, "checkpoint.export": False, **self.sweep.set, **self.sweep.optimizers[record.optimizer].set, **record.parameters,
            "batch.global": record.batch, "seed": record.seed, "name": name, "runs": str(self.trials),
        }  # fmt: skip
        if self.sweep.target is not None:
            overrides["evaluate.target"] = str(self.sweep.target)
        if record.stop_after is not None:
            overrides["stop_after"] = f"{record.stop_after} steps"
        text = to_yaml(spec.config(self.sweep, overrides))
        run_paths.publish(self.trials / f"{name}.json", json.dumps(vars(record), indent=1) + "\n")
        run_paths.publish(self.trials / f"{name}.yaml", text)

    def _beaten(self, cell: Sequence[Trial]) -> int | None:
        """Steps beyond which a run of this cell cannot be the best any more."""
        factor = self.sweep.stop.beaten
        least = min((search.steps(trial, self.sweep.goal) for trial in cell), default=math.inf)
        return None if factor is None or math.isinf(least) else math.ceil(factor * least)

    def _read(self, name: str) -> Trial | None:
        try:
            raw = json.loads((self.trials / f"{name}.json").read_text())
            config = spec.load(self.trials / f"{name}.yaml", quiet=True)
        except (OSError, ConfigErrors):  # between the two files of a run that is about to begin
            return None
        record = Record(**{**raw, "parameters": convert_paths(raw["parameters"])})
        history = metrics.read(self.trials / name)
        rows = _measurements(history)
        epochs = [line for line in history.train if line.get("epoch") and line["samples"]]
        return Trial(
            0, _dataset(config), _model(config), record.optimizer, record.batch, record.seed,
            self._status(name, history, record), record.parameters, rows,
            epoch=round(epochs[-1]["samples"] / epochs[-1]["epoch"]) if epochs else None,
            processes=int(history.start[-1].get("world_size", 1)) if history.start else self.sweep.processes,
            seconds=history.seconds, run=f"trials/{name}",
        )  # fmt: skip

    def _status(self, name: str, history: metrics.History, record: Record) -> Status:
        if history.state == "diverged" or (history.train and not math.isfinite(history.train[-1]["loss"])):
            return "diverged"
        if history.state in ("finished", "reached"):
            return "complete"
        if (self.trials / f"{name}.failed").exists():
            return "failed"
        # A signal stops a run too, and that one goes on.
        bound = record.stop_after
        beaten = history.state == "stopped" and bound is not None and history.end[-1]["step"] >= bound
        return "pruned" if beaten else "unfinished"


def open_study(directory: Path) -> Study:
    """The study in a directory, as its own sweep.yaml has it."""
    raw = spec.with_new_names(parse_yaml((directory / SWEEP).read_text()))
    base = raw.pop("base", None)
    raw.pop("first_batch", None)
    # Where it lies now, which may be a copy.
    where = {"runs": str(directory.parent), "name": directory.resolve().name}
    return Study(spec.validate({**raw, **where}, str(directory / SWEEP), quiet=True), base)


def _measurements(history: metrics.History) -> list[dict[str, float]]:
    """A row an evaluation, with what training last said there; and one where training ended without an evaluation."""
    rows = []
    train = iter(history.train)
    latest: metrics.Line = {}
    upcoming = next(train, None)
    for line in history.eval:
        while upcoming is not None and upcoming["step"] <= line["step"]:
            latest, upcoming = upcoming, next(train, None)
        rows.append(_row(line, latest))
    if history.train and (not rows or history.train[-1]["step"] > rows[-1]["step"]):
        rows.append(_row({}, history.train[-1]))
    return rows


def _row(held: metrics.Line, train: metrics.Line) -> dict[str, float]:
    at = held or train
    kept = ("loss", "lr", "grad_norm", "samples_per_s", "step_time", "noise_scale")
    row = {f"train/{key}": train[key] for key in kept if train.get(key) is not None}
    row |= {f"val/{key}": value for key, value in held.items() if key in metrics.HELD}
    return {"step": at["step"], "samples": at["samples"], **row}


def _dataset(config: Config) -> str:
    return Path(config.data.source).name


def _model(config: Config) -> str:
    model: Any = config.model
    if isinstance(model, BertModel):
        return f"bert-{model.size}"
    width = "" if isinstance(model, ResNetModel) or not hasattr(model, "width") else f"-{model.width}"
    return f"{model.kind}-{model.depth}{width}"


def _check_same(old: Any, new: dict[str, Any], directory: Path) -> None:
    before, after = _fixed(old), _fixed(new)
    for name, variant in (old.get("optimizers") or {}).items():
        if name in new["optimizers"]:
            before[f"optimizers.{name}"], after[f"optimizers.{name}"] = variant, new["optimizers"][name]
    advice = "set it back to go on, or choose another name: in SWEEP.yaml"
    errors = [
        ConfigError(key, after.get(key), f"{directory} was made with {before.get(key)!r}", advice)
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
    ]
    if errors:
        raise ConfigErrors(errors)


def _fixed(raw: dict[str, Any], place: str = "") -> dict[str, Any]:
    """Leaves by dotted path, without those that are free to change."""
    found: dict[str, Any] = {}
    for key, value in raw.items():
        path = f"{place}.{key}".lstrip(".")
        free = path in _FREE or path in ("config", "base.batch.global")
        if not free:
            found |= _fixed(value, path) if isinstance(value, dict) and value else {path: value}
    return found

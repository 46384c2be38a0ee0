"""The schema of SWEEP.yaml: batch sizes, optimizers, search spaces, seeds, and when a trial is stopped."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Discriminator, Field, Tag, ValidationError, model_validator

from bellwether.experiments.sweep.measurements import Target, Value
from bellwether.experiments.sweep.renamed_keys import with_new_names
from bellwether.trainer.checked_config import load_checked
from bellwether.trainer.config import Config, ConfigError, ConfigErrors, load, shipped
from bellwether.trainer.config.error_messages import explain
from bellwether.trainer.config.renamed import Renaming, report
from bellwether.trainer.config.schema import Count, DataConfig, Section
from bellwether.trainer.config.units import TargetField
from bellwether.trainer.config.yaml_syntax import parse_yaml, yaml_problem

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class Range(Section):
    """The range in which a number is searched."""

    low: float = Field(description="lower bound")
    high: float = Field(description="upper bound")
    log: bool = Field(False, description="search on a logarithmic scale, as for learning rates")
    points: Annotated[int, Field(ge=2)] | None = Field(None, description="number of grid points, both bounds included")
    batch: Literal["linear", "sqrt"] | None = Field(
        None,
        description="scale both bounds with the batch size, relative to the first of `batches`: linearly, or with its "
        "square root",
    )

    @model_validator(mode="after")
    def _order(self) -> Range:
        if not self.low < self.high:
            raise ValueError("low: must be less than high")
        if self.log and self.low <= 0:
            raise ValueError("low: must be above 0 for a logarithmic scale")
        return self

    def bounds(self, ratio: float) -> tuple[float, float]:
        """Both bounds at a batch size that is `ratio` times the first."""
        scale = {None: 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[self.batch]
        return self.low * scale, self.high * scale

    def value_at(self, share: float, ratio: float) -> float:
        """The number at a share (0 to 1) of the way from the lower to the upper bound, on the range's scale."""
        low, high = self.bounds(ratio)
        return low * (high / low) ** share if self.log else low + share * (high - low)


# A range or a list of values. Distinguished before validation, so that a mistake gives one error instead of two.
Values = Annotated[
    Annotated[Range, Tag("range")] | Annotated[list[Value], Tag("list")],
    Discriminator(lambda value: "list" if isinstance(value, list) else "range"),
]
Space = dict[str, Values]


class Variant(Section):
    """One of the optimizers that are compared: the keys of the config that define it."""

    set: dict[str, Any] = Field(default_factory=dict, description="keys of the config, as in optimizer.name: lamb")
    space: Space = Field(default_factory=dict, description="search space of this one; overrides the sweep's `space`")


_SET_BY_SWEEP = {"batch.global", "seed", "name", "runs"}  # keys of a trial's config


class Search(Section):
    """How settings are chosen. Every optimizer gets the same number of settings at every batch size."""

    kind: Literal["grid", "random", "tpe"] = Field(
        "random",
        description="every combination; quasi-random (Halton); or Optuna's TPE, which learns from earlier trials",
    )
    trials: Count = Field(8, description="settings of each optimizer at each batch size (random, tpe)")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="random seed of the choice of settings")


class Stop(Section):
    """When a trial is stopped before its budget is spent. A diverged trial always stops."""

    prune_factor: Annotated[float, Field(ge=1)] | None = Field(
        None,
        description="prune a trial after this many times the steps in which another trial of its optimizer and batch size "
        "reached the target; null: never",
    )


class Sweep(Section):
    """The content of SWEEP.yaml."""

    name: Name = Field(description="name of the sweep's directory under `runs`")
    runs: str = Field("runs", description="parent directory of the sweep's directory")
    config: str = Field(description="config that every trial starts from; a path relative to this file")
    set: dict[str, Any] = Field(
        default_factory=dict,
        description="keys of the config to override in all trials; a mapping replaces its whole section",
    )
    batches: list[Count] = Field(min_length=1, description="global batch sizes, in samples")
    optimizers: Annotated[dict[Name, Variant], Field(min_length=1)] = Field(
        default_factory=lambda: {"config": Variant()}, description="the optimizers to compare, by name"
    )
    space: Space = Field(default_factory=dict, description="key of the config: {low, high, log} or a list of values")
    search: Search = Search()
    seeds: Count = Field(1, description="trials of a setting: with the config's seed, the next one, ...")
    repeat: Literal["all", "best"] = Field(
        "best", description="run every setting on every seed, or only the best one at each batch size"
    )
    target: TargetField | None = Field(
        None, description="a trial that reaches it stops, as in accuracy >= 0.9 or loss <= 2.5"
    )
    stop: Stop = Stop()
    processes: Count = Field(1, description="processes per trial; with GPUs, one GPU each")
    cores: Count = Field(1, description="CPU cores per process")
    keep: bool = Field(False, description="keep the checkpoints of trials that have ended")
    price: Annotated[float, Field(ge=0)] | None = Field(None, description="price of a process-hour, for the report")

    @model_validator(mode="after")
    def _check_keys(self) -> Sweep:
        if len(set(self.batches)) < len(self.batches):
            raise ValueError("batches: each must appear once")
        overrides = [("set", self.set), *((f"optimizers.{n}.set", v.set) for n, v in self.optimizers.items())]
        for key_path, keys in overrides:
            for key in _SET_BY_SWEEP & keys.keys():
                raise ValueError(f"{key_path}: {_reserved(key)}")
        for name, variant in self.optimizers.items():
            for key, values in self.space_of(name).items():
                if self.search.kind == "grid" and isinstance(values, Range) and values.points is None:
                    raise ValueError(f"search.kind: a grid needs points: N for {key} (optimizer {name})")
                if isinstance(values, list) and not values:
                    key_path = f"optimizers.{name}.space" if key in variant.space else "space"
                    raise ValueError(f"{key_path}: {key} is an empty list")
                if key in _SET_BY_SWEEP:
                    raise ValueError(f"space: {_reserved(key)}")
        if self.stop.prune_factor is not None and self.target is None:
            raise ValueError("stop.prune_factor: needs a target, as in target: accuracy >= 0.9")
        return self

    @property
    def directory(self) -> Path:
        return Path(self.runs).expanduser() / self.name

    def settings(self, optimizer: str) -> int:
        """The number of settings that are searched for an optimizer at each batch size."""
        space = self.space_of(optimizer)
        if self.search.kind != "grid" and any(isinstance(values, Range) for values in space.values()):
            return self.search.trials
        combinations = math.prod(len(grid_values(values, 1.0)) for values in space.values())
        return combinations if self.search.kind == "grid" else min(self.search.trials, combinations)

    @property
    def goal(self) -> Target | None:
        """The target, with the name of its metric in the measurements."""
        return (
            None
            if self.target is None
            else Target(f"val/{self.target.metric}", self.target.value, self.target.at_least)
        )

    @cached_property
    def metric(self) -> tuple[str, bool]:
        """(metric, higher is better): compares trials where none reached the target."""
        if self.goal is not None:
            return self.goal.metric, self.goal.at_least
        return base(self).data.metric

    def space_of(self, optimizer: str) -> Space:
        """The search space of an optimizer."""
        return {**self.space, **self.optimizers[optimizer].space}


def _reserved(key: str) -> str:
    return f"{key} is set by the sweep: see `batches`, `seeds`, `name`, `runs`"


def default_metric(data_kind: str) -> tuple[str, bool]:
    """(metric, higher is better): compares trials on a kind of data if the sweep has no target."""
    return DataConfig.kinds().get(data_kind, DataConfig).metric


def grid_values(values: Range | list[Value], ratio: float) -> list[Value]:
    """The values of one dimension of a grid, at a batch size that is `ratio` times the first."""
    if isinstance(values, list):
        return values
    assert values.points is not None
    return [values.value_at(i / (values.points - 1), ratio) for i in range(values.points)]


def read(path: str | Path) -> Sweep:
    """Read and validate SWEEP.yaml, or the shipped sweep of that name, such as ``1-decay``.

    Raises:
        ConfigError, ConfigErrors: naming each key that is wrong.
    """
    if shipped.is_name(path) and not Path(path).is_file():
        path = shipped.find(path, shipped.SWEEPS) or path
    source = str(path)
    try:
        raw = parse_yaml(Path(path).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        advice = f"give the path of a YAML file, or one of {', '.join(shipped.shipped_recipes(shipped.SWEEPS))}"
        raise ConfigError("SWEEP", source, f"cannot be read: {error.strerror}", advice) from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError("SWEEP", source, f"not YAML: {yaml_problem(error)}") from None
    if not isinstance(raw, dict):
        raise ConfigError("SWEEP", source, "is not a mapping", "write key: value lines")
    if "batches" not in raw and ("model" in raw or "extends" in raw):
        raise ConfigError(
            "SWEEP", source, "is the config of a run", "write a file with config: and batches:, see docs/sweeps.md"
        )
    if isinstance(raw.get("config"), str):
        raw["config"] = str(Path(path).parent / Path(raw["config"]).expanduser())
    return validate(raw, source)


def validate(raw: dict[str, Any], source: str, *, quiet: bool = False) -> Sweep:
    """Validate the content of SWEEP.yaml. Renamed keys are accepted.

    Args:
        source: the file's name, for errors.
        quiet: do not log that a key has been renamed; for files that Bellwether wrote itself.

    Raises:
        ConfigErrors: naming each key that is wrong.
    """
    renamings: list[Renaming] = []
    raw = with_new_names(raw, source, renamings)
    if not quiet:
        report(renamings)
    try:
        return Sweep.model_validate(raw)
    except ValidationError as error:
        errors = [_explained(e, raw, source) for e in error.errors(include_url=False)]
        raise ConfigErrors(list({str(e): e for e in errors}.values())) from None


def base(sweep: Sweep) -> Config:
    """The config that all trials share, at the first batch size."""
    return config(sweep, {**sweep.set, "batch.global": sweep.batches[0]})


def config(sweep: Sweep, overrides: Mapping[str, Any], *, checked: bool = False) -> Config:
    """The config of the sweep with overrides by key path.

    Args:
        checked: use `load_checked`, which may build the model.
    """
    read = load_checked if checked else load
    return read(sweep.config, [f"{key}={flow(value)}" for key, value in overrides.items()])


def flow(value: Any) -> str:
    """A value as written on a command line."""
    return yaml.safe_dump(value, default_flow_style=True, width=math.inf).removesuffix("\n").removesuffix("...").strip()


def _explained(error: Any, raw: dict[str, Any], source: str) -> ConfigError:
    # pydantic inserts the tags of unions into the path; they are not in the file.
    loc = tuple(part for part in error["loc"] if part not in ("range", "list"))
    return explain({**error, "loc": loc}, raw, {}, source, Sweep)

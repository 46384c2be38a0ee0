"""SWEEP.yaml: which batches, which optimizers, which settings of each, how many seeds, and when a run has shown enough."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Discriminator, Field, Tag, ValidationError, model_validator

from bellwether.experiments.sweep.measurements import Target, Value
from bellwether.trainer.config import Config, ConfigError, ConfigErrors, load
from bellwether.trainer.config.error_messages import explain
from bellwether.trainer.config.load import parse_yaml, yaml_problem
from bellwether.trainer.config.renamed import Renaming, convert, convert_paths, report
from bellwether.trainer.config.schema import Count, Section
from bellwether.trainer.config.units import TargetField

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class Range(Section):
    """Where a number is searched."""

    low: float = Field(description="the least")
    high: float = Field(description="the most")
    log: bool = Field(False, description="search its logarithm, as for learning rates")
    points: Annotated[int, Field(ge=2)] | None = Field(None, description="of a grid, both ends included")
    batch: Literal["linear", "sqrt"] | None = Field(
        None, description="move both ends with the batch, from the first of `batches`: in proportion, or with its root"
    )

    @model_validator(mode="after")
    def _order(self) -> Range:
        if not self.low < self.high:
            raise ValueError("low: must be less than high")
        if self.log and self.low <= 0:
            raise ValueError("low: a logarithm needs numbers above 0")
        return self

    def at(self, ratio: float) -> tuple[float, float]:
        """Both ends at a batch that is `ratio` times the first."""
        scale = {None: 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[self.batch]
        return self.low * scale, self.high * scale

    def place(self, share: float, ratio: float) -> float:
        """The number at a share of the way from the low end to the high one."""
        low, high = self.at(ratio)
        return low * (high / low) ** share if self.log else low + share * (high - low)


# A range or a list of values, told apart before either is looked into: one complaint, not two.
_Where = Annotated[
    Annotated[Range, Tag("range")] | Annotated[list[Value], Tag("list")],
    Discriminator(lambda value: "list" if isinstance(value, list) else "range"),
]
Space = dict[str, _Where]


class Variant(Section):
    """One of the optimizers that stand side by side: a config's keys that make it what it is."""

    set: dict[str, Any] = Field(default_factory=dict, description="keys of the config, as in optimizer.name: lamb")
    space: Space = Field(default_factory=dict, description="searched for this one, over the sweep's own `space`")


_OWN = {"batch.global", "seed", "name", "runs"}  # keys of a run's config that the sweep sets


class Search(Section):
    """How settings are chosen; every optimizer gets as many at every batch."""

    kind: Literal["grid", "random", "tpe"] = Field(
        "random",
        description="every combination; quasi-random (Halton); or Optuna's TPE, which learns from what was run",
    )
    trials: Count = Field(8, description="settings of each optimizer at each batch (random, tpe)")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="of the choice of settings")


class Stop(Section):
    """When a run has shown enough. One that diverges ends by itself."""

    beaten: Annotated[float, Field(ge=1)] | None = Field(
        None,
        description="end a run that has taken this many times the steps in which another of its optimizer and batch "
        "reached the target; null: let it use its budget",
    )


class Sweep(Section):
    """All of SWEEP.yaml."""

    name: Name = Field(description="the sweep's directory under `runs`")
    runs: str = Field("runs", description="directory that holds the sweep's")
    config: str = Field(description="the config that every run starts from; a path from here")
    set: dict[str, Any] = Field(
        default_factory=dict,
        description="keys of the config that all runs change; a mapping stands for its whole section",
    )
    batches: list[Count] = Field(min_length=1, description="global batches, in samples")
    optimizers: Annotated[dict[Name, Variant], Field(min_length=1)] = Field(
        default_factory=lambda: {"config": Variant()}, description="what stands side by side, by name"
    )
    space: Space = Field(default_factory=dict, description="key of the config: {low, high, log} or a list of values")
    search: Search = Search()
    seeds: Count = Field(1, description="runs of a setting, with the config's seed, the next one, ...")
    repeat: Literal["all", "best"] = Field(
        "best", description="run every setting on every seed, or the best at each batch alone"
    )
    target: TargetField | None = Field(None, description="ends a run that reaches it: accuracy >= 0.9, loss <= 2.5")
    stop: Stop = Stop()
    processes: Count = Field(1, description="processes of a run; the GPUs of one, where there are GPUs")
    cores: Count = Field(1, description="CPU cores of a process")
    keep: bool = Field(False, description="keep the checkpoints of runs that have ended")
    price: Annotated[float, Field(ge=0)] | None = Field(None, description="of a process-hour, for the report")

    @model_validator(mode="after")
    def _whole(self) -> Sweep:
        if len(set(self.batches)) < len(self.batches):
            raise ValueError("batches: each once")
        for place, keys in (("set", self.set), *((f"optimizers.{n}.set", v.set) for n, v in self.optimizers.items())):
            for key in _OWN & keys.keys():
                raise ValueError(f"{place}: {key} is the sweep's own: see `batches`, `seeds`, `name`, `runs`")
        for name, variant in self.optimizers.items():
            for key, where in {**self.space, **variant.space}.items():
                if self.search.kind == "grid" and isinstance(where, Range) and where.points is None:
                    raise ValueError(f"search.kind: a grid needs points: N for {key} (optimizer {name})")
                if isinstance(where, list) and not where:
                    place = f"optimizers.{name}.space" if key in variant.space else "space"
                    raise ValueError(f"{place}: {key} is an empty list")
                if key in _OWN:
                    raise ValueError(f"space: {key} is the sweep's own: see `batches`, `seeds`, `name`, `runs`")
        if self.stop.beaten is not None and self.target is None:
            raise ValueError("stop.beaten: needs a target, as in target: accuracy >= 0.9")
        return self

    @property
    def directory(self) -> Path:
        return Path(self.runs).expanduser() / self.name

    def settings(self, optimizer: str) -> int:
        """How many settings are searched for an optimizer at each batch."""
        space = self.space_of(optimizer)
        if self.search.kind != "grid" and any(isinstance(where, Range) for where in space.values()):
            return self.search.trials
        combinations = math.prod(len(axis(where, 1.0)) for where in space.values())
        return combinations if self.search.kind == "grid" else min(self.search.trials, combinations)

    @property
    def goal(self) -> Target | None:
        """The target as the measurements have it."""
        return (
            None
            if self.target is None
            else Target(f"val/{self.target.metric}", self.target.value, self.target.at_least)
        )

    @cached_property
    def metric(self) -> tuple[str, bool]:
        """What runs are compared by where none reached the target, and whether more of it is better."""
        if self.goal is not None:
            return self.goal.metric, self.goal.at_least
        return compared_by(base(self).data.kind)

    def space_of(self, optimizer: str) -> Space:
        return {**self.space, **self.optimizers[optimizer].space}


def compared_by(kind: str) -> tuple[str, bool]:
    """The metric that runs on a kind of data are compared by without a target, and whether more of it is better."""
    return ("val/accuracy", True) if kind == "images" else ("val/loss", False)


def axis(where: Range | list[Value], ratio: float) -> list[Value]:
    """The values of a grid's axis."""
    if isinstance(where, list):
        return where
    assert where.points is not None
    return [where.place(i / (where.points - 1), ratio) for i in range(where.points)]


def read(path: str | Path) -> Sweep:
    """The sweep in a file, checked down to the config of its first run at each batch.

    Raises:
        ConfigErrors: with one `ConfigError` for each thing that is wrong.
    """
    source = str(path)
    try:
        raw = parse_yaml(Path(path).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        advice = "give the path of a YAML file, as in configs/experiments/"
        raise ConfigError("SWEEP", source, f"cannot be read: {error.strerror}", advice) from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError("SWEEP", source, f"not YAML: {yaml_problem(error)}") from None
    if not isinstance(raw, dict):
        raise ConfigError("SWEEP", source, "holds no mapping", "write key: value lines")
    if "batches" not in raw and ("model" in raw or "extends" in raw):
        raise ConfigError(
            "SWEEP", source, "is the config of a run", "write one with config: and batches:, see docs/sweeps.md"
        )
    if isinstance(raw.get("config"), str):
        raw["config"] = str(Path(path).parent / Path(raw["config"]).expanduser())
    return validate(raw, source)


def validate(raw: dict[str, Any], source: str, *, quiet: bool = False) -> Sweep:
    """Checks a mapping as YAML gives it. Renamed keys of a run's config are accepted.

    Args:
        quiet: do not log that a key has been renamed; for files that Bellwether wrote itself.

    Raises:
        ConfigErrors: with one `ConfigError` for each thing that is wrong.
    """
    renamings: list[Renaming] = []
    raw = with_new_names(raw, source, renamings)
    if not quiet:
        report(renamings)
    try:
        return Sweep.model_validate(raw)
    except ValidationError as error:
        found = [_explained(e, raw, source) for e in error.errors(include_url=False)]
        raise ConfigErrors(list({str(e): e for e in found}.values())) from None


def with_new_names(raw: dict[str, Any], source: str = "", found: list[Renaming] | None = None) -> dict[str, Any]:
    """The mapping of a SWEEP.yaml or of a stored sweep.yaml, with the new names of renamed keys of a run's config."""

    def converted(part: Any) -> Any:
        keys = [key for key in ("set", "space") if isinstance(part, dict) and isinstance(part.get(key), dict)]
        new = {key: convert_paths(part[key], source=source, found=found) for key in keys}
        return {**part, **new} if new else part

    raw = converted(raw)
    if isinstance(raw.get("optimizers"), dict):
        raw = {**raw, "optimizers": {name: converted(variant) for name, variant in raw["optimizers"].items()}}
    if isinstance(raw.get("base"), dict):
        raw = {**raw, "base": convert(raw["base"])}
    return raw


def base(sweep: Sweep) -> Config:
    """What all runs have in common, at the first batch."""
    return config(sweep, {**sweep.set, "batch.global": sweep.batches[0]})


def config(sweep: Sweep, overrides: Mapping[str, Any]) -> Config:
    """The sweep's config with these keys set."""
    return load(sweep.config, [f"{key}={_flow(value)}" for key, value in overrides.items()])


def _flow(value: Any) -> str:
    """A value as it is written on a command line."""
    return yaml.safe_dump(value, default_flow_style=True, width=math.inf).removesuffix("\n").removesuffix("...").strip()


def _explained(error: Any, raw: dict[str, Any], source: str) -> ConfigError:
    # The tags that pydantic puts into the path are not in the file.
    loc = tuple(part for part in error["loc"] if part not in ("range", "list"))
    return explain({**error, "loc": loc}, raw, {}, source, Sweep)

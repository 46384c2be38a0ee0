"""``data``: the dataset. The kinds are defined in `bellwether.trainer.data`, one file each."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from bellwether.trainer.config.schema.kinds import Kind
from bellwether.trainer.config.schema.section import FRACTION, SECONDS, Share, unit

if TYPE_CHECKING:
    from torch import Tensor

    from bellwether.trainer.data import Dataset, Samples


def _held_out(value: Any) -> Any:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, dict) and value and all(isinstance(inner, str) for inner in value.values()):
        wrong = [
            name
            for name in value
            if not re.fullmatch(r"[A-Za-z0-9][\w-]*", str(name)) or str(name).split("_")[0] in _NO_SETS
        ]
        if not wrong:
            return value
        raise ValueError(f"{wrong[0]!r} cannot name held-out data; use letters, digits, '_' and '-'")
    raise ValueError("not held-out data; write a path, or paths by name as in {books: books.txt, wiki: wiki.txt}")


_NO_SETS = ("augmented", "averaged", "macro", "cache")  # of results: loss_augmented, f1_macro, perplexity_cache


class DataConfig(Kind):
    """The dataset: keys that all kinds of data have. docs/extending.md shows how to add a source of rows.

    Attributes:
        metric: the metric by which runs are compared where no target is set, and whether higher is better.
        has_sets: whether `validation` may name several sets.
        carries_state: whether a sample begins with the state of the model after the one before it in its stream.
    """

    package: ClassVar[str] = "bellwether.trainer.data"
    metric: ClassVar[tuple[str, bool]] = ("val/loss", False)
    has_sets: ClassVar[bool] = False
    carries_state: ClassVar[bool] = False

    source: str = Field(description="a built-in dataset, a file, folder or glob, or the name of a hub dataset")
    format: Literal["auto", "text", "json", "csv", "parquet", "imagefolder", "webdataset", "hub"] = Field(
        "auto", description="how to read `source`; auto: decided by the file names"
    )
    subset: str | None = Field(None, description="configuration name of a hub dataset")
    split: str = Field("train", description="split of a hub dataset to train on")
    validation: Annotated[str | dict[str, str] | None, BeforeValidator(_held_out)] = Field(
        None,
        description="held-out data: a path or glob, or the name of a split of a hub dataset; for text also several sets by name, "
        "as in {matched: a.tsv, mismatched: b.tsv}, of which the first one alone decides evaluate.target and evaluate.best; null: hold out `validation_share` of the "
        "training data",
    )
    validation_share: Share = Field(
        0.05, description="fraction of the rows to hold out when `validation` is null", json_schema_extra=FRACTION
    )
    max_unknown: Share = Field(
        0.05,
        description="largest share of [UNK] among the tokens; a text with more is refused",
        json_schema_extra=FRACTION,
    )
    max_overlap: Share = Field(
        0.01,
        description="largest share of the held-out rows whose content is a training row's too; more are refused",
        json_schema_extra=FRACTION,
    )
    allow_empty_classes: bool = Field(
        False, description="accept classes of the label column that have no images or rows"
    )
    on_error: Literal["refuse", "skip"] = Field(
        "refuse",
        description="images and rows that cannot be read. refuse: do not start; skip: leave them out, and list them",
    )
    retry: Annotated[float, Field(ge=0)] = Field(
        60,
        description="how long a read that fails in passing (a file server or disk that is away, a busy hub) is repeated, with growing "
        "pauses, before the run ends with status 74, which a SLURM job takes as a reason to start again",
        json_schema_extra=SECONDS,
    )
    cache: str = Field("~/.cache/bellwether", description="directory of the prepared data, shared by all runs")
    workers: Annotated[int, Field(ge=0)] = Field(
        2,
        description="processes per rank that prepare batches; 0: prepare them in the training process",
        json_schema_extra=unit("processes"),
    )

    @model_validator(mode="after")
    def _one_set(self) -> DataConfig:
        if isinstance(self.validation, dict) and not self.has_sets:
            raise ValueError("validation: several sets by name are for kinds of text; name one path")
        return self

    @property
    def results(self) -> tuple[str, ...]:
        """What an evaluation may measure, by which `evaluate.target` and `evaluate.best` go."""
        return ("loss", "accuracy")

    @property
    def tokens_per_sample(self) -> int | None:
        """Tokens of a sample, for throughput in tokens; None if samples are not made of tokens."""
        return None

    def held_out_keys(self) -> list[tuple[str, str, str]]:
        """Name, key and value of each set of held-out data; none where a share of the rows is held out."""
        if isinstance(self.validation, dict):
            return [(name, f"data.validation.{name}", value) for name, value in self.validation.items()]
        return [] if self.validation is None else [("validation", "data.validation", self.validation)]

    @property
    def unknown_advice(self) -> str:
        """What to do about text with many unknown tokens."""
        return "choose another data.tokenizer"

    @property
    def augments(self) -> bool:
        """Whether training samples are augmented at random, so that evaluation can average over augmented views."""
        return False

    @property
    def unit(self) -> int:
        """Training samples at positions 0 .. unit - 1, unit .. 2 unit - 1, ... depend on each other and stay in one micro-batch."""
        return 1

    def plan(self) -> list[tuple[str, str]]:
        """Rows of a phase's plan, label and value: what is done to the samples."""
        return []

    def load(self) -> Dataset:
        """Prepares the dataset or finds it prepared. See `bellwether.trainer.data.load`."""
        return self.open(self.prepare())

    def prepare(self) -> dict[str, Any]:
        """Prepares the dataset or finds it prepared: all that needs the source. One process a machine does it.

        Returns:
            JSON-like facts, by which every process of the machine can `open` it; with the key ``summary``, see
            `bellwether.trainer.data.summary.DataSummary.to_json`, which `open` does without.
        """
        raise NotImplementedError

    def open(self, facts: dict[str, Any]) -> Dataset:
        """The dataset that `prepare` has prepared, from files of the cache."""
        raise NotImplementedError

    def is_local(self) -> bool:
        """Whether the dataset can be loaded without access to a hub."""
        from bellwether.trainer.data import sources

        return sources.is_local(self)

    def zeros(self, count: int) -> dict[str, Tensor]:
        """A batch of `count` samples with the shapes and types of a real one, and all values zero. For the planner."""
        raise NotImplementedError

    def assumed(self, samples: Samples, classes: int) -> tuple[Dataset, str]:
        """The planner's assumptions about a dataset that has not been read, and a sentence that states them.

        Args:
            samples: stand for both splits.
            classes: number of classes to assume, for classification.
        """
        raise NotImplementedError

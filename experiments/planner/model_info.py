"""What there is to know of the data before a run: rows, vocabulary, classes; from this machine, or by assumption."""

from __future__ import annotations

from dataclasses import dataclass

from bellwether.experiments.planner.activations import Blank
from bellwether.trainer.config import Config, ConfigError, Duration
from bellwether.trainer.config.schema import TextData
from bellwether.trainer.data import Data, peek


@dataclass(frozen=True)
class Subject:
    """A phase's data as far as the plan needs them."""

    data: Data
    rows: int | None  # to train on; None: not known, and not needed
    assumed: tuple[str, ...] = ()


def find(config: Config, dataset_size: int | None, key: str = "") -> Subject:
    """What `bellwether.trainer.data.peek` finds, and assumptions for the rest.

    Args:
        dataset_size: training rows, from the command line; wins over what is found.
        key: of the phase, as in ``phases[0].``

    Raises:
        ConfigError: if the config counts in epochs and nobody knows how long one is.
    """
    known = peek(config.data)
    rows = dataset_size or (len(known.train) if known is not None else None)
    epochs = [(name, span) for name, span in _lengths(config) if span.unit == "epochs"]
    if rows is None and epochs:
        name, span = epochs[0]
        problem = f"is counted in epochs, and the data of {config.data.source} are not prepared here"
        raise ConfigError(f"{key}{name}", str(span), problem, "write --dataset-size N, samples an epoch")
    if known is not None:
        return Subject(known, rows)
    blank = Blank(config.data, rows or 0)
    if isinstance(config.data, TextData):
        size = config.data.vocabulary_size
        assumed = f"a vocabulary of {size:,}, as data.vocabulary_size says: the tokenizer was not read"
        return Subject(Data(blank, blank, vocabulary_size=size), rows, (assumed,))
    classes = 1000 if config.model.kind == "resnet" else 10
    labels = [str(i) for i in range(classes)]
    data = Data(blank, blank, classes=classes, channels=len(config.data.mean), labels=labels)
    return Subject(data, rows, (f"{classes:,} classes: the data were not read",))


def _lengths(config: Config) -> list[tuple[str, Duration]]:
    schedule = config.schedule
    spans = [("schedule.warmup", schedule.warmup)]
    if schedule.kind == "trapezoid":
        spans.append(("schedule.cooldown", schedule.cooldown))
    spans += [("schedule.milestones", milestone) for milestone in schedule.milestones]
    found = [(name, span.duration) for name, span in spans if span.duration is not None]
    return [("duration", config.duration), *found]

"""The properties of the data that the planner needs: rows, vocabulary and classes, read on this machine or assumed."""

from __future__ import annotations

from dataclasses import dataclass

from bellwether.trainer.config import Config, ConfigError, Duration
from bellwether.trainer.data import Dataset, arranged, peek
from bellwether.trainer.memory.activations import DummySamples


@dataclass(frozen=True)
class ModelInfo:
    """The properties of the data that determine a phase's model and the length of its epoch."""

    data: Dataset
    rows: int | None  # training samples; None: unknown, and not needed
    assumed: tuple[str, ...] = ()


def model_info(config: Config, dataset_size: int | None, key: str = "") -> ModelInfo:
    """What `bellwether.trainer.data.peek` finds, with assumptions for the rest.

    Args:
        dataset_size: training samples from the command line; takes precedence.
        key: prefix of the phase's key paths, as in ``phases[0].``

    Raises:
        ConfigError: if the config counts in epochs and the length of an epoch is unknown.
    """
    dataset = peek(config.data)
    rows = dataset_size or (len(arranged(dataset.train, config.batch.all_sizes[0])) if dataset is not None else None)
    epochs = [(name, span) for name, span in _lengths(config) if span.unit == "epochs"]
    if rows is None and epochs:
        name, span = epochs[0]
        problem = f"counts epochs, and the data of {config.data.source} are not prepared on this machine"
        raise ConfigError(f"{key}{name}", str(span), problem, "write --dataset-size N, in samples per epoch")
    if dataset is not None:
        return ModelInfo(dataset, rows)
    dummy = DummySamples(config.data, rows or 0)
    dataset, assumption = config.data.assumed(dummy, config.model.assumed_classes)
    return ModelInfo(dataset, rows, (assumption,))


def _lengths(config: Config) -> list[tuple[str, Duration]]:
    schedule = config.schedule
    spans = [("schedule.warmup", schedule.warmup)]
    if schedule.kind == "trapezoid":
        spans.append(("schedule.cooldown", schedule.cooldown))
    spans += [("schedule.milestones", milestone) for milestone in schedule.milestones]
    durations = [(name, span.duration) for name, span in spans if span.duration is not None]
    return [("duration", config.duration), *durations]

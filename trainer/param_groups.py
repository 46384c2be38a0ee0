"""The param groups that a config asks for, checked against the names of the model's parameters, and counted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from bellwether import optimizers
from bellwether.optimizers.param_groups import named, nearest
from bellwether.optimizers.registry import OPTIMIZERS
from bellwether.trainer import models
from bellwether.trainer.config import Config, ConfigError, ConfigErrors, phases
from bellwether.trainer.config.key_paths import KeyPath, Origins, dotted, origin_of
from bellwether.trainer.config.schema import PATTERNS, DataConfig, Optimizer
from bellwether.trainer.distributed import raised_by_all_ranks
from bellwether.trainer.models.partitioned import numel


def param_groups(task: nn.Module, optimizer: Optimizer) -> list[dict[str, Any]]:
    """`bellwether.optimizers.groups` of a model, as the section `optimizer` of a config says. Freezes what ``freeze`` names.

    Raises:
        ConfigErrors: with one `ConfigError` for each pattern that matches no parameter.
        ConfigError: if no parameter is left to train.
    """
    if errors := list(_unmatched(optimizer, [name for name, _ in named(task)], {}, "")):
        raise raised_by_all_ranks(ConfigErrors(errors))
    for name, parameter in named(task):
        if any(fnmatchcase(name, pattern) for pattern in optimizer.freeze):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in task.parameters()):
        problem = "no parameter is left to train"
        raise raised_by_all_ranks(ConfigError("optimizer.freeze", optimizer.freeze, problem, "leave out a pattern"))
    entry = OPTIMIZERS[optimizer.name]
    return optimizers.groups(
        task, include=optimizer.include, exclude=optimizer.exclude, layer_decay=optimizer.layer_decay, lr_scale=optimizer.lr_scale,
        **entry.grouping, **{key: getattr(optimizer, key) for key in entry.grouping_options},
    )  # fmt: skip


def check_patterns(config: Config, origins: Origins, source: str) -> None:
    """Check the patterns of all phases before anything is started. Builds the model, without its data and memory.

    Args:
        origins: the file that has set each key.
        source: the file to name for keys without an origin.

    Raises:
        ConfigErrors: with one `ConfigError` for each pattern that matches no parameter.
    """
    each = [phase.optimizer for phase in phases(config)]
    names = parameter_names(config)
    errors: dict[str, ConfigError] = {}
    if error := _other_model(config):
        errors[str(error)] = error
    for index, optimizer in enumerate(each):
        prefix: KeyPath = ("phases", index) if config.phases else ()
        for error in _unmatched(optimizer, names, origins, source, prefix):
            errors.setdefault(str(error), error)
    if errors:
        raise ConfigErrors(list(errors.values()))


def parameter_names(config: Config) -> list[str]:
    """The names of a model's parameters, which do not depend on its data. Takes no memory."""
    return list(_parameter_shapes(config))


def _parameter_shapes(config: Config) -> dict[str, list[int]]:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        dataset, _ = config.data.assumed(_NoSamples(config.data), config.model.assumed_classes)
        return {name: list(parameter.shape) for name, parameter in named(models.build(config.model, dataset))}


def _other_model(config: Config) -> ConfigError | None:
    """An error for a phase whose images have a size for which the model has other parameters, as learned positions."""
    each = phases(config)
    sizes = [getattr(phase.data, "size", None) for phase in each]
    if len(set(sizes)) == 1:
        return None
    first = _parameter_shapes(each[0])
    for index, phase in enumerate(each):
        if sizes[index] == sizes[0]:
            continue
        for name, shape in _parameter_shapes(phase).items():
            if shape != first[name]:
                problem = f"the model's {name} would be {shape}, and was {first[name]} in the first phase"
                advice = f"write {sizes[0]}, or take a model without learned positions"
                return ConfigError(f"phases[{index}].data.size", sizes[index], problem, advice)
    return None


@dataclass(frozen=True)
class _NoSamples:
    config: DataConfig

    def __len__(self) -> int:
        return 0

    def batch(self, indices: Any, keys: Any) -> dict[str, Any]:
        raise NotImplementedError


def _unmatched(
    optimizer: Optimizer, names: list[str], origins: Origins, source: str, prefix: KeyPath = ()
) -> Iterator[ConfigError]:
    """An error for each pattern that matches no parameter. A phase's key is named where the phase has set it."""
    for key in PATTERNS:
        for index, pattern in enumerate(getattr(optimizer, key)):
            if any(fnmatchcase(name, pattern) for name in names):
                continue
            path: KeyPath = ("optimizer", key)
            if prefix and any(origin[: len(prefix) + 2] == (*prefix, *path) for origin in origins):
                path = (*prefix, *path)
            leaf = (*path, pattern if key == "lr_scale" else index)
            problem = "this pattern matches no parameter"
            yield ConfigError(dotted(path), pattern, problem, nearest(pattern, names), origin_of(leaf, origins, source))


@dataclass(frozen=True)
class GroupCount:
    """What some parameters have in common.

    Attributes:
        weight_decay: of these parameters.
        trust_ratio: whether they have one.
        lr_factor: their learning rate, as a multiple of ``optimizer.lr`` and its schedule.
        parameters, elements: the number of tensors, and of their elements.
        muon: whether Muon updates them, or AdamW in its place; None: the optimizer is another.
    """

    weight_decay: float
    trust_ratio: bool
    lr_factor: float
    parameters: int
    elements: int
    muon: bool | None = None


def count_groups(groups: Iterable[dict[str, Any]], lr: float) -> list[GroupCount]:
    """The param groups of an optimizer in numbers.

    Args:
        lr: the learning rate of parameters without a factor of their own.
    """
    return [
        GroupCount(
            float(group["weight_decay"]), bool(group["trust_ratio"]), float(f"{float(group['lr']) / lr:.6g}"),
            len(group["params"]), sum(numel(p) for p in group["params"]), group.get("muon"),
        )
        for group in groups
    ]  # fmt: skip


_MOST_FACTORS = 8  # in the line that `describe` makes: layer_decay has one for each layer


def describe(counts: Sequence[GroupCount]) -> str:
    """One line: how much is trained with and without weight decay and trust ratio, and by factor of the learning rate.

    >>> describe([GroupCount(0.01, True, 1.0, 2, 4096), GroupCount(0.0, False, 1.0, 3, 96)])
    '2 parameters (4,096 elements) with weight decay 0.01 and trust ratio, 3 (96) with neither'
    """
    if not counts:
        return ""
    kinds = [
        f"{parameters:,} ({elements:,}) with {_kind(*kind)}"
        for kind, (parameters, elements) in _sums(((c.weight_decay, c.trust_ratio, c.muon), c) for c in counts).items()
    ]
    kinds[0] = kinds[0].replace(" (", " parameters (", 1).replace(")", " elements)", 1)
    by_factor = sorted(_sums((c.lr_factor, c) for c in counts).items(), reverse=True)
    if [factor for factor, _ in by_factor] == [1.0]:
        return ", ".join(kinds)
    rates = [f"lr x {factor:g}: {parameters:,} ({elements:,})" for factor, (parameters, elements) in by_factor]
    if len(rates) > _MOST_FACTORS:
        rates[3:-1] = [f"{len(rates) - 4} more"]
    return f"{', '.join(kinds)}; {', '.join(rates)}"


def _kind(weight_decay: float, trust_ratio: bool, muon: bool | None) -> str:
    decay = f"weight decay {weight_decay:g}" if weight_decay else ""
    if muon is not None:
        return f"{'Muon' if muon else 'AdamW'} and {decay or 'no weight decay'}"
    return " and ".join(part for part in (decay, "trust ratio" if trust_ratio else "") if part) or "neither"


def _sums(counts: Iterable[tuple[Any, GroupCount]]) -> dict[Any, tuple[int, int]]:
    sums: dict[Any, tuple[int, int]] = {}
    for key, count in counts:
        parameters, elements = sums.get(key, (0, 0))
        sums[key] = parameters + count.parameters, elements + count.elements
    return sums

"""The optimizers that a config can name. A new one is a file with a `Rule` and a `register` line here. Imports no torch."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bellwether.optimizers.sharded import ShardedOptimizer


@dataclass(frozen=True)
class Entry:
    """What the trainer's config, the engine, the planner and the reports need to know about an optimizer.

    Attributes:
        target: class, or function that makes one, as ``module:name``. Called with params, lr, weight_decay, kernel and
            options.
        options: its other keyword arguments that a config may set.
        layer_wise: whether it has trust ratios unless they are turned off.
        prox_metric: whether it supports ``weight_decay_mode="prox-metric"``.
        defaults: options where a config has another default than the constructor.
        grouping: keyword arguments of `bellwether.optimizers.groups` that it needs.
        grouping_options: its further keyword arguments of `groups` that a config may set.
        averages: whether evaluation and export are of an average that it keeps, for which the learning rate stays constant.
        unsharded: whether it needs whole parameters on each rank, and the engine must not shard them.
    """

    name: str
    target: str
    options: frozenset[str]
    layer_wise: bool = False
    prox_metric: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)
    grouping: Mapping[str, Any] = field(default_factory=dict)
    grouping_options: frozenset[str] = frozenset()
    averages: bool = False
    unsharded: bool = False

    def make(self, params: Any, **options: Any) -> ShardedOptimizer:
        module, _, attribute = self.target.partition(":")
        optimizer: ShardedOptimizer = getattr(importlib.import_module(module), attribute)(params, **options)
        return optimizer


OPTIMIZERS: dict[str, Entry] = {}


def register(name: str, target: str, options: Iterable[str], **attributes: Any) -> None:
    """Add an optimizer. ``attributes`` are the other attributes of `Entry`.

    Raises:
        ValueError: if the name is taken.
    """
    if name in OPTIMIZERS:
        raise ValueError(f"optimizer {name!r} is registered already")
    OPTIMIZERS[name] = Entry(name, target, frozenset(options), **attributes)


def is_layer_wise(name: str, trust_ratio: bool | None = None) -> bool:
    """Whether an optimizer has trust ratios, with the given option. An unknown name is not layer-wise."""
    return trust_ratio if trust_ratio is not None else name in OPTIMIZERS and OPTIMIZERS[name].layer_wise


_PACKAGE = "bellwether.optimizers"
_ADAM = ("betas", "eps", "weight_decay_mode", "trust_ratio", "trust_bounds")

register("lamb", f"{_PACKAGE}.lamb:Lamb", {*_ADAM, "amsgrad", "bias_correction", "prenormalize"}, layer_wise=True)
register(
    "lars", f"{_PACKAGE}.lars:Lars", {"momentum", "nesterov", "trust_coefficient", "trust_bounds", "eps"}, layer_wise=True
)  # fmt: skip
register("adamw", f"{_PACKAGE}.adamw:AdamW", {*_ADAM, "amsgrad"}, prox_metric=True)
register("adam", f"{_PACKAGE}.adam:Adam", {*_ADAM, "amsgrad"}, prox_metric=True)
register(
    "muon", f"{_PACKAGE}.muon:Muon",
    {"momentum", "nesterov", "ns_coefficients", "ns_steps", "adjust_lr_fn", "ns_dtype", "betas", "adam_eps", "adam_lr",
     "weight_decay_mode"},
    grouping={"muon": True}, grouping_options=frozenset({"muon_exclude"}),
)  # fmt: skip
register("radam", f"{_PACKAGE}.radam:RAdam", _ADAM, prox_metric=True, defaults={"weight_decay_mode": "decoupled"})
register(
    "schedule-free-adamw", f"{_PACKAGE}.schedule_free:AdamWScheduleFree",
    {"betas", "eps", "weight_decay_mode", "r", "weight_lr_power"}, averages=True,
)  # fmt: skip
register(
    "sgd", f"{_PACKAGE}.sgd:SGD", {"momentum", "nesterov", "weight_decay_mode", "trust_ratio", "trust_bounds"},
    defaults={"momentum": 0.9},
)  # fmt: skip
register(
    "soap", f"{_PACKAGE}.soap:SOAP",
    {"betas", "shampoo_beta", "eps", "precondition_frequency", "max_precond_dim", "precondition_1d", "weight_decay_mode"}, unsharded=True,
)  # fmt: skip
register("swats", f"{_PACKAGE}.swats:swats_adamw", {"betas", "eps", "weight_decay_mode", "amsgrad", "tolerance"})

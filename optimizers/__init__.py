"""Update rules, sharding, trust ratios, learning rate schedules, batch scaling. Needs torch alone.

optimizer = Lamb(groups(model), lr=2e-3)
engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
attach(engine)

Submodules are imported on first use, so that those without torch (`registry`, `recipes`, `scaling`) load at once.
"""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bellwether.optimizers.adam import Adam as Adam
    from bellwether.optimizers.adamw import AdamW as AdamW
    from bellwether.optimizers.attachment import attach as attach
    from bellwether.optimizers.averaging import WeightAverage as WeightAverage
    from bellwether.optimizers.averaging import recompute_batch_norm as recompute_batch_norm
    from bellwether.optimizers.base import RuleOptimizer as RuleOptimizer
    from bellwether.optimizers.lamb import Lamb as Lamb
    from bellwether.optimizers.lars import Lars as Lars
    from bellwether.optimizers.lookahead import Lookahead as Lookahead
    from bellwether.optimizers.noise_scale import NoiseScale as NoiseScale
    from bellwether.optimizers.param_groups import groups as groups
    from bellwether.optimizers.radam import RAdam as RAdam
    from bellwether.optimizers.scaling import scaled_lr as scaled_lr
    from bellwether.optimizers.scaling import scaled_warmup as scaled_warmup
    from bellwether.optimizers.schedules import Exponential as Exponential
    from bellwether.optimizers.schedules import OneCycle as OneCycle
    from bellwether.optimizers.schedules import Trapezoid as Trapezoid
    from bellwether.optimizers.schedules import WarmupConstant as WarmupConstant
    from bellwether.optimizers.schedules import WarmupCosine as WarmupCosine
    from bellwether.optimizers.schedules import WarmupLinear as WarmupLinear
    from bellwether.optimizers.schedules import WarmupPolynomial as WarmupPolynomial
    from bellwether.optimizers.schedules import WarmupStep as WarmupStep
    from bellwether.optimizers.sgd import SGD as SGD
    from bellwether.optimizers.sharded import ShardedOptimizer as ShardedOptimizer
    from bellwether.optimizers.swats import Swats as Swats
    from bellwether.optimizers.trajectory import Trajectory as Trajectory

_MODULES = {
    "adam": ("Adam",),
    "adamw": ("AdamW",),
    "attachment": ("attach",),
    "averaging": ("WeightAverage", "recompute_batch_norm"),
    "base": ("RuleOptimizer",),
    "lamb": ("Lamb",),
    "lars": ("Lars",),
    "lookahead": ("Lookahead",),
    "noise_scale": ("NoiseScale",),
    "param_groups": ("groups",),
    "radam": ("RAdam",),
    "scaling": ("scaled_lr", "scaled_warmup"),
    "schedules": (
        "Exponential", "OneCycle", "Trapezoid", "WarmupConstant", "WarmupCosine", "WarmupLinear", "WarmupPolynomial",
        "WarmupStep",
    ),
    "sgd": ("SGD",),
    "sharded": ("ShardedOptimizer",),
    "swats": ("Swats",),
    "trajectory": ("Trajectory",),
}  # fmt: skip
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
_RENAMED = {"Walk": "Trajectory", "Composed": "RuleOptimizer"}  # old names, which work for one more version

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        warnings.warn(f"{__name__}.{name} is now {_RENAMED[name]}", DeprecationWarning, stacklevel=2)
        return __getattr__(_RENAMED[name])
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

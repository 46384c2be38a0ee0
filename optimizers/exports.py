"""The public names of `bellwether.optimizers`, and the modules that they are imported from on first use."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

_PACKAGE = "bellwether.optimizers"  # also where a checkout's folder is imported as `optimizers`
_MODULES = {
    "adam": ("Adam",),
    "adamw": ("AdamW",),
    "attachment": ("attach",),
    "averaging": ("WeightAverage", "recompute_batch_norm"),
    "base": ("RuleOptimizer",),
    "lamb": ("Lamb",),
    "lars": ("Lars",),
    "lookahead": ("Lookahead",),
    "muon": ("Muon",),
    "noise_scale": ("NoiseScale",),
    "param_groups": ("groups",),
    "radam": ("RAdam",),
    "scaling": ("scaled_lr", "scaled_warmup"),
    "schedules": (
        "Exponential", "OneCycle", "Trapezoid", "WarmupConstant", "WarmupCosine", "WarmupExponential", "WarmupLinear",
        "WarmupPolynomial", "WarmupStep",
    ),
    "schedule_free": ("AdamWScheduleFree",),
    "sgd": ("SGD",),
    "sharded": ("ShardedOptimizer",),
    "soap": ("SOAP",),
    "swats": ("Swats",),
    "trajectory": ("Trajectory",),
}  # fmt: skip
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
_RENAMED = {"Walk": "Trajectory", "Composed": "RuleOptimizer"}  # old names, which work for one more version


def names() -> list[str]:
    return sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    """Import a name of the package: PEP 562."""
    if name in _RENAMED:
        warnings.warn(f"{_PACKAGE}.{name} is now {_RENAMED[name]}", DeprecationWarning, stacklevel=2)
        name = _RENAMED[name]
    if name not in _MODULE_OF:
        raise AttributeError(f"module {_PACKAGE!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{_PACKAGE}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return names()

"""Each switch of the training step on its own: time and losses with it and without. A key that this version lacks is named."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

from pydantic import BaseModel

from scripts.gpu_suite import steps, workloads
from scripts.gpu_suite.context import Context
from scripts.measurements import largest_difference

Changes = dict[str, Any]


@dataclass(frozen=True)
class Switch:
    """A key, its values without and with it, and the config on which it counts.

    Attributes:
        key: of a config; or ``module:NAME``, a constant of the code that no key sets.
        tolerance: relative, of the losses of the first updates with it: what another order of sums, or fewer bits, leave in them.
    """

    key: str
    off: Any
    on: Any
    config: Callable[[bool], Changes]
    tolerance: float = 2e-2


def _bert(dry: bool) -> Changes:
    return workloads.bert(dry, 128, 256, model={"dropout": 0.0})


def _bert_fp32(dry: bool) -> Changes:
    return workloads.bert(
        dry, 128, 32, model={"dropout": 0.0, "size": "tiny" if dry else "base"}, engine={"precision": "fp32"}
    )


def _resnet(dry: bool) -> Changes:
    return workloads.resnet(dry, 256)


_VOCABULARY = "bellwether.trainer.models.vocabulary"
SWITCHES = [
    Switch("engine.compile", "none", "layers", _bert),
    Switch("engine.compile", "none", "layers", _resnet),
    Switch("engine.channels_last", False, True, _resnet),
    Switch("engine.cudnn_benchmark", False, True, _resnet),
    Switch("engine.tf32", False, True, _bert_fp32),
    Switch(f"{_VOCABULARY}:MULTIPLE", 1, 64, _bert),
    Switch(f"{_VOCABULARY}:KEPT", 2**62, 0, _bert),  # the logits in chunks, or all at once
    Switch("engine.activation_checkpointing", False, True, _bert),
]


def run(context: Context) -> None:
    absent = []
    for switch in SWITCHES:
        raw = switch.config(context.dry)
        if not has_key(raw, switch.key):
            absent.append(switch.key)
            continue
        if context.dry and switch.key == "engine.compile":
            context.note("engine.compile: not in a dry run; compiling takes a minute of a CPU")
            continue
        try:
            _compare(context, switch, raw)
        except Exception as error:  # of a compiler, or out of memory: the next switches are still of interest
            context.check(
                f"{switch.key}: {switch.on}", False, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            )
    if absent:
        context.note(f"not in this version: {', '.join(dict.fromkeys(absent))}")


def _compare(context: Context, switch: Switch, raw: Changes) -> None:
    counts: dict[str, Any] = {"count": 2, "warmup": 1} if context.dry else {"count": 15, "warmup": 5, "profiled": 2}
    off, on = (_measured(raw, switch.key, value, context, counts) for value in (switch.off, switch.on))
    gain = on.step.ratio(off.step)
    context.row(
        switch=switch.key, value=str(switch.on), model=raw["model"]["kind"], **{
            "samples/s without": off.samples_per_second, "with": on.samples_per_second,
            "time with / without": gain if gain is not None else "ranges overlap",
            "kernels without": off.kernels, "kernels with": on.kernels,
            "GiB without": None if off.peak is None else off.peak / 2**30, "GiB with": None if on.peak is None else on.peak / 2**30,
            "first step s": on.first,
        },
    )  # fmt: skip
    difference = largest_difference(on.losses, off.losses)
    context.check(
        f"{switch.key}: {switch.on}: the same losses", difference <= switch.tolerance, f"within {difference:.1e}"
    )


def _measured(raw: Changes, key: str, value: Any, context: Context, counts: dict[str, Any]) -> steps.StepTimes:
    module, _, name = key.partition(":")
    if not name:
        return steps.measure(changed(raw, key, value), context.world, **counts)
    with mock.patch.object(importlib.import_module(module), name, value):
        return steps.measure(raw, context.world, **counts)


def changed(raw: Changes, key: str, value: Any) -> Changes:
    """
    >>> changed({"engine": {"stage": 1}}, "engine.tf32", True)
    {'engine': {'stage': 1, 'tf32': True}}
    """
    section, _, name = key.partition(".")
    return {**raw, section: {**raw.get(section, {}), name: value}}


def has_key(raw: Changes, key: str) -> bool:
    """Whether this version has a key, in a config of this kind of model, or a constant."""
    if ":" in key:
        module, _, constant = key.partition(":")
        return importlib.util.find_spec(module) is not None and hasattr(importlib.import_module(module), constant)
    from bellwether.trainer.config import validate

    value: Any = validate({"name": "x", "duration": "1 steps", **raw})
    for name in key.split("."):
        if not isinstance(value, BaseModel) or name not in type(value).model_fields:
            return False
        value = getattr(value, name)
    return True

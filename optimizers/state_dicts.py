"""State dicts of torch, apex, timm and older versions, and the keys that a param group may have."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from bellwether.optimizers import deprecation
from bellwether.optimizers.weight_decay import infer_peak_lr

Group = dict[str, Any]

# Of the options and of the state. A state dict has it in each group, as torch's tools accept no other keys beside them.
VERSION = 2
VERSION_KEY = "state_version"

# Options that older versions did not have, with the value that they behaved as.
ADDED_OPTIONS: dict[str, Any] = {
    "prenormalize": False, "peak_lr": None, "max_grad_norm": None, "grad_averaging": True, "always_adapt": None,
    "stochastic_rounding": False, "kahan_sum": False, "rounding_seed": 0, "capturable": False,
}  # fmt: skip

# Keys without effect on the update: of torch, its schedulers, DeepSpeed, and notes of the user.
_NOTES = frozenset({
    "params", "param_names", "name", "group_name", "moe", "step", "initial_lr", "max_lr", "min_lr", "swa_lr", "lr_scale",
    "base_momentum", "max_momentum", "inferred_peak_lr", "peak_weight_decay", "swats_gamma", "swats_steps", "swats_rate",
    "fused", "foreach", "differentiable", "decoupled_weight_decay", VERSION_KEY, *deprecation.RENAMED,
})  # fmt: skip


def refuse_unknown_keys(group: Group, options: Iterable[str], optimizer: str) -> None:
    """Refuse a key that the optimizer does not have, as a misspelled one would be ignored.

    Raises:
        ValueError: with the nearest option.
    """
    for key in group.keys() - _NOTES - set(options):
        if not key.startswith("_"):
            advice = f"did you mean {near!r}?" if (near := nearest(key, frozenset(options))) else "omit it"
            raise ValueError(
                f"param group with {key}={group[key]!r}: {optimizer} has no such option; {advice} (a note of your own: "
                f"'_{key}'; the options: {', '.join(sorted(options))})"
            )


def refuse_misspelled_keys(group: Group, options: frozenset[str], optimizer: str) -> None:
    """The same for keys that were set later, where schedulers add their own: only those close to an option."""
    for key in group.keys() - options - _NOTES:
        if not key.startswith("_") and (near := nearest(key, options)):
            raise ValueError(
                f"param group with {key}={group[key]!r}: {optimizer} has no such option; did you mean {near!r}?"
            )


@functools.cache
def nearest(key: str, options: frozenset[str]) -> str | None:
    """The option that a misspelled key is closest to, if any is close."""
    return next(iter(difflib.get_close_matches(key, sorted(options), 1, 0.75)), None)


def complete(group: Group, defaults: Group) -> None:
    """Add the options that a group of an older version or of a partial load lacks."""
    for key in defaults.keys() - group.keys() - _NOTES:  # torch adds `differentiable`
        group[key] = ADDED_OPTIONS.get(key, defaults[key])


def upgraded(saved: dict[str, Any], groups: list[Group], defaults: Group, optimizer: str) -> dict[str, Any]:
    """A state dict of torch's, apex's, timm's or an older optimizer, in the form of this version.

    Args:
        groups: those to load into. An option that the saved group lacks stays as it is there.

    Raises:
        ValueError: for a state of a newer version, and for options of other packages that this one does not have.
    """
    state = {key: dict(value) if isinstance(value, dict) else value for key, value in saved["state"].items()}
    # Without the options of wrappers, which have taken theirs.
    saved_groups = [{key: value for key, value in group.items() if "." not in key} for group in saved["param_groups"]]
    for index, (group, own) in enumerate(zip(saved_groups, groups, strict=False)):
        version = group.pop(VERSION_KEY, 1)
        if version > VERSION:
            raise ValueError(
                f"the state is of version {version}, and this {optimizer} reads up to {VERSION}: update Bellwether"
            )
        deprecation.upgrade(group, warn=False)
        if "weight_decay_mode" not in group and "decoupled_weight_decay" in group:
            group["weight_decay_mode"] = "decoupled" if group["decoupled_weight_decay"] else "l2"
        _translate(group, own, defaults, index)
        is_inferred = own.get("peak_lr") == own.get("inferred_peak_lr")
        for key in defaults.keys() - group.keys() - _NOTES:
            group[key] = None if key == "peak_lr" and is_inferred else own.get(key, defaults[key])
        infer_peak_lr(group)
        group["capturable"] = own["capturable"]  # of the implementation, not of the state
        if not own["capturable"] and isinstance(group["lr"], Tensor) and not isinstance(own["lr"], Tensor):
            group["lr"] = float(group["lr"])
        step = group.pop("step", None)  # apex's and timm's, of the whole group
        for key in group["params"]:
            if step is not None and state.get(key):
                state[key].setdefault("step", torch.tensor(float(step), dtype=torch.float32, device="cpu"))
    for values in state.values():
        if isinstance(values, dict) and values.get("momentum_buffer", 0) is None:  # torch's SGD without momentum
            del values["momentum_buffer"]
    return {**saved, "state": state, "param_groups": saved_groups}


def _translate(group: Group, own: Group, defaults: Group, index: int) -> None:
    """Options of apex's and timm's LAMB that this package has under other names, or not."""
    if group.get("always_adapt", True) is False and "trust_ratio" not in group and not group["weight_decay"]:
        group["trust_ratio"] = False  # timm's LAMB scales no group without weight decay
    if group.get("trust_clip") and defaults.get("trust_bounds") is None:
        group["trust_bounds"] = (0.0, 1.0)
    for key, value in _ABSENT.items():
        if key not in group:
            continue
        found = group.pop(key)
        if value is not None and found != value:
            raise ValueError(
                f"param group {index} of the state has {key}={found!r}: only {value!r} can be continued from"
            )


# Options of timm's LAMB that no optimizer here has, with the value that a state can be continued from; None: any.
_ABSENT: dict[str, Any] = {"trust_clip": None, "caution": False, "corrected_weight_decay": False}


def check_state(state_dict: dict[str, Any], names: Callable[[Group], set[str]], kept: set[str], optimizer: str) -> None:
    """Refuse the state of another optimizer.

    Args:
        names: the state tensors that a group needs.
        kept: those that it may have in addition.

    Raises:
        ValueError: with the tensors that are missing or too many.
    """
    for group in state_dict["param_groups"]:
        needed = names(group)
        for key in group["params"]:
            values = state_dict["state"].get(key) or {}
            found = {name for name, value in values.items() if isinstance(value, Tensor) and name != "step"}
            if not values:
                continue
            if missing := needed - found:
                raise ValueError(
                    f"the state has {', '.join(sorted(found)) or 'no tensors'} for a parameter, and {optimizer} needs "
                    f"{', '.join(sorted(missing))}: it is the state of another optimizer"
                )
            if extra := found - needed - kept:
                raise ValueError(
                    f"the state has {', '.join(sorted(extra))}, which {optimizer} does not use: load it into the optimizer "
                    "that saved it, wrappers included, or delete these tensors from it"
                )

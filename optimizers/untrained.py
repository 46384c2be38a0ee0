"""Refuses to train nothing: parameters that were replaced, or unfrozen, behind the optimizer's back."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

Group = dict[str, Any]


def refuse_replaced(
    groups: list[Group], state: Mapping[Tensor, Any], names: Mapping[Tensor, str], *, has_trained: bool
) -> None:
    """Refuse tensors that never had a gradient where a model has another parameter in their place that has one.

    `fully_shard` and ``load_state_dict(assign=True)`` put new parameters into the model: an optimizer that was made before trains the
    old ones, which get no gradients. Searches all modules of the process, which takes a moment: call it seldom.

    Args:
        has_trained: whether a tensor had a gradient in this step or an earlier one of this process. If none had, state is from a
            checkpoint.

    Raises:
        RuntimeError: with the names of the first such parameters.
    """
    given = {id(p) for group in groups for p in group["params"]}
    silent = [p for g in groups for p in g["params"] if p.requires_grad and p.grad is None]
    silent = [p for p in silent if not (has_trained and state.get(p))]
    if not silent:
        return
    others: dict[tuple[int, ...], set[str]] = {}
    held: set[int] = set()  # the parameters of all modules
    for thing in gc.get_objects():
        if issubclass(type(thing), nn.Module) and not hasattr(type(thing), "__torch_dispatch__"):
            for name, p in thing.__dict__.get("_parameters", {}).items():
                held.add(id(p))
                if p is not None and id(p) not in given and p.grad is not None:
                    others.setdefault(tuple(p.shape), set()).add(name)
    silent = [p for p in silent if not (state.get(p) and id(p) in held)]  # of another part of the model
    replaced = [name for p in silent if (name := names.get(p)) and _own(name, others.get(tuple(p.shape), set()))]
    if replaced:
        raise RuntimeError(
            f"{', '.join(replaced[:3])} ({len(replaced)} parameters) never had a gradient, while the model has other parameters "
            "in their place that have: the optimizer was made before fully_shard(), load_state_dict(assign=True), or something else "
            "that replaces parameters, and would train nothing. Make it afterwards"
        )


def _own(name: str, found: set[str]) -> bool:
    """Whether one of these is the parameter's own name; without names, as of model.parameters(), the shape decides."""
    own = name.rsplit(".", 1)[-1]
    return bool(found) and (own in found or own.isdigit())

"""How many steps each tensor has taken, kept in its state under torch's name, ``step``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bellwether.optimizers.recent import Recent
from bellwether.optimizers.scalars import StepCount

State = dict[str, Any]

_MAX_BLOCKS = 1024  # engines call step() for one sub-group at a time


class StepCounts:
    """Counts a step of each tensor: engines call step() for one sub-group at a time.

    The counts of tensors that take their steps together are views of one tensor, a block, so that one addition advances all:
    additions to 4,000 tensors took as long as the update of 4,000 small weights.
    """

    def __init__(self) -> None:
        # By the ids of its views, which it keeps alive. Each view was made here, for one tensor.
        self._blocks: Recent[tuple[int, ...], tuple[Tensor, list[Tensor]]] = Recent(_MAX_BLOCKS)

    def advance(
        self, tensors: Sequence[Tensor], states: Sequence[State], capturable: Sequence[bool]
    ) -> list[StepCount]:
        """The counts after this step, from 1: numbers, or with ``capturable`` tensors on the device, float64 [].

        Args:
            capturable: of each tensor's group.
        """
        for tensor, state, on_device in zip(tensors, states, capturable, strict=True):
            if "step" not in state:
                device = tensor.device if on_device else torch.device("cpu")
                state["step"] = torch.tensor(0.0, dtype=torch.float32, device=device)
        is_repeated = len(set(map(id, states))) < len(states)  # a parameter given twice is updated twice
        if any(capturable) or is_repeated:
            return [self._advance(state, on_device) for state, on_device in zip(states, capturable, strict=True)]
        key = _ids(states)  # not known also where DeepSpeed's universal checkpoint has given all the same tensor
        block = self._blocks[key][0] if key in self._blocks else self._new_block(states)
        block.add_(1)
        return list(map(int, block.tolist()))

    def _new_block(self, states: Sequence[State]) -> Tensor:
        block = torch.tensor([float(state["step"]) for state in states], dtype=torch.float32, device="cpu")
        views = list(block.unbind())
        for state, view in zip(states, views, strict=True):
            state["step"] = view
        self._blocks[_ids(states)] = block, views
        return block

    @staticmethod
    def _advance(state: State, on_device: bool) -> StepCount:
        if on_device:  # in the memory that a graph has captured
            return state["step"].add_(1).double()
        state["step"] = state["step"] + 1
        return int(state["step"].item())


def _ids(states: Sequence[State]) -> tuple[int, ...]:
    return tuple([id(state["step"]) for state in states])


def place(states: dict[Tensor, State], groups: Sequence[dict[str, Any]]) -> None:
    """Put loaded counts where the groups need them: on the CPU, where reading them waits for no device, or on the device."""
    on_device = {id(p) for group in groups if group["capturable"] for p in group["params"]}
    for tensor, state in states.items():
        # torch's SGD does not count: this is not the first step
        step = state.get("step", 1 if "momentum_buffer" in state else 0)
        device = tensor.device if id(tensor) in on_device else torch.device("cpu")
        if isinstance(step, Tensor):
            state["step"] = step.to(device, torch.float32)
        elif step:
            state["step"] = torch.tensor(float(step), dtype=torch.float32, device=device)

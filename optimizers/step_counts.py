"""How many steps each tensor has taken, kept in its state under torch's name, ``step``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bellwether.optimizers.scalars import StepCount

State = dict[str, Any]


class StepCounts:
    """Counts a step of each tensor: engines call step() for one sub-group at a time."""

    def __init__(self) -> None:
        self._own: dict[int, Tensor] = {}  # by id, the step tensors that were made here, each for one tensor

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
        steps = [state["step"] for state in states]
        # In place only what was made here: DeepSpeed's universal checkpoint gives all tensors the same step tensor, also
        # those of sub-groups whose step() comes later.
        if steps and all(self._own.get(id(step)) is step for step in steps):
            torch._foreach_add_(steps, 1)
        else:
            steps = [step + 1 for step in steps]
            for state, step in zip(states, steps, strict=True):
                state["step"] = self._own[id(step)] = step
        return list(map(int, map(Tensor.item, steps)))

    @staticmethod
    def _advance(state: State, on_device: bool) -> StepCount:
        if on_device:  # in the memory that a graph has captured
            return state["step"].add_(1).double()
        state["step"] = state["step"] + 1
        return int(state["step"].item())


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

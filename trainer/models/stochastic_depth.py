"""Stochastic depth (Huang et al. 2016, 1603.09382): in training, residual branches are left out at random, sample by sample.

The rate grows on a line from 0 at the first block to that of the config at the last one, and the branches that are kept are divided
by the probability of being kept, as in timm and torchvision. Which branches a sample loses is a function of its key, which
comes with the batch, so it does not depend on the number of processes, the micro-batch or where a run was resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

_KEY = 0x6465707468  # separates its random numbers from those of the data
_STEP, _FIRST, _SECOND = (n - 2**64 for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))  # as int64


class StochasticDepth:
    """Leaves out the branches of a model.

    Args:
        branches: the modules whose output is added to the shortcut, from the first block to the last.
        rate: of the last one, in [0, 1).
    """

    def __init__(self, branches: Sequence[nn.Module], rate: float) -> None:
        self.rates = [rate * index / max(1, len(branches) - 1) for index in range(len(branches))]
        self._keys: Tensor | None = None
        for index, branch in enumerate(branches):
            branch.register_forward_hook(self._hook(index))

    def start(self, keys: Tensor | None) -> None:
        """Take the keys of the samples of the next forward pass, int64 [B].

        They are kept until the next one, because activation checkpointing repeats the forward pass in the backward pass.
        """
        self._keys = keys

    def _hook(self, index: int) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        rate = self.rates[index]

        def leave_out(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            if not (module.training and rate):
                return output
            if self._keys is None:
                raise ValueError("stochastic depth needs the keys of the samples, sample_keys, in a training batch")
            factor = (uniform(self._keys ^ _KEY, index) >= rate).to(output.dtype) / (1 - rate)
            return output * factor[:, None, None, None]

        return leave_out


def uniform(keys: Tensor, index: int) -> Tensor:
    """The random fraction with a number for each key: float64 [B]; bit by bit that of `bellwether.trainer.data.sampling`.

    On the device of the keys, by the products of int64, which drop what exceeds 64 bits.
    """
    step = (((index + 1) * _STEP + 2**63) % 2**64) - 2**63
    return _shifted(_mix(_mix(keys) + step), 11).double() * 2.0**-53


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shifted(z, 30)) * _FIRST
    z = (z ^ _shifted(z, 27)) * _SECOND
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, bits: int) -> Tensor:
    """The bits of int64 shifted to the right, filled with zeros."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)

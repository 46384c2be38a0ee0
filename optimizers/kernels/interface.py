"""The interface of a kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from bellwether.optimizers.kernels.tensor_list import TensorList
from bellwether.optimizers.kernels.wide_weights import Convert

FusedStep = Callable[[TensorList, Any, float, tuple[float, float]], Tensor]


class Kernel(Protocol):
    """A module that updates lists of tensors. Sums are float64 [2, segments], on the tensors' device.

    ``formula`` is a `Coefficients` for the compiled kernels, a `RuleCall` for the reference.
    """

    def gradient_norms(self, tensors: TensorList, formula: Any) -> Tensor:
        """||w||^2 and ||g||^2 of each segment, with g times the formula's ``grad``. Changes nothing."""

    def update_moments(self, tensors: TensorList, formula: Any) -> Tensor:
        """Update the moments. Returns ||w||^2 and ||u||^2 of each segment, u being the direction."""

    def apply_update(self, tensors: TensorList, formula: Any, rates: Tensor) -> None:
        """Update the weights after `update_moments`. ``rates`` [segments] is lr times trust ratio."""

    def step(self, tensors: TensorList, formula: Any, scales: Tensor | None = None) -> None:
        """Update moments and weights at once. ``scales`` [segments] is lr times trust ratio, where that scales g."""

    @property
    def fused_step(self) -> FusedStep | None:
        """`update_moments`, trust ratios ||w|| / ||u|| and `apply_update` at once, of (tensors, formula, lr, bounds).

        Returns the ratios [segments]. None if the kernel does not have it.
        """

    @property
    def convert(self) -> Convert | None:
        """Convert contiguous 16-bit weights to float32 copies, or back, of (conversion, weights, keys).

        ``keys`` are those of `bellwether.optimizers.rounding.keys`, for the conversion "stochastic". None if the kernel
        does not have it.
        """

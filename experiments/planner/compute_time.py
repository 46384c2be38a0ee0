"""The time of the forward and backward pass of a micro-batch: matrix products, traffic with the memory, and a fixed part.

A sum rather than the maximum of a roofline (Williams et al. 2009): convolutions and attention keep the matrix units busy, then
normalization, activations and dropout read and write what was saved, and few kernels do both at once. The constants are fitted to
published measurements: docs/results/planner.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from bellwether.experiments.planner.gpus import Gpu
from bellwether.trainer.memory.activations import Profile

BANDWIDTH_EFFICIENCY = 0.8  # achieved share of a nominal bandwidth, of memory and links
FIXED = 20e-6  # seconds for each parameter tensor, whatever the micro-batch: kernels too small to fill a GPU


@dataclass(frozen=True)
class ComputeTime:
    """Seconds of a micro-batch: ``fixed + micro x per_sample``."""

    fixed: float
    per_sample: float

    def seconds(self, micro: float) -> float:
        return self.fixed + micro * self.per_sample

    @classmethod
    def estimate(cls, profile: Profile, gpu: Gpu, precision: str, efficiency: float, traffic: float) -> ComputeTime:
        """From a GPU's data sheet.

        Args:
            efficiency: share of the GPU's peak that matrix products reach.
            traffic: bytes read and written for each byte that is saved for the backward pass.
        """
        products = profile.flops / (efficiency * gpu.peak(precision))
        memory = traffic * profile.saved_per_sample / (BANDWIDTH_EFFICIENCY * 1e9 * gpu.bandwidth)
        return cls(FIXED * tensors(profile), products + memory)

    @classmethod
    def measured(cls, seconds: float, micro: int, profile: Profile) -> ComputeTime:
        """From the time of a micro-batch of a known size; of it the fixed part is assumed, but at most half."""
        fixed = min(FIXED * tensors(profile), seconds / 2)
        return cls(fixed, (seconds - fixed) / micro)


def tensors(profile: Profile) -> int:
    """Number of trained parameter tensors."""
    return sum(map(len, profile.groups))

"""Mean loss and accuracy over held-out samples: one sum for the evaluation of a run and for that of an export."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor


class HeldOutMeans:
    """Weighted sums over batches, in float64.

    Args:
        further: number of further losses of the task, as `bellwether.trainer.models.tasks.Task.further_losses`.
        device: of the outputs.
    """

    def __init__(self, further: int, device: torch.device) -> None:
        self._further = further
        self._sums = torch.zeros(3 + further, dtype=torch.float64, device=device)

    def add(self, weight: Tensor, outputs: Sequence[Tensor]) -> list[Tensor]:
        """Add a batch.

        Args:
            weight: [B], 0 for a sample that only fills up its batch, and the share of a whole window for one of a stream.
            outputs: of the task: losses [B], correctness [B], predictions where it has some, and further losses [B, further].

        Returns:
            The predictions.
        """
        losses, correct, *rest = outputs
        values = [correct, losses, *(rest.pop().unbind(1) if self._further else ())]
        weight = weight.double()
        self._sums += torch.stack([weight.sum(), *((each.double() * weight).sum() for each in values)])
        return rest

    def all_reduce(self) -> None:
        """Add up the sums of all ranks. Collective."""
        dist.all_reduce(self._sums)

    def results(self, of_losses: Callable[..., dict[str, float]]) -> dict[str, float]:
        """``loss``, ``accuracy`` where it is defined, ``examples`` and what a task makes of its mean losses (`Task.results`)."""
        count, correct, *losses = self._sums.tolist()
        means = [each / count for each in losses]
        # Of streams, a last window counts by its length.
        results = {"loss": means[0], **of_losses(*means), "accuracy": correct / count, "examples": round(count)}
        if math.isnan(correct):
            del results["accuracy"]
        return results

    @property
    def count(self) -> int:
        """The number of samples, without those that fill up a batch."""
        return round(float(self._sums[0]))

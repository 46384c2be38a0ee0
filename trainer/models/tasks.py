"""Training tasks: a model together with the loss of each sample of a batch."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn
from torch.nn import functional


class Task(nn.Module):
    """A model and its loss.

    Attributes:
        model: the `PreTrainedModel`, which is exported.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, **batch: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and correctness of each sample, both float32 [B]. `bellwether.trainer.data.Samples` describes a batch.

        The loss of a global batch is the mean over its samples, independent of how they are split into micro-batches.
        """
        raise NotImplementedError


class MaskedLanguageModelling(Task):
    """Predict the masked tokens. Correctness is the fraction of them that is predicted correctly.

    Every sample has the same number of masked tokens k. The logits over the vocabulary are computed at these positions
    only, about one in seven, which saves most of the head's time and memory.
    """

    def forward(self, *, input_ids: Tensor, masked_positions: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        logits = self.logits(input_ids, masked_positions).float()
        losses = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
        return losses.mean(dim=1), (logits.argmax(dim=2) == labels).float().mean(dim=1)

    def logits(self, input_ids: Tensor, masked_positions: Tensor) -> Tensor:
        """The logits at the masked positions: [B, L] tokens and [B, k] positions to [B, k, V]."""
        hidden = self.model.bert(input_ids).last_hidden_state
        positions = masked_positions.unsqueeze(2).expand(-1, -1, hidden.shape[2])
        return self.model.cls(hidden.gather(1, positions))


class Classification(Task):
    """Predict the class of an image. Correctness is 1 or 0."""

    def forward(self, *, pixel_values: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Images [B, C, S, S]; or V views of each, [B, V, C, S, S], whose predicted probabilities are averaged."""
        if pixel_values.dim() == 5:
            count, views = pixel_values.shape[:2]
            log_probabilities = self._logits(pixel_values.flatten(0, 1)).log_softmax(1).view(count, views, -1)
            logits = log_probabilities.logsumexp(1) - math.log(views)
        else:
            logits = self._logits(pixel_values)
        losses = functional.cross_entropy(logits, labels, reduction="none")
        return losses, (logits.argmax(dim=1) == labels).float()

    def _logits(self, pixel_values: Tensor) -> Tensor:
        # The engine casts the model, but not the batch.
        dtype = next(self.model.parameters()).dtype
        return self.model(pixel_values.to(dtype)).logits.float()

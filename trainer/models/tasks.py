"""What a model is trained to do: from a batch to the loss of each sample."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn
from torch.nn import functional


class Task(nn.Module):
    """A model and its loss.

    Attributes:
        model: the `PreTrainedModel`, which is what gets exported.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, **batch: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and correctness of each sample, both float32 [B]. See `bellwether.trainer.data.Samples` for what a batch holds.

        The loss of a global batch is the mean over its samples, however they are split.
        """
        raise NotImplementedError


class MaskedLanguageModelling(Task):
    """Predict the masked tokens. Correctness is the share of them that are.

    Every sample has the same number of masked tokens k. Scores over the vocabulary are computed at these only, about
    one position in seven, which saves most of the head's time and memory.
    """

    def forward(self, *, input_ids: Tensor, masked_positions: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        scores = self.scores(input_ids, masked_positions).float()
        losses = functional.cross_entropy(scores.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
        return losses.mean(dim=1), (scores.argmax(dim=2) == labels).float().mean(dim=1)

    def scores(self, input_ids: Tensor, masked_positions: Tensor) -> Tensor:
        """[B, L] tokens and [B, k] positions to scores over the vocabulary at these, [B, k, V]."""
        hidden = self.model.bert(input_ids).last_hidden_state
        places = masked_positions.unsqueeze(2).expand(-1, -1, hidden.shape[2])
        return self.model.cls(hidden.gather(1, places))


class Classification(Task):
    """Name the class of an image. Correctness is 1 or 0."""

    def forward(self, *, pixel_values: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Images [B, C, S, S]; or V views of each, [B, V, C, S, S], whose probabilities are averaged."""
        if pixel_values.dim() == 5:
            count, views = pixel_values.shape[:2]
            scores = self._scores(pixel_values.flatten(0, 1)).log_softmax(1).view(count, views, -1)
            scores = scores.logsumexp(1) - math.log(views)
        else:
            scores = self._scores(pixel_values)
        losses = functional.cross_entropy(scores, labels, reduction="none")
        return losses, (scores.argmax(dim=1) == labels).float()

    def _scores(self, pixel_values: Tensor) -> Tensor:
        # An engine casts the model, not the batch.
        dtype = next(self.model.parameters()).dtype
        return self.model(pixel_values.to(dtype)).logits.float()

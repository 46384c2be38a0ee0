"""The output layer of masked language modelling: logits over a vocabulary, and the cross-entropy of given labels in chunks.

GPUs multiply matrices whose sides are multiples of 64 several times as fast as others, and vocabularies rarely are (30,522). The
padding is part of the product only: weights, gradients, checkpoints and exports have the vocabulary's own size, so that norms and
trust ratios see no other numbers. It costs a copy of the output weights in each pass, 0.1 % of the time of a micro-batch of
BERT-large by its bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

MULTIPLE = 64
# Logits up to this number are kept for the backward pass (256 MiB in bf16); beyond it they are computed in chunks of at most
# CHUNK, twice: a third more work for the output layer, and about 1 GiB for any micro-batch.
KEPT = 2**27
CHUNK = 2**26


def padded(vocabulary: int) -> int:
    """The number of logits that are computed for a vocabulary.

    >>> padded(30522), padded(4096)
    (30528, 4096)
    """
    return math.ceil(vocabulary / MULTIPLE) * MULTIPLE


def chunks(rows: int, vocabulary: int) -> list[slice]:
    """The positions whose logits are computed at a time: all, or as equal parts as rows allow."""
    logits = rows * padded(vocabulary)
    count = math.ceil(logits / CHUNK) if logits > KEPT else 1
    size = max(1, math.ceil(rows / count))
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


class VocabularyHead(nn.Linear):
    """A linear layer to the vocabulary. Inside `losses_of` it returns losses and correctness in place of the logits."""

    _labels: Tensor | None = None

    @classmethod
    def replace(cls, model: Any) -> VocabularyHead | None:
        """Change the class of a model's output layer to this one, in place; None where it has another kind of layer."""
        layer = model.get_output_embeddings()
        if type(layer) is not nn.Linear:
            return layer if isinstance(layer, cls) else None
        layer.__class__ = cls
        assert isinstance(layer, cls)
        return layer

    @contextmanager
    def losses_of(self, labels: Tensor) -> Iterator[None]:
        """Inside this context the layer turns hidden states [B, k, H] into cross-entropy and correctness, float32 [B, k, 2]."""
        self._labels = labels
        try:
            yield
        finally:
            self._labels = None

    def forward(self, input: Tensor) -> Tensor:
        """The logits [..., V] of hidden states [..., H]."""
        labels = self._labels
        if labels is None:
            return super().forward(input)
        # In the layer's own forward, because ZeRO-3 gathers its weights for that.
        hidden = input.reshape(labels.numel(), self.in_features)
        losses, correct = _CrossEntropy.apply(hidden, self.weight, self.bias, labels.reshape(-1))
        return torch.stack([losses, correct], dim=-1).view(*labels.shape, 2)


class _CrossEntropy(torch.autograd.Function):
    """Cross-entropy [N] in float32 and correctness [N] of hidden states [N, H], without the logits of all N rows at once."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> tuple[Tensor, Tensor]:
        parts = chunks(len(labels), len(weight))
        matrix, offsets = _padded(weight, bias)
        losses, correct = hidden.new_empty(len(labels), dtype=torch.float32), []
        kept = None
        for part in parts:
            logits = functional.linear(hidden[part], matrix, offsets)
            log_probabilities = functional.log_softmax(logits, 1, dtype=torch.float32)
            losses[part] = functional.nll_loss(log_probabilities, labels[part], reduction="none")
            correct.append(logits.argmax(dim=1) == labels[part])
            if len(parts) == 1:  # the smaller of the two; the other is computed from it
                kept = log_probabilities if logits.dtype == torch.float32 else logits
        ctx.save_for_backward(hidden, weight, bias, labels, kept)
        are_correct = torch.cat(correct).float()
        ctx.mark_non_differentiable(are_correct)
        return losses, are_correct

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, labels, kept = ctx.saved_tensors
        vocabulary, parts = len(weight), chunks(len(labels), len(weight))
        matrix, offsets = _padded(weight, bias)
        of_hidden = torch.empty_like(hidden)
        # Sums over several chunks are kept in float32 at least.
        dtype = weight.dtype if len(parts) == 1 else torch.promote_types(weight.dtype, torch.float32)
        of_weight, of_bias = torch.zeros((), dtype=dtype), torch.zeros((), dtype=dtype)
        for index, part in enumerate(parts):
            logits = functional.linear(hidden[part], matrix, offsets) if kept is None else kept
            log_probabilities = logits  # what is kept in float32
            if kept is None or kept.dtype != torch.float32:
                log_probabilities = functional.log_softmax(logits, 1, dtype=torch.float32)
            of_logits = torch.zeros_like(log_probabilities)
            of_logits.scatter_(1, labels[part, None], -gradients[0][part, None])
            # The operation of `log_softmax`'s own backward pass: its bits.
            of_logits = torch._log_softmax_backward_data(of_logits, log_probabilities, 1, torch.float32)
            of_logits = of_logits.to(hidden.dtype)
            of_hidden[part] = of_logits @ matrix
            matrix_part, bias_part = of_logits.t() @ hidden[part], of_logits.sum(0)
            of_weight = matrix_part.to(dtype) if not index else of_weight.add_(matrix_part)
            of_bias = bias_part.to(dtype) if not index else of_bias.add_(bias_part)
        needs = ctx.needs_input_grad
        return (
            of_hidden if needs[0] else None,
            of_weight[:vocabulary].to(weight.dtype) if needs[1] else None,
            of_bias[:vocabulary].to(weight.dtype) if bias is not None and needs[2] else None,
            None,
        )


def _padded(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Weights and biases with zeros for the additional logits, which the bias makes so small that their probability is 0."""
    missing = padded(len(weight)) - len(weight)
    if not missing:
        return weight, bias
    offsets = weight.new_zeros(len(weight)) if bias is None else bias
    lowest = torch.finfo(offsets.dtype).min
    return functional.pad(weight, (0, 0, 0, missing)), functional.pad(offsets, (0, missing), value=lowest)

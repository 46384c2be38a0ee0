"""Language modelling with carried state: predict the next token of parallel streams (truncated backpropagation, Merity et al. 2017).

A model has ``initial_state(batch_size, device, dtype)``: tensors by name whose first dimension is the stream; ``model(input_ids, state)``,
whose output has ``last_hidden_state`` [B, T, E] and the new ``state``; ``decode(hidden)``: the logits; and
``regularisation(output)`` [B], which is added to the training loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from bellwether.trainer import scores
from bellwether.trainer.models.cache_pointer import Cache, CachePointer
from bellwether.trainer.models.carried_state import CarriedState, State
from bellwether.trainer.models.tasks import Task
from bellwether.trainer.models.vocabulary import VocabularyHead

if TYPE_CHECKING:
    from bellwether.trainer.config.schema.evaluation import Evaluate


class LanguageModelling(Task):
    """Predict each next token. The loss of a sample is the mean over its tokens; correctness is the share that is predicted.

    In training, the state of this rank's streams is carried from step to step, without its gradient; before `carry`, each batch starts
    from none. In evaluation mode it is carried from batch to batch, apart from that of training.
    """

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self._held_out: dict[int, State] = {}  # by the first stream of a batch
        self._pointer: CachePointer | None = None
        self._caches: dict[int, Cache] = {}  # as `_held_out`
        head = VocabularyHead.replace(model)
        self._head = () if head is None else (head,)  # in a tuple, or its parameters would have a second name

    def carry(self, streams: Sequence[int], total: int, device: torch.device) -> None:
        self.carried = CarriedState(streams, total, self._initial(len(streams), device))

    def prepare_evaluation(self, evaluate: Evaluate) -> None:
        keys = evaluate.cache_pointer
        self._pointer = None if keys is None else CachePointer(keys.window, keys.theta, keys.share)
        self.further_losses = () if keys is None else ("cache",)

    def results(self, loss: float, *further: float) -> dict[str, float]:
        names = ("perplexity", *(f"perplexity_{name}" for name in self.further_losses))
        return {name: scores.perplexity(value) for name, value in zip(names, (loss, *further), strict=True)}

    def train(self, mode: bool = True) -> LanguageModelling:
        self._held_out, self._caches = {}, {}  # an evaluation begins, or has ended
        return super().train(mode)

    def forward(  # type: ignore[override]
        self, *, input_ids: Tensor, labels: Tensor, streams: Tensor, starts: Tensor
    ) -> tuple[Tensor, ...]:
        """Tokens and their successors [B, T]; see `bellwether.trainer.data.stream_samples.StreamSamples.batch`."""
        state = self._state(streams, starts)
        output = self.model(input_ids, state)
        self._keep(streams, {name: tensor.detach() for name, tensor in output.state.items()})
        losses, correct = self._losses(output.last_hidden_state, labels)
        if self.training:
            return losses.mean(dim=1) + self.model.regularisation(output).float(), correct.mean(dim=1)
        further: tuple[Tensor, ...] = ()
        if self._pointer is not None:
            of_cache = self._with_cache(self._pointer, losses, output.last_hidden_state, labels, streams, starts)
            further = (of_cache.mean(dim=1, keepdim=True),)
        return losses.mean(dim=1), correct.mean(dim=1), *further

    def _with_cache(
        self, pointer: CachePointer, losses: Tensor, hidden: Tensor, labels: Tensor, streams: Tensor, starts: Tensor
    ) -> Tensor:
        """The losses of each token with the continuous cache, [B, T]."""
        first = int(streams[0])
        cache = self._caches.get(first) or pointer.empty(hidden)
        found, self._caches[first] = pointer.losses(losses, hidden, labels, cache.cleared(starts))
        return found

    def _losses(self, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy and correctness of each token, float32 [B, T]."""
        with self._head[0].losses_of(labels) if self._head else nullcontext():
            decoded = self.model.decode(hidden)
        if self._head:
            losses, correct = decoded.unbind(dim=2)
            return losses, correct.detach()
        logits = decoded.float()
        losses = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
        return losses, (logits.argmax(dim=2) == labels).float()

    def _state(self, streams: Tensor, starts: Tensor) -> State:
        """The state before the tokens of a batch: zero where a stream starts."""
        if self.training and self.carried is not None:
            found = self.carried.read(streams)
        else:
            initial = self._initial(len(streams), streams.device)
            found = initial if self.training else self._held_out.get(int(streams[0]), initial)
        return {name: _zero_where(starts, tensor) for name, tensor in found.items()}

    def _keep(self, streams: Tensor, state: State) -> None:
        if not self.training:
            self._held_out[int(streams[0])] = state
        elif self.carried is not None:
            self.carried.write(streams, state)

    def _initial(self, count: int, device: torch.device) -> State:
        dtype = next(self.model.parameters()).dtype
        return self.model.initial_state(count, device=device, dtype=dtype)


def _zero_where(starts: Tensor, state: Tensor) -> Tensor:
    return state.masked_fill(starts.view(-1, *[1] * (state.dim() - 1)), 0)

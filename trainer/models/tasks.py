"""Training tasks: a model together with the loss of each sample of a batch."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bellwether.trainer.models.carried_state import CarriedState
from bellwether.trainer.models.document_attention import DocumentAttention
from bellwether.trainer.models.losses import PLAIN, ClassificationLoss, MixedLabels, correctness
from bellwether.trainer.models.stochastic_depth import StochasticDepth
from bellwether.trainer.models.vocabulary import VocabularyHead

if TYPE_CHECKING:
    from bellwether.trainer.config.schema.evaluation import Evaluate


class Task(nn.Module):
    """A model and its loss.

    Attributes:
        model: the `PreTrainedModel`, which is exported.
        training_loss: of classification, in training mode. In evaluation mode the loss is the plain cross-entropy, so that
            held-out losses of all runs can be compared.
        carried: state between two steps, which checkpoints hold.
        further_losses: names of losses that an evaluation averages as well: `forward` then returns them as the third tensor, [B, n].
    """

    training_loss: ClassificationLoss = PLAIN
    carried: CarriedState | None = None
    further_losses: tuple[str, ...] = ()

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    @property
    def loss(self) -> ClassificationLoss:
        """The loss of classification in the current mode."""
        return self.training_loss if self.training else PLAIN

    def forward(self, **batch: Tensor) -> tuple[Tensor, ...]:
        """Loss and correctness of each sample, both float32 [B]. `bellwether.trainer.data.Samples` describes a batch.

        The loss of a global batch is the mean over its samples, independent of how they are split into micro-batches.

        In evaluation mode a third tensor, [B, ...], may hold the predictions that `bellwether.trainer.data.Dataset.score` takes.
        Correctness is NaN where it is not defined.
        """
        raise NotImplementedError

    def prepare_evaluation(self, evaluate: Evaluate) -> None:
        """Take from the section `evaluate` of a config what concerns this task."""

    def results(self, loss: float, *further: float) -> dict[str, float]:
        """Further results of an evaluation, from its mean loss and those of `further_losses`."""
        return {}

    def carry(self, streams: Sequence[int], total: int, device: torch.device) -> None:
        """From the next step on, this rank computes these streams in each step, from an empty state.

        Tasks that carry state from step to step have it in `carried`; for all others a sample does not depend on those before.

        Args:
            streams: positions in a global batch, ascending; ``total``: the number of them over all ranks.
        """


# Model types whose head of masked language modelling treats each position alone, and gets what the body returns as
# ``last_hidden_state``: tests/trainer/models/test_masked_lm.py compares each with its logits of the whole sequence.
GATHERED_HEADS = frozenset(
    {
        "albert", "bert", "camembert", "convbert", "deberta", "deberta-v2", "distilbert", "electra", "ernie", "eurobert", "gte",
        "megatron-bert", "modernbert", "mpnet", "nomic_bert", "roberta", "roformer", "xlm-roberta",
    }
)  # fmt: skip


class MaskedLanguageModelling(Task):
    """Predict the masked tokens. Correctness is the fraction of them that is predicted correctly.

    Every sample has the same number of masked tokens k. The logits over the vocabulary are computed at these positions
    only, about one in seven, which saves most of the head's time and memory: the hidden states [B, L, H] that the body returns
    are replaced by those at the masked positions, [B, k, H], before the architecture's own head sees them. Its last layer computes the
    losses (`bellwether.trainer.models.vocabulary`). Other types than `GATHERED_HEADS` compute all logits.
    """

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self._positions: Tensor | None = None
        self._document_attention = DocumentAttention(model)
        self.gathers = model.config.model_type in GATHERED_HEADS
        self._head: tuple[VocabularyHead, ...] = ()  # in a tuple, or its parameters would have a second name
        if self.gathers:
            model.base_model.register_forward_hook(self._gather)
            head = VocabularyHead.replace(model)
            self._head = () if head is None else (head,)

    def forward(  # type: ignore[override]
        self,
        *,
        input_ids: Tensor,
        masked_positions: Tensor,
        labels: Tensor,
        next_sentence_label: Tensor | None = None,
        masked_counts: Tensor | None = None,
        **inputs: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """With ``next_sentence_label`` [B] its loss is added; the correctness is that of the masked tokens.

        With ``masked_counts`` [B], so many of the k masked tokens of a row are to be predicted, its first ones.
        """
        name = "logits" if next_sentence_label is None else "prediction_logits"
        if self.gathers and self._head:
            with self._head[0].losses_of(labels):
                output = self._run(input_ids, masked_positions, **inputs)
            token_losses, correct = getattr(output, name).unbind(dim=2)
            correct = correct.detach()
        else:
            output = self._run(input_ids, masked_positions, **inputs)
            logits = getattr(output, name).float()
            token_losses = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
            token_losses, correct = token_losses.view_as(labels), (logits.argmax(dim=2) == labels).float()
        losses, share = _mean(token_losses, masked_counts), _mean(correct, masked_counts)
        if next_sentence_label is not None:
            of_pairs = output.seq_relationship_logits.float()
            losses = losses + functional.cross_entropy(of_pairs, next_sentence_label, reduction="none")
        return losses, share

    def logits(self, input_ids: Tensor, masked_positions: Tensor, **inputs: Tensor) -> Tensor:
        """The logits at the masked positions: [B, L] tokens and [B, k] positions to [B, k, V]."""
        return self._run(input_ids, masked_positions, **inputs).logits

    def _run(
        self,
        input_ids: Tensor,
        masked_positions: Tensor,
        documents: Tensor | None = None,
        position_ids: Tensor | None = None,
        **inputs: Any,
    ) -> Any:
        """What the model returns, with logits at the masked positions.

        Args:
            documents: see `bellwether.trainer.data.text_samples.TextSamples`.
        """
        if documents is not None:
            assert position_ids is not None
            inputs |= self._document_attention.inputs(documents, position_ids)
        if not self.gathers:
            output = self.model(input_ids, **inputs)
            output.logits = _at(output.logits, masked_positions)
            return output
        self._positions = masked_positions
        try:
            return self.model(input_ids, **inputs)
        finally:
            self._positions = None

    def _gather(self, body: nn.Module, args: Any, output: Any) -> Any:
        if self._positions is not None:
            output.last_hidden_state = _at(output.last_hidden_state, self._positions)
        return output


def _mean(values: Tensor, counts: Tensor | None) -> Tensor:
    """The mean over the columns of [B, k], or over the first ``counts`` of each row."""
    if counts is None:
        return values.mean(dim=1)
    is_counted = torch.arange(values.shape[1], device=values.device) < counts[:, None]
    return values.where(is_counted, 0).sum(dim=1) / counts


def _at(states: Tensor, positions: Tensor) -> Tensor:
    """[B, L, H] and [B, k] to [B, k, H]."""
    return states.gather(1, positions.unsqueeze(2).expand(-1, -1, states.shape[2]))


class Classification(Task):
    """Predict the class of an image. Correctness is 1 or 0; of mixed images, the share of the predicted class.

    Attributes:
        channels_last: whether images are laid out in memory as [B, S, S, C].
    """

    channels_last = False

    def __init__(self, model: Any, depth: StochasticDepth | None = None) -> None:
        super().__init__(model)
        self._depth = depth

    def forward(  # type: ignore[override]
        self,
        *,
        pixel_values: Tensor,
        labels: Tensor,
        other_labels: Tensor | None = None,
        label_share: Tensor | None = None,
        sample_keys: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Images [B, C, S, S]; or V views of each, [B, V, C, S, S], whose predicted probabilities are averaged."""
        if self._depth is not None:
            self._depth.start(sample_keys)
        if pixel_values.dim() == 5:
            count, views = pixel_values.shape[:2]
            log_probabilities = self._logits(pixel_values.flatten(0, 1)).log_softmax(1).view(count, views, -1)
            logits = log_probabilities.logsumexp(1) - math.log(views)
        else:
            logits = self._logits(pixel_values)
        mixed = None
        if other_labels is not None:
            assert label_share is not None
            mixed = MixedLabels(other_labels, label_share)
        return self.loss(logits, labels, mixed), correctness(logits, labels, mixed)

    def _logits(self, pixel_values: Tensor) -> Tensor:
        # The engine casts the model, but not the batch.
        dtype = next(self.model.parameters()).dtype
        layout = torch.channels_last if self.channels_last else torch.preserve_format
        return self.model(pixel_values.to(dtype, memory_format=layout)).logits.float()


def accepted_inputs(model: Any) -> list[str]:
    """The inputs of labelled text that a model takes: only some families tell the segments of a pair apart."""
    accepted = inspect.signature(model.forward).parameters
    return [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in accepted]


class SequenceClassification(Task):
    """Predict the class of a text, or a number for it. The predictions are the logits [B, C], or the numbers [B]."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.is_regression = model.config.num_labels == 1
        self._inputs = accepted_inputs(model)

    def forward(self, *, labels: Tensor, **inputs: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Mean squared error of a number, cross-entropy of a class."""
        known = {name: inputs[name] for name in self._inputs if name in inputs}
        logits = self.model(**known).logits.float()
        if self.is_regression:
            predicted = logits.squeeze(1)
            losses, correct = (predicted - labels) ** 2, torch.full_like(labels, math.nan)
        else:
            predicted = logits
            losses, correct = self.loss(logits, labels), correctness(logits, labels)
        return (losses, correct) if self.training else (losses, correct, predicted)


class TokenClassification(Task):
    """Predict the class of each word. The predictions are class numbers [B, `length`], padded at the end.

    The loss of a sample is the mean over its words, so that each sentence counts alike; correctness is the fraction of them.
    """

    def __init__(self, model: Any, length: int | None) -> None:
        super().__init__(model)
        self._inputs, self._length = accepted_inputs(model), length

    def forward(self, *, labels: Tensor, **inputs: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Labels [B, L], -100 where there is nothing to predict."""
        logits = self.model(**{name: inputs[name] for name in self._inputs if name in inputs}).logits.float()
        losses = self.loss(logits.transpose(1, 2), labels)
        is_word = labels != -100
        count = is_word.sum(dim=1).clamp(min=1)
        correct = ((logits.argmax(dim=2) == labels) & is_word).sum(dim=1) / count
        if self.training:
            return losses.sum(dim=1) / count, correct
        # One shape for all batches, so that they can be gathered.
        padding = (self._length or labels.shape[1]) - labels.shape[1]
        predicted = self.predicted(logits)
        return (
            losses.sum(dim=1) / count,
            correct,
            functional.pad(predicted, (*[0, 0] * (predicted.dim() - 2), 0, padding)),
        )

    def predicted(self, logits: Tensor) -> Tensor:
        """The predictions of logits [B, L, C]: [B, L, ...]."""
        return logits.argmax(dim=2)


class QuestionAnswering(Task):
    """Predict the first and the last token of the answer (Devlin et al. 2018, section 4.2). Correctness is 1 if both are right.

    The predictions are [B, 5]: first and last token of the best span of at most `max_answer` tokens of the text, its score; the score
    of no answer, which is that of the first token; and what a score is to be reduced by for its exponential to be a probability.
    """

    def __init__(self, model: Any, max_answer: int) -> None:
        super().__init__(model)
        self._inputs, self.max_answer = accepted_inputs(model), max_answer

    def forward(self, *, labels: Tensor, context: Tensor, **inputs: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """``context`` [B, L] is 1 for the tokens of the text; labels [B, 2]."""
        output = self.model(**{name: inputs[name] for name in self._inputs if name in inputs})
        # Padding has no part in the softmax: a loss must not depend on how far a batch is padded.
        padding = inputs["attention_mask"] == 0
        first, last = (logits.float().masked_fill(padding, -1e4) for logits in (output.start_logits, output.end_logits))
        losses = functional.cross_entropy(first, labels[:, 0], reduction="none")
        losses = (losses + functional.cross_entropy(last, labels[:, 1], reduction="none")) / 2
        correct = (torch.stack([first.argmax(1), last.argmax(1)], dim=1) == labels).all(dim=1).float()
        if self.training:
            return losses, correct
        return losses, correct, self._spans(first, last, context)

    def _spans(self, first: Tensor, last: Tensor, context: Tensor) -> Tensor:
        """[B, L] logits to the best span of each row."""
        outside = context == 0
        sums = first.masked_fill(outside, -torch.inf)[:, :, None] + last.masked_fill(outside, -torch.inf)[:, None, :]
        length = first.shape[1]
        allowed = torch.ones(length, length, dtype=torch.bool, device=first.device).triu().tril(self.max_answer - 1)
        best, index = sums.masked_fill(~allowed, -torch.inf).flatten(1).max(dim=1)
        outside[:, 0] = False
        of_first, of_last = (logits.masked_fill(outside, -torch.inf).logsumexp(dim=1) for logits in (first, last))
        return torch.stack([index // length, index % length, best, first[:, 0] + last[:, 0], of_first + of_last], dim=1)

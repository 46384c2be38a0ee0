"""The loss of classification: cross-entropy or binary cross-entropy, with smoothed labels and labels of mixed images."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class MixedLabels:
    """Labels of images that are mixed of two.

    Attributes:
        other: int64 [B], the labels of the other images.
        share: float32 [B], the shares of the images' own labels; the others have the rest.
    """

    other: Tensor
    share: Tensor


@dataclass(frozen=True)
class ClassificationLoss:
    """The loss of each sample. See `bellwether.trainer.config.schema.loss.Loss` for the keys."""

    kind: str = "cross-entropy"
    label_smoothing: float = 0.0
    threshold: float | None = None

    def __call__(self, logits: Tensor, labels: Tensor, mixed: MixedLabels | None = None) -> Tensor:
        """[B, C, ...] logits and [B, ...] labels to losses [B, ...]; -100 is no label and has loss 0.

        Binary cross-entropy is for logits [B, C], and is the mean over the classes.
        """
        if self.kind == "bce":
            targets = self.targets(labels, logits.shape[1], mixed).to(logits.dtype)
            return functional.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(dim=1)
        losses = self._cross_entropy(logits, labels)
        if mixed is None:
            return losses
        # The cross-entropy is linear in the target.
        return losses * mixed.share + self._cross_entropy(logits, mixed.other) * (1 - mixed.share)

    def targets(self, labels: Tensor, classes: int, mixed: MixedLabels | None = None) -> Tensor:
        """The target of each class: float32 [B, classes], in 0..1."""
        hot = functional.one_hot(labels, classes).float()
        if mixed is not None:
            share = mixed.share[:, None]
            hot = hot * share + functional.one_hot(mixed.other, classes) * (1 - share)
        hot = hot * (1 - self.label_smoothing) + self.label_smoothing / classes
        return hot if self.threshold is None else (hot > self.threshold).float()

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(logits, labels, reduction="none", label_smoothing=self.label_smoothing)


PLAIN = ClassificationLoss()


def correctness(logits: Tensor, labels: Tensor, mixed: MixedLabels | None = None) -> Tensor:
    """Whether each prediction is right, 1 or 0; of mixed labels, the share of the predicted class: float32 [B]."""
    predicted = logits.argmax(dim=1)
    right = (predicted == labels).float()
    if mixed is None:
        return right
    return right * mixed.share + (predicted == mixed.other).float() * (1 - mixed.share)

"""Any token classifier of transformers, for fine-tuning on labelled words, as for named entities."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from bellwether.trainer.models.architecture import Architecture

if TYPE_CHECKING:
    from bellwether.trainer.data import Dataset
    from bellwether.trainer.models.tasks import Task


class TokenClassifier(Architecture):
    """A pretrained encoder with a new head, which predicts the class of each word."""

    data_kind: ClassVar[str] = "labelled-tokens"
    losses: ClassVar[tuple[str, ...]] = ("cross-entropy",)
    auto_class: ClassVar[str] = "AutoModelForTokenClassification"
    assumed_classes: ClassVar[int] = 9

    kind: Literal["token-classifier"]

    def build(self, dataset: Dataset, activation_checkpointing: bool) -> Task:
        from bellwether.trainer.models import pretrained
        from bellwether.trainer.models.sequence_classifier import of_labels
        from bellwether.trainer.models.tasks import TokenClassification

        keys = {key: value for key, value in of_labels(dataset).items() if key != "problem_type"}
        model = pretrained.build_for_text(self, dataset, activation_checkpointing, **keys)
        return TokenClassification(model, getattr(dataset.train, "sequence_length", None))

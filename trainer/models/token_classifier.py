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
    auto_class: ClassVar[str] = "AutoModelForTokenClassification"
    assumed_classes: ClassVar[int] = 9

    kind: Literal["token-classifier"]

    def build(self, dataset: Dataset, activation_checkpointing: bool) -> Task:
        from bellwether.trainer.models import pretrained
        from bellwether.trainer.models.sequence_classifier import of_labels
        from bellwether.trainer.models.tasks import TokenClassification

        pretrained.check_tokenizer(self, dataset.tokenizer)
        keys = {**pretrained.text_keys(self, dataset), **of_labels(dataset)}
        del keys["problem_type"]
        config = pretrained.make_config(self, **keys)
        pretrained.check_length(config, dataset)
        model = pretrained.build(self, config)
        if activation_checkpointing:
            pretrained.checkpoint_activations(model)
        return TokenClassification(model, getattr(dataset.train, "sequence_length", None))

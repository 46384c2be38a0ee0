"""Any sequence classifier of transformers, for fine-tuning on labelled texts and pairs: classes, or a number."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from bellwether.trainer.models.architecture import Architecture

if TYPE_CHECKING:
    from bellwether.trainer.data import Dataset
    from bellwether.trainer.models.tasks import Task


class SequenceClassifier(Architecture):
    """A pretrained encoder with a new head, which predicts the class of a text or pair, or a number for it."""

    data_kind: ClassVar[str] = "labelled-text"
    losses: ClassVar[tuple[str, ...]] = ("cross-entropy",)
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    assumed_classes: ClassVar[int] = 2

    kind: Literal["sequence-classifier"]

    def build(self, dataset: Dataset, activation_checkpointing: bool) -> Task:
        from bellwether.trainer.models import pretrained
        from bellwether.trainer.models.tasks import SequenceClassification

        self._compare_classes(dataset.labels or [])
        model = pretrained.build_for_text(self, dataset, activation_checkpointing, **of_labels(dataset))
        return SequenceClassification(model)

    def _compare_classes(self, names: list[str]) -> None:
        """Say that a pretrained head of as many classes was trained on others."""
        from bellwether.trainer.models import model_config

        trained = list((self.keys().get("id2label") or {}).values()) if self.init is not None else []
        is_named = any(name != f"LABEL_{index}" for index, name in enumerate(trained))
        if is_named and len(trained) == len(names) and trained != names:
            model_config.say(
                f"the head of {self.init} predicts {', '.join(trained)}, and is trained further as {', '.join(names)}"
            )


def of_labels(dataset: Dataset) -> dict[str, Any]:
    """The keys of a transformers config for the classes of a dataset, or for one number."""
    if dataset.labels is None:
        return {"num_labels": 1, "problem_type": "regression"}
    return {
        "id2label": dict(enumerate(dataset.labels)),
        "label2id": {name: index for index, name in enumerate(dataset.labels)},
        "problem_type": "single_label_classification",
    }

"""Any extractive question answering model of transformers, for fine-tuning as on SQuAD."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from bellwether.trainer.models.architecture import Architecture

if TYPE_CHECKING:
    from bellwether.trainer.data import Dataset
    from bellwether.trainer.models.tasks import Task


# Key of an exported config.json: whether the model was trained on questions without an answer.
MAY_BE_EMPTY = "answers_may_be_empty"


class QuestionAnsweringModel(Architecture):
    """A pretrained encoder with a new head, which predicts where in a text the answer begins and ends."""

    data_kind: ClassVar[str] = "question-answering"
    auto_class: ClassVar[str] = "AutoModelForQuestionAnswering"

    kind: Literal["question-answering"]

    def build(self, dataset: Dataset, activation_checkpointing: bool) -> Task:
        from bellwether.trainer.models import pretrained
        from bellwether.trainer.models.tasks import QuestionAnswering

        model = pretrained.build_for_text(self, dataset, activation_checkpointing)
        setattr(model.config, MAY_BE_EMPTY, getattr(dataset.train, "may_be_empty", False))
        return QuestionAnswering(model, getattr(dataset.train, "max_answer", 30))

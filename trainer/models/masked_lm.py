"""Any encoder of transformers for masked language modelling: ``model: {kind: masked-lm, config: ..., init: ...}``."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from bellwether.trainer.config.errors import ConfigError
from bellwether.trainer.config.schema.data import DataConfig
from bellwether.trainer.models.architecture import DOCUMENT_ATTENTION, Architecture, longest_sequence

if TYPE_CHECKING:
    from bellwether.trainer.data import Dataset
    from bellwether.trainer.models.tasks import Task


_PAIRS = ("bert", "ernie", "megatron-bert")  # model types with a head for next-sentence prediction


class MaskedLMModel(Architecture):
    """Any AutoModelForMaskedLM of transformers, such as RoBERTa and ModernBERT, with fresh or pretrained weights."""

    data_kind: ClassVar[str] = "text"
    matrix_efficiency: ClassVar[float] = 0.57
    memory_traffic: ClassVar[float] = 5.3
    auto_class: ClassVar[str] = "AutoModelForMaskedLM"

    kind: Literal["masked-lm"]

    def check_data(self, data: DataConfig) -> None:
        tokenizer = getattr(data, "tokenizer", None)
        if self.init is not None and tokenizer == "train":
            raise ValueError(
                "data.tokenizer: a new vocabulary does not fit pretrained weights; leave it out, which takes that of model.init"
            )
        try:
            keys = self.keys()
        except ConfigError:
            return  # a file that is not on this machine: `build` says so where the run needs it
        if tokenizer == "train":
            keys = {**keys, "pad_token_id": 0}
        kind = keys.get("model_type")
        if getattr(data, "next_sentence", False) and kind not in (None, *_PAIRS):
            raise ValueError(
                f"data.next_sentence: transformers' {kind} has no head for it; write false, or one of {', '.join(_PAIRS)}"
            )
        if getattr(data, "packing", "") == "documents" and kind not in (None, *DOCUMENT_ATTENTION):
            which = ", ".join(sorted(DOCUMENT_ATTENTION))
            raise ValueError(
                f"data.packing: attention inside a document is not known for {kind}; write separated, or one of {which}"
            )
        longest, length = longest_sequence(keys), data.tokens_per_sample or 0
        if longest is not None and length > longest:
            raise ValueError(f"data.sequence_length: {length} tokens do not fit the {longest} positions of the model")

    def build(self, dataset: Dataset, activation_checkpointing: bool) -> Task:
        from bellwether.trainer.models import model_config, pretrained
        from bellwether.trainer.models.tasks import MaskedLanguageModelling

        auto_class = "AutoModelForPreTraining" if dataset.next_sentence else self.auto_class
        model = pretrained.build_for_text(self, dataset, activation_checkpointing, auto_class)
        task = MaskedLanguageModelling(model)
        if not task.gathers:
            kind = model.config.model_type
            model_config.say(f"the head of {kind} computes the logits of all positions, not of the masked ones alone")
        return task

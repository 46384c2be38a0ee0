"""BERT of transformers (Devlin et al. 2018) in its published sizes, for masked language modelling."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from bellwether.trainer.config.schema.data import DataConfig
from bellwether.trainer.config.schema.models import ModelConfig
from bellwether.trainer.config.schema.section import FRACTION, TOKENS, Count, Share

if TYPE_CHECKING:
    from bellwether.trainer.data import Dataset
    from bellwether.trainer.models.tasks import Task

# Number of layers and hidden size. Heads have 64 dimensions, feed-forward layers four times the hidden size.
# Base and large: Devlin et al. 2018; the smaller sizes: Turc et al. 2019 (1908.08962).
SIZES = {
    "tiny": (2, 128),
    "mini": (4, 256),
    "small": (4, 512),
    "medium": (8, 512),
    "base": (12, 768),
    "large": (24, 1024),
}


class BertModel(ModelConfig):
    """BERT for masked language modelling (Devlin et al. 2018; small sizes of Turc et al. 2019)."""

    data_kind: ClassVar[str] = "text"
    matrix_efficiency: ClassVar[float] = 0.57
    memory_traffic: ClassVar[float] = 5.3

    kind: Literal["bert"]
    size: Literal["tiny", "mini", "small", "medium", "base", "large"] = Field(
        "base",
        description="layers/hidden size: tiny 2/128, mini 4/256, small 4/512, medium 8/512, base 12/768, large 24/1024",
    )
    dropout: Share = Field(
        0.1, description="dropout probability of hidden states and attention weights", json_schema_extra=FRACTION
    )
    max_positions: Count = Field(
        512, description="longest sequence that the position embeddings allow", json_schema_extra=TOKENS
    )

    @property
    def label(self) -> str:
        return f"bert-{self.size}"

    def check_data(self, data: DataConfig) -> None:
        length = data.tokens_per_sample or 0
        if length > self.max_positions:
            raise ValueError(
                f"data.sequence_length: {length} tokens do not fit model.max_positions: {self.max_positions}"
            )

    def build(self, dataset: Dataset, activation_checkpointing: bool) -> Task:
        """`BertForMaskedLM`, or `BertForPreTraining` for pairs, with the tokenizer's vocabulary. The output weights are tied to the word embeddings."""
        from transformers import BertConfig, BertForMaskedLM, BertForPreTraining

        from bellwether.trainer.models.partitioned import construct
        from bellwether.trainer.models.pretrained import checkpoint_activations
        from bellwether.trainer.models.tasks import MaskedLanguageModelling

        layers, hidden = SIZES[self.size]
        pad = getattr(dataset.tokenizer, "pad_token_id", None)
        model_class = BertForPreTraining if dataset.next_sentence else BertForMaskedLM
        config = BertConfig(
            vocab_size=dataset.vocabulary_size,
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 64,
            intermediate_size=4 * hidden,
            hidden_dropout_prob=self.dropout,
            attention_probs_dropout_prob=self.dropout,
            max_position_embeddings=self.max_positions,
            type_vocab_size=2,
            pad_token_id=pad if pad is not None else 0,
            attn_implementation="sdpa",
        )
        model = construct(lambda: model_class(config))
        if activation_checkpointing:
            checkpoint_activations(model)
        return MaskedLanguageModelling(model)

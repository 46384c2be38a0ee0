"""BERT of transformers (Devlin et al. 2018) in its published sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bellwether.trainer.config.schema import BertModel
    from bellwether.trainer.data import Data

# Layers and hidden size; heads have 64 dimensions, feed-forward layers four times the hidden size.
# Base and large: Devlin et al. 2018; the small ones: Turc et al. 2019 (1908.08962).
SIZES = {
    "tiny": (2, 128),
    "mini": (4, 256),
    "small": (4, 512),
    "medium": (8, 512),
    "base": (12, 768),
    "large": (24, 1024),
}


def build(config: BertModel, data: Data, activation_checkpointing: bool) -> Any:
    """`BertForMaskedLM` with the tokenizer's vocabulary, its output weights tied to the word embeddings."""
    from transformers import BertConfig, BertForMaskedLM

    layers, hidden = SIZES[config.size]
    pad = getattr(data.tokenizer, "pad_token_id", None)
    model = BertForMaskedLM(
        BertConfig(
            vocab_size=data.vocabulary_size,
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 64,
            intermediate_size=4 * hidden,
            hidden_dropout_prob=config.dropout,
            attention_probs_dropout_prob=config.dropout,
            max_position_embeddings=config.max_positions,
            type_vocab_size=2,
            pad_token_id=pad if pad is not None else 0,
            attn_implementation="sdpa",
        )
    )
    if activation_checkpointing:
        # transformers renamed it in 5.2x; both are within the versions that we allow.
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        enable({"use_reentrant": False})
    return model

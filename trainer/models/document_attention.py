"""Attention inside a document only, for sequences that hold several: ``data.packing: documents``."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from bellwether.trainer.models.architecture import POSITIONS_AFTER_PADDING


def document_inputs(config: Any, documents: Tensor, position_ids: Tensor) -> dict[str, Any]:
    """The inputs by which a model treats each document of a sequence as if it stood alone.

    Args:
        documents: the number of each token's document, [B, L].
        position_ids: of each token in its document, [B, L].
    """
    same = (documents[:, :, None] == documents[:, None, :])[:, None]
    if config.model_type == "modernbert":
        near = (position_ids[:, :, None] - position_ids[:, None, :]).abs()[:, None] <= config.sliding_window
        return {
            "attention_mask": {"full_attention": same, "sliding_attention": same & near},
            "position_ids": position_ids,
        }
    if config.model_type in POSITIONS_AFTER_PADDING:
        position_ids = position_ids + config.pad_token_id + 1
    return {"attention_mask": same, "position_ids": position_ids}

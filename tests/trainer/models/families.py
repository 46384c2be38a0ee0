"""Toy sizes of encoders for masked language modelling, by transformers' model type."""

from __future__ import annotations

from typing import Any

_SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}

ENCODERS: dict[str, dict[str, Any]] = {
    "bert": _SIZES,
    "roberta": {**_SIZES, "max_position_embeddings": 40},
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32},
    "electra": {**_SIZES, "embedding_size": 8},
    "deberta-v2": {
        **_SIZES, "relative_attention": True, "position_buckets": 8, "norm_rel_ebd": "layer_norm", "share_att_key": True,
        "pos_att_type": "p2c|c2p", "position_biased_input": False, "max_relative_positions": -1,
    },
    "modernbert": {**_SIZES, "local_attention": 8, "global_attn_every_n_layers": 2},
}  # fmt: skip

# Further families whose head is computed at masked positions; each test of the full matrix alone.
OTHERS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("camembert", "deberta", "ernie", "eurobert", "gte", "megatron-bert", "mpnet", "nomic_bert", "xlm-roberta"), _SIZES),
    **{family: {**_SIZES, "embedding_size": 8} for family in ("albert", "convbert", "roformer")},
}  # fmt: skip


def keys(family: str, **changes: Any) -> dict[str, Any]:
    """``model.config`` of a family at a toy size."""
    return {"model_type": family, **(ENCODERS | OTHERS)[family], **changes}


# Toy sizes of image classifiers, for images of 8 x 8 pixels.
CLASSIFIERS: dict[str, dict[str, Any]] = {
    "convnext": {"patch_size": 2, "num_stages": 2, "depths": [1, 1], "hidden_sizes": [8, 16]},
    "resnet": {"layer_type": "basic", "embedding_size": 8, "depths": [1, 1], "hidden_sizes": [8, 16]},
    "vit": {**_SIZES, "patch_size": 4},
}


def classifier(family: str, **changes: Any) -> dict[str, Any]:
    """``model.config`` of an image classifier at a toy size."""
    return {"model_type": family, **CLASSIFIERS[family], **changes}

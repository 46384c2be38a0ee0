"""Published sizes of encoders and image classifiers, as the keys of transformers' configs: ``model.config: NAME``.

Vocabulary, channels and classes are missing on purpose: they come from the data.
"""

from __future__ import annotations

from typing import Any

_BERT = {"model_type": "bert", "type_vocab_size": 2, "max_position_embeddings": 512}
_VIT = {"model_type": "vit", "patch_size": 16}
_CONVNEXT = {"model_type": "convnext", "patch_size": 4}
_BOTTLENECK = {
    "model_type": "resnet",
    "layer_type": "bottleneck",
    "embedding_size": 64,
    "hidden_sizes": [256, 512, 1024, 2048],
}


def _sizes(layers: int, hidden: int, heads: int, intermediate: int) -> dict[str, int]:
    return {
        "num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads, "intermediate_size": intermediate,
    }  # fmt: skip


PRESETS: dict[str, dict[str, Any]] = {
    # Devlin et al. 2018 (1810.04805)
    "bert-base": {**_BERT, **_sizes(12, 768, 12, 3072)},
    "bert-large": {**_BERT, **_sizes(24, 1024, 16, 4096)},
    # Liu et al. 2019 (1907.11692). Positions begin after the padding token, so that 514 hold 512 tokens where it is token 1.
    "roberta-base": {
        "model_type": "roberta", "type_vocab_size": 1, "max_position_embeddings": 514, "layer_norm_eps": 1e-5, **_sizes(12, 768, 12, 3072),
    },
    "roberta-large": {
        "model_type": "roberta", "type_vocab_size": 1, "max_position_embeddings": 514, "layer_norm_eps": 1e-5, **_sizes(24, 1024, 16, 4096),
    },
    # Sanh et al. 2019 (1910.01108)
    "distilbert-base": {
        "model_type": "distilbert", "n_layers": 6, "dim": 768, "n_heads": 12, "hidden_dim": 3072, "max_position_embeddings": 512,
    },
    # Clark et al. 2020 (2003.10555): the generators, a quarter and a third of their discriminators
    "electra-small-generator": {
        "model_type": "electra", "embedding_size": 128, "max_position_embeddings": 512, **_sizes(12, 256, 4, 1024),
    },
    "electra-base-generator": {
        "model_type": "electra", "embedding_size": 768, "max_position_embeddings": 512, **_sizes(12, 256, 4, 1024),
    },
    # He et al. 2021 (2111.09543)
    "deberta-v3-small": {
        "model_type": "deberta-v2", "relative_attention": True, "position_buckets": 256, "norm_rel_ebd": "layer_norm",
        "share_att_key": True, "pos_att_type": "p2c|c2p", "position_biased_input": False, "max_relative_positions": -1,
        "type_vocab_size": 0, "layer_norm_eps": 1e-7, "max_position_embeddings": 512, **_sizes(6, 768, 12, 3072),
    },
    "deberta-v3-base": {
        "model_type": "deberta-v2", "relative_attention": True, "position_buckets": 256, "norm_rel_ebd": "layer_norm",
        "share_att_key": True, "pos_att_type": "p2c|c2p", "position_biased_input": False, "max_relative_positions": -1,
        "type_vocab_size": 0, "layer_norm_eps": 1e-7, "max_position_embeddings": 512, **_sizes(12, 768, 12, 3072),
    },
    # Warner et al. 2024 (2412.13663)
    "modernbert-base": {"model_type": "modernbert", "max_position_embeddings": 8192, **_sizes(22, 768, 12, 1152)},
    "modernbert-large": {"model_type": "modernbert", "max_position_embeddings": 8192, **_sizes(28, 1024, 16, 2624)},
    # He et al. 2015 (1512.03385)
    "resnet-50": {**_BOTTLENECK, "depths": [3, 4, 6, 3]},
    "resnet-101": {**_BOTTLENECK, "depths": [3, 4, 23, 3]},
    # Liu et al. 2022 (2201.03545)
    "convnext-tiny": {**_CONVNEXT, "depths": [3, 3, 9, 3], "hidden_sizes": [96, 192, 384, 768], "drop_path_rate": 0.1},
    "convnext-small": {**_CONVNEXT, "depths": [3, 3, 27, 3], "hidden_sizes": [96, 192, 384, 768], "drop_path_rate": 0.4},
    "convnext-base": {**_CONVNEXT, "depths": [3, 3, 27, 3], "hidden_sizes": [128, 256, 512, 1024], "drop_path_rate": 0.5},
    # Dosovitskiy et al. 2020 (2010.11929); tiny and small: Touvron et al. 2020 (2012.12877)
    "vit-tiny": {**_VIT, **_sizes(12, 192, 3, 768)},
    "vit-small": {**_VIT, **_sizes(12, 384, 6, 1536)},
    "vit-base": {**_VIT, **_sizes(12, 768, 12, 3072)},
    "vit-large": {**_VIT, **_sizes(24, 1024, 16, 4096)},
}  # fmt: skip

"""Registers the models of `modeling_residual` with transformers' Auto classes. Import it to load exports.

With this module imported, `AutoModelForImageClassification.from_pretrained(folder)` loads an exported model from the
installed code. Without it, ``trust_remote_code=True`` loads it from the code that is saved with the weights.
"""

from __future__ import annotations

from transformers import AutoConfig, AutoModelForImageClassification

from bellwether.trainer.models.modeling_residual import (
    CifarResNetConfig,
    CifarResNetForImageClassification,
    WideResNetConfig,
    WideResNetForImageClassification,
)

__all__ = [
    "CifarResNetConfig",
    "CifarResNetForImageClassification",
    "WideResNetConfig",
    "WideResNetForImageClassification",
]

for _config, _model in (
    (CifarResNetConfig, CifarResNetForImageClassification),
    (WideResNetConfig, WideResNetForImageClassification),
):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModelForImageClassification.register(_config, _model, exist_ok=True)
    _config.register_for_auto_class()
    _model.register_for_auto_class("AutoModelForImageClassification")

"""Registers the models of `modeling_residual` and `modeling_recurrent` with transformers' Auto classes. Import it to load exports.

With this module imported, `AutoModelForImageClassification.from_pretrained(folder)`, or `AutoModelForCausalLM`, loads an exported
model from the installed code. Without it, ``trust_remote_code=True`` loads it from the code that is saved with the weights.
"""

from __future__ import annotations

from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageClassification

from bellwether.trainer.models.modeling_recurrent import AwdLstmConfig, AwdLstmForCausalLM, QrnnConfig, QrnnForCausalLM
from bellwether.trainer.models.modeling_residual import (
    CifarResNetConfig,
    CifarResNetForImageClassification,
    WideResNetConfig,
    WideResNetForImageClassification,
)

__all__ = [
    "AwdLstmConfig",
    "AwdLstmForCausalLM",
    "CifarResNetConfig",
    "CifarResNetForImageClassification",
    "QrnnConfig",
    "QrnnForCausalLM",
    "WideResNetConfig",
    "WideResNetForImageClassification",
]

for _auto, _config, _model in (
    (AutoModelForImageClassification, CifarResNetConfig, CifarResNetForImageClassification),
    (AutoModelForImageClassification, WideResNetConfig, WideResNetForImageClassification),
    (AutoModelForCausalLM, AwdLstmConfig, AwdLstmForCausalLM),
    (AutoModelForCausalLM, QrnnConfig, QrnnForCausalLM),
):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    _auto.register(_config, _model, exist_ok=True)
    _config.register_for_auto_class()
    _model.register_for_auto_class(_auto.__name__)

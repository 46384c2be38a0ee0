from __future__ import annotations

from typing import Any

import pytest

from bellwether.trainer import deepspeed_keys
from bellwether.trainer.config import Config, ConfigErrors, load


def config(keys: dict[str, Any], **engine: Any) -> Config:
    found = load("bert-tiny")
    return found.model_copy(update={"engine": found.engine.model_copy(update={"deepspeed": keys, **engine})})


@pytest.mark.parametrize("keys, message", [
    ({"gradient_cliping": 0.5},
     "engine.deepspeed.gradient_cliping: 0.5: DeepSpeed has no such key; did you mean 'gradient_clipping'. set optimizer.clip"),
    ({"prescale_gradient": True}, "engine.deepspeed.prescale_gradient: True: .*; did you mean 'prescale_gradients'"),
    ({"zero_optimisation": {}}, "engine.deepspeed.zero_optimisation: {}: .*; did you mean 'zero_optimization'"),
    ({"zero_optimization": {"overlap_com": True}},
     "engine.deepspeed.zero_optimization.overlap_com: True: DeepSpeed has no such key; did you mean 'overlap_comm'"),
    ({"zero_optimization": {"offload_optimizer": {"devise": "cpu"}}},
     "engine.deepspeed.zero_optimization.offload_optimizer.devise: 'cpu': .*; did you mean 'device'"),
    ({"activation_checkpointing": {"cpu_checkpoint": True}},
     "engine.deepspeed.activation_checkpointing.cpu_checkpoint: True: .*; did you mean 'cpu_checkpointing'"),
    ({"data_types": {"grad_accum": "fp32"}}, "engine.deepspeed.data_types.grad_accum: .*; did you mean 'grad_accum_dtype'"),
    ({"tensorboard": {"enable": True}}, "engine.deepspeed.tensorboard.enable: True: .*; did you mean 'enabled'"),
    ({"comms_logger": {"verbos": True}}, "engine.deepspeed.comms_logger.verbos: True: .*; did you mean 'verbose'"),
    ({"zero_optimization": {"reduce_bucket_size": "big"}},
     "engine.deepspeed.zero_optimization.reduce_bucket_size: 'big': DeepSpeed rejects it: Input should be"),
    ({"curriculum_learning": {}}, "engine.deepspeed: .*DeepSpeed rejects it: Legacy top-level"),
    ({"a": 1, "b": 2}, "engine.deepspeed.a: 1: .*\\nengine.deepspeed.b: 2: "),
])  # fmt: skip
def test_key_that_deepspeed_does_not_know_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigErrors, match=message):
        deepspeed_keys.check(config(keys))


@pytest.mark.parametrize("keys", [
    {},
    {"zero_optimization": {"overlap_comm": True, "offload_optimizer": {"device": "cpu", "pin_memory": True}}},
    {"bf16": {"bf16_master_weights_and_grads": True}},
    {"data_types": {"grad_accum_dtype": "fp32"}, "communication_data_type": "fp32", "wall_clock_breakdown": True},
    {"activation_checkpointing": {"partition_activations": True}, "flops_profiler": {"enabled": True, "profile_step": 3}},
    {"tensorboard": {"enabled": False, "job_name": "x"}, "comms_logger": {"enabled": True}, "pipeline": {"anything": 1}},
])  # fmt: skip
def test_keys_of_deepspeed_are_accepted(keys: dict[str, Any]) -> None:
    deepspeed_keys.check(config(keys))

"""``batch`` and ``engine``: the unit of training, and how the work on it is split."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from bellwether.trainer.config.schema.section import Count, Section


class Batch(Section):
    """The unit of training. What a rank does at a time is solved from it and the world size."""

    global_: Count = Field(alias="global", description="samples a weight update, over all ranks")
    micro: Count = Field(32, description="most samples one rank takes through the model at a time (memory decides)")


# What Bellwether solves itself; a second opinion in engine.deepspeed would win silently.
_OURS = {
    "train_batch_size": "batch.global",
    "train_micro_batch_size_per_gpu": "batch.micro",
    "gradient_accumulation_steps": "batch.global and batch.micro",
    "gradient_clipping": "optimizer.clip",
    "optimizer": "optimizer",
    "scheduler": "schedule",
    "zero_optimization.stage": "engine.stage",
    "bf16.enabled": "engine.precision",
    "fp16.enabled": "engine.precision",
    "bfloat16": "engine.precision",
    "torch_autocast": "engine.precision",
    "amp": "engine.precision",
}


class Engine(Section):
    """How the work is split and in what precision. Nothing here changes which samples make up a step."""

    stage: Literal[0, 1, 2, 3] = Field(
        2, description="ZeRO: shard nothing, optimizer state, and gradients, and parameters"
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="of weights and activations in the model; masters stay fp32"
    )
    activation_checkpointing: bool = Field(
        False, description="recompute activations in the backward pass to save memory"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="cuda with NCCL or cpu with gloo; auto: cuda where there is one"
    )
    world_size: Count | None = Field(None, description="refuse to run on another number of processes; null: any")
    collective_timeout: Annotated[float, Field(gt=0)] = Field(
        1800,
        description="seconds that a collective may take, and that the processes may take to meet, before the run ends",
    )
    heartbeat: Annotated[float, Field(ge=0)] = Field(
        60, description="seconds of silence of a process, or of its link, after which the run ends; 0: it never does"
    )
    deepspeed: dict[str, Any] = Field(
        default_factory=dict, description="keys passed on to DeepSpeed's config as they are"
    )

    @model_validator(mode="after")
    def _ours(self) -> Engine:
        for key, place in _OURS.items():
            section, _, inner = key.partition(".")
            given = self.deepspeed.get(section)
            if section in self.deepspeed and (not inner or (isinstance(given, dict) and inner in given)):
                raise ValueError(f"deepspeed.{key}: has a place of its own: set {place} instead")
        return self

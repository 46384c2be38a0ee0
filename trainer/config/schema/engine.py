"""``batch`` and ``engine``: the global batch, and how its work is split over processes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, PlainSerializer, ValidatorFunctionWrapHandler, WrapValidator, model_validator

from bellwether.trainer.config.schema.section import SAMPLES, SECONDS, Count, Section, unit
from bellwether.trainer.config.units import Duration, IntervalField

_LARGEST = 2**40


def _parse_global(value: Any, validate: Callable[[Any], int]) -> int | tuple[tuple[int, int], ...]:
    """A batch size, or the pairs of a batch warm-up.

    Raises:
        ValueError: if a list is not one of ascending pairs from 0 samples on.
    """
    if not isinstance(value, list | tuple):
        return validate(value)
    for entry in value:
        if not isinstance(entry, list | tuple) or len(entry) != 2 or any(type(number) is not int for number in entry):
            raise ValueError(
                f"{entry!r} is no pair of whole numbers: write [samples, batch], as in [[0, 64], [20000, 128]]"
            )
        if not 0 < entry[1] <= _LARGEST or not 0 <= entry[0] <= _LARGEST:
            raise ValueError(
                f"{list(entry)} is out of range: write [samples, batch], samples from 0 on and a batch above 0"
            )
    if not value or value[0][0] != 0:
        raise ValueError("the first pair says from 0 samples on: write [[0, batch], ...]")
    if (unsorted := next((b for a, b in pairwise(value) if b[0] <= a[0]), None)) is not None:
        raise ValueError(
            f"{list(unsorted)} does not begin after the pair before it: write the pairs in ascending order of samples"
        )
    return tuple((at, size) for at, size in value)


if TYPE_CHECKING:
    GlobalBatch = int | tuple[tuple[int, int], ...]
else:
    GlobalBatch = Annotated[
        int, Field(gt=0, le=_LARGEST), WrapValidator(_parse_global), PlainSerializer(lambda value: value)
    ]


def _or_auto(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    return value if value == "auto" else handler(value)


# Of a union, pydantic would name the members in the path of an error.
CountOrAuto = Annotated[
    int, Field(gt=0, le=2**40), WrapValidator(_or_auto), PlainSerializer(lambda value: value, return_type=Any)
]


class Batch(Section):
    """The global batch. Micro-batch and gradient accumulation steps are derived from it and the world size."""

    global_: GlobalBatch = Field(
        alias="global",
        description="samples per weight update, over all ranks; or a list of [samples, batch], as in [[0, 64], [20000, 128]]: from how "
        "many samples of the phase on each holds (batch warm-up); the learning rate follows scaling.rule",
        json_schema_extra={**SAMPLES, "or": "list of [samples, batch]"},
    )
    micro: CountOrAuto = Field(
        32,
        description="upper bound of the micro-batch: samples that one rank passes through the model at a time; limited by memory; auto: what "
        "the planner says, tried before the first step and halved where it does not fit; the run keeps it",
        json_schema_extra=SAMPLES,
    )

    @property
    def is_auto(self) -> bool:
        return str(self.micro) == "auto"

    @property
    def most(self) -> int:
        """The upper bound of the micro-batch as a number."""
        return max(self.all_sizes) if self.is_auto else self.micro

    @property
    def sizes(self) -> int | tuple[tuple[int, int], ...]:
        """``global``, for `bellwether.optimizers.batch_schedule.BatchSchedule`."""
        return self.global_

    @property
    def all_sizes(self) -> list[int]:
        """The batch sizes in their order; one without a batch warm-up."""
        return [self.global_] if isinstance(self.global_, int) else [size for _, size in self.global_]


# Keys of DeepSpeed that Bellwether sets itself. A value in engine.deepspeed would silently override another key.
OURS = {
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
    """Sharding, precision and device. No key of this section changes which samples make up a step."""

    stage: Literal[0, 1, 2, 3] = Field(
        2,
        description="ZeRO stage. 0 shards nothing, 1 the optimizer state, 2 the gradients as well, 3 the parameters as well",
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="data type of weights and activations in the model; master weights stay fp32"
    )
    activation_checkpointing: bool = Field(
        False, description="recompute activations in the backward pass to save memory"
    )
    compile: Literal["none", "layers"] = Field(
        "none",
        description="layers: torch.compile for each layer of an encoder or each residual block; dropout then draws other random numbers; "
        "not under stage 3, nor with activation_checkpointing",
    )
    channels_last: bool | None = Field(
        None,
        description="whether images are laid out in memory with their channels last, which GPUs convolve faster; null: on GPUs only",
    )
    cudnn_benchmark: bool = Field(
        False,
        description="let cuDNN choose its convolutions by trying them at the start, on GPUs; a resumed run may choose others, and then "
        "differs by rounding",
    )
    tf32: bool = Field(
        False,
        description="multiply matrices and convolve in TF32 where precision is fp32, on GPUs: 10 bits of mantissa, several times as fast",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="cuda uses NCCL, cpu uses gloo; auto: cuda if there is a GPU"
    )
    world_size: Count | None = Field(
        None,
        description="number of processes that the run requires; null: any number",
        json_schema_extra=unit("processes"),
    )
    collective_timeout: Annotated[float, Field(gt=0)] = Field(
        1800,
        description="time limit of a collective, and of the rendezvous at the start; the run ends when it is exceeded",
        json_schema_extra=SECONDS,
    )
    heartbeat: Annotated[float, Field(ge=0)] = Field(
        60,
        description="the run ends when a process, or its network connection, has been silent for this long; 0: no limit",
        json_schema_extra=SECONDS,
    )
    hang_factor: Annotated[float, Field(ge=0)] = Field(
        5,
        description="the run ends, after all processes have dumped their stacks, when a process does not move on within this many times "
        "the median duration of what it is doing: a micro-batch, a batch of an evaluation, a checkpoint; but not before the limits below, "
        "nor in its first steps; 0: never",
        json_schema_extra=unit("factor"),
    )
    hang_timeout: Annotated[float, Field(gt=0)] = Field(
        30,
        description="shortest time without progress that counts as a hang while processes compute and communicate",
        json_schema_extra=SECONDS,
    )
    hang_timeout_data: Annotated[float, Field(gt=0)] = Field(
        120,
        description="shortest time that counts as a hang while a process waits for its data, which a slow file system can delay",
        json_schema_extra=SECONDS,
    )
    hang_timeout_files: Annotated[float, Field(gt=0)] = Field(
        600,
        description="shortest time that counts as a hang while a process saves a checkpoint or writes metrics",
        json_schema_extra=SECONDS,
    )
    replica_check: IntervalField | None = Field(
        Duration(100, "steps"),
        description="interval between comparisons of a tenth of the weights over the processes that hold the same, bit by bit, at the next "
        "logged step; all of them are compared before each checkpoint; a process that differs is named, and ends the run without a "
        "checkpoint; null: never",
    )
    deepspeed: dict[str, Any] = Field(
        default_factory=dict,
        description="additional keys of DeepSpeed's config, passed on unchanged; those that DeepSpeed does not know are refused",
    )

    @property
    def has_bf16_masters(self) -> bool:
        """Whether the optimizer updates bf16 weights: DeepSpeed keeps fp32 ones unless it is told not to."""
        bf16 = self.deepspeed.get("bf16")
        asked = isinstance(bf16, dict) and bf16.get("bf16_master_weights_and_grads") is True
        return asked and self.precision == "bf16" and self.stage > 0

    @property
    def arithmetic(self) -> str:
        """The precision of matrix products on GPUs: `precision`, or tf32 where it replaces fp32."""
        return "tf32" if self.tf32 and self.precision == "fp32" else self.precision

    @property
    def label(self) -> str:
        """Stage, precision, and what else makes a step faster, for plans."""
        parts = [f"ZeRO {self.stage}", self.precision]
        parts += ["TF32 on GPUs"] if self.arithmetic == "tf32" else []
        parts += ["compiled layers"] if self.compile == "layers" else []
        if self.channels_last is not None:
            parts.append("channels last" if self.channels_last else "channels first")
        parts += ["cuDNN's fastest convolutions"] if self.cudnn_benchmark else []
        return ", ".join(parts)

    @model_validator(mode="after")
    def _compiles(self) -> Engine:
        if self.compile != "none" and self.stage == 3:
            raise ValueError(
                "compile: ZeRO 3 gathers the weights inside of each layer, which torch.compile does not trace; write none, "
                "or stage: 2"
            )
        if self.compile != "none" and self.activation_checkpointing:
            raise ValueError(
                "compile: what activation_checkpointing recomputes would draw other dropout in a compiled layer, and update BatchNorm's "
                "statistics twice; write none, or activation_checkpointing: false"
            )
        return self

    @model_validator(mode="after")
    def _ours(self) -> Engine:
        for key, own in OURS.items():
            section, _, inner = key.partition(".")
            section_value = self.deepspeed.get(section)
            if section in self.deepspeed and (
                not inner or (isinstance(section_value, dict) and inner in section_value)
            ):
                raise ValueError(f"deepspeed.{key}: is set by another key: set {own} instead")
        return self

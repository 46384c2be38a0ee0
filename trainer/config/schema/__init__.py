"""The keys of a config: pydantic models with type, default, description and unit of each key.

`Config` is the config of one run. `bellwether.trainer.config.load` reads it from YAML and the command line and converts
pydantic's errors into messages that name file, key and value. `bellwether.trainer.config.reference` lists all keys.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, SerializeAsAny, model_validator

from bellwether.optimizers.registry import OPTIMIZERS
from bellwether.trainer.config.schema.data import DataConfig
from bellwether.trainer.config.schema.engine import Batch, Engine
from bellwether.trainer.config.schema.evaluation import Checkpoint, Evaluate, Log, Trajectory
from bellwether.trainer.config.schema.loss import Loss
from bellwether.trainer.config.schema.models import ModelConfig
from bellwether.trainer.config.schema.optimization import PATTERNS, Averaging, Optimizer, Scaling, Schedule
from bellwether.trainer.config.schema.section import Count, Section, unit
from bellwether.trainer.config.units import DurationField

__all__ = ["PATTERNS", "Batch", "Config", "Count", "DataConfig", "ModelConfig", "Optimizer", "Section"]


class Config(Section):
    """The config of one run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = Field(
        description="name of the run and of its directory under `runs`"
    )
    runs: str = Field("runs", description="directory that contains the run directories")
    resume: str = Field(
        "auto",
        description="auto: resume from the newest checkpoint of the run directory, if there is one; never: refuse a run directory "
        "in which training has begun; or the path of a checkpoint to start from",
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(
        1,
        description="seed of initial weights, sample order, masking and augmentation, independent of the number of processes; "
        "and of dropout, which differs between processes",
    )
    duration: DurationField = Field(description="length of the run, or of each phase that does not set its own")
    stop_after: DurationField | None = Field(
        None, description="save a checkpoint and stop at this point of the run; null: train to the end"
    )
    divergence: Annotated[float, Field(gt=1)] | None = Field(
        None,
        description="the run stops as diverged when the smoothed loss exceeds this many times its minimum, or is not finite; "
        "earlier checkpoints are kept; null: never",
        json_schema_extra=unit("factor"),
    )
    model: SerializeAsAny[ModelConfig] = Field(description="The model architecture.")
    data: SerializeAsAny[DataConfig] = Field(description="The dataset.")
    loss: Loss = Loss()
    batch: Batch
    optimizer: Optimizer
    averaging: Averaging = Averaging()
    scaling: Scaling = Scaling()
    schedule: Schedule = Schedule()
    evaluate: Evaluate = Evaluate()
    checkpoint: Checkpoint = Checkpoint()
    log: Log = Log()
    trajectory: Trajectory = Trajectory()
    engine: Engine = Engine()
    phases: list[dict[str, Any]] = Field(
        default_factory=list,
        description="parts of the run, trained one after the other; each lists what differs from the other keys, in the sections "
        "duration, batch, data, optimizer, scaling and schedule",
    )

    @model_validator(mode="before")
    @classmethod
    def _take_the_tokenizer_of_pretrained_weights(cls, raw: Any) -> Any:
        """``data.tokenizer`` left out is that of ``model.init``."""
        model, data = (raw.get(key) if isinstance(raw, dict) else None for key in ("model", "data"))
        if not (isinstance(model, dict) and isinstance(data, dict) and isinstance(model.get("init"), str)):
            return raw
        kind = DataConfig.kinds().get(str(data.get("kind")))
        if kind is None or "tokenizer" not in kind.model_fields or "tokenizer" in data:
            return raw
        return {**raw, "data": {**data, "tokenizer": model["init"]}}

    @model_validator(mode="after")
    def _check_sections(self) -> Config:
        data_kind = self.model.data_kind
        if self.data.kind != data_kind:
            raise ValueError(f"data.kind: model.kind {self.model.kind} needs data.kind: {data_kind}")
        self.model.check_data(self.data)
        if self.evaluate.cache_pointer is not None and not self.data.carries_state:
            raise ValueError(
                f"evaluate.cache_pointer: needs a language model, and data.kind is {self.data.kind}; remove it"
            )
        if self.data.carries_state:
            self._check_carried_state()
        if not (self.loss.is_plain or self.loss.kind in self.model.losses):
            key = "label_smoothing" if self.loss.kind == "cross-entropy" else "kind"
            possible = " or ".join(f"kind: {kind}" for kind in self.model.losses)
            advice = f"write {possible}" if possible else "remove the section loss"
            raise ValueError(f"loss.{key}: model.kind: {self.model.kind} cannot be trained on it; {advice}")
        if self.evaluate.augment and not self.data.augments:
            raise ValueError(
                f"evaluate.augment: {self.evaluate.augment} views need images with data.crop or data.flip; remove it"
            )
        rounding = next((key for key in ("stochastic_rounding", "kahan_sum") if getattr(self.optimizer, key)), None)
        if rounding is not None and not self.engine.has_bf16_masters:
            raise ValueError(
                f"optimizer.{rounding}: the optimizer updates fp32 weights, which lose no small updates; remove it, or keep no fp32 "
                "weights: engine.precision: bf16, engine.stage: 1, 2 or 3, and "
                "engine.deepspeed: {bf16: {bf16_master_weights_and_grads: true}}"
            )
        if self.schedule.scale_decay and self.optimizer.weight_decay_mode in ("independent", "prox"):
            raise ValueError(
                f"schedule.scale_decay: optimizer.weight_decay_mode: {self.optimizer.weight_decay_mode} already follows the learning rate; remove it"
            )
        if OPTIMIZERS[self.optimizer.name].unsharded and self.engine.stage:
            raise ValueError(
                f"engine.stage: it shards the optimizer state, and optimizer.name: {self.optimizer.name} keeps eigenvectors of whole "
                "parameters; write 0"
            )
        self._check_results()
        self._check_average()
        self._check_benchmark()
        return self

    def _check_results(self) -> None:
        """Refuse a target, or a score of the best checkpoint, that no evaluation of these data measures."""
        evaluate = self.evaluate
        wanted = {"target": evaluate.target and evaluate.target.metric, "best": evaluate.best}
        for key, name in wanted.items():
            if name is not None and name not in self.data.results:
                possible = ", ".join(self.data.results)
                raise ValueError(
                    f"evaluate.{key}: {name} is not measured where data.kind is {self.data.kind}; name one of {possible}"
                )
            if name == "perplexity_cache" and evaluate.cache_pointer is None:
                raise ValueError(
                    f"evaluate.{key}: {name} is not measured without evaluate.cache_pointer; write {{}} there, or perplexity here"
                )

    def _check_carried_state(self) -> None:
        """Streams of data need one batch size, and each batch to be computed once."""
        if len(self.batch.all_sizes) > 1:
            raise ValueError(
                f"batch.global: data.kind: {self.data.kind} cuts the text into as many streams as the batch has samples, and a larger "
                "batch would start new ones in the middle of the text; write one size, or a phase for each"
            )
        if self.engine.compile != "none" and getattr(self.data, "varying_length", False):
            raise ValueError(
                "engine.compile: code is compiled for each length of windows, and with data.varying_length there are dozens; write none"
            )
        interpolate = self.trajectory.interpolate
        if interpolate.every is not None or interpolate.steps:
            raise ValueError(
                f"trajectory.interpolate: computes a step's batch again, and the state of data.kind: {self.data.kind} has moved on; remove it"
            )

    def _check_average(self) -> None:
        """An optimizer that averages its iterates takes the place of a decaying schedule and of other averages."""
        name, averaging, schedule = self.optimizer.name, self.averaging, self.schedule
        if not OPTIMIZERS[name].averages:
            if averaging.kind == "none" and averaging.batch_norm != type(averaging).model_fields["batch_norm"].default:
                raise ValueError(
                    f"averaging.batch_norm: {name} without averaging has none; remove it, or write averaging.kind"
                )
            return
        # The range test of `bellwether lr-find` rises exponentially.
        if schedule.kind != "constant" and not (schedule.kind == "exponential" and schedule.start <= schedule.final):
            raise ValueError(
                f"schedule.kind: {schedule.kind} lowers the learning rate, which the average of optimizer.name: {name} takes the place "
                "of; write schedule.kind: constant, with a schedule.warmup"
            )
        if schedule.momentum is not None:
            raise ValueError(
                f"schedule.momentum: the average of optimizer.name: {name} needs the same beta1 in all steps; remove it"
            )
        if averaging.kind != "none":
            raise ValueError(f"averaging.kind: optimizer.name: {name} averages the weights itself; remove it")

    def _check_benchmark(self) -> None:
        """MLPerf's log knows one batch size and one schedule, of a model of the benchmark's kind."""
        benchmark = self.log.mlperf.benchmark
        kind = {"bert": "text", "resnet": "images"}.get(benchmark or "", self.data.kind)
        if self.data.kind != kind:
            raise ValueError(f"log.mlperf.benchmark: needs data.kind: {kind}; remove it, or write another")
        if benchmark is not None and len(self.phases) > 1:
            raise ValueError(
                f"log.mlperf.benchmark: has one batch size and schedule, and the run {len(self.phases)} phases; remove one of them"
            )
        if benchmark is not None and len(self.batch.all_sizes) > 1:
            raise ValueError(
                "log.mlperf.benchmark: has one batch size, and batch.global grows; remove it, or write one batch size"
            )

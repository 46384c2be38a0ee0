"""``evaluate``, ``checkpoint``, ``log``, ``trajectory``: evaluation, saving and logging. None of these keys changes the training."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from bellwether.trainer.config.schema.section import FRACTION, SAMPLES, STEPS, TOKENS, Count, Section, unit
from bellwether.trainer.config.units import Duration, IntervalField, TargetField
from bellwether.trainer.scores import Score


class CachePointer(Section):
    """The continuous cache on top of a language model (Grave et al. 2016; Merity et al. 2017)."""

    window: Count = Field(
        2000, description="pairs of a hidden state and the word after it that it holds", json_schema_extra=TOKENS
    )
    theta: Annotated[float, Field(ge=0)] = Field(
        0.662,
        description="factor of the products of hidden states; the larger, the more the most similar ones count",
        json_schema_extra=unit("factor"),
    )
    share: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.1279, description="probability of the cache in the interpolation with the model", json_schema_extra=FRACTION
    )


class Evaluate(Section):
    """Evaluation on held-out data: loss and accuracy."""

    every: IntervalField | None = Field(
        None, description="interval between evaluations; null: only at the end of each phase"
    )
    limit: Count | None = Field(
        None, description="largest number of held-out samples to use; null: all", json_schema_extra=SAMPLES
    )
    target: TargetField | None = Field(
        None, description="the run ends at the first evaluation that reaches this target; null: no target"
    )
    best: Literal["loss", "accuracy", Score] | None = Field(
        None,
        description="score on held-out data, such as accuracy, f1, matthews or perplexity: the checkpoint of the best evaluation is kept, besides "
        "the newest ones, and exported; null: the last one is exported",
    )
    patience: Count | None = Field(
        None,
        description="in the last phase, the run ends after this many evaluations that are no better than `best`; null: never",
        json_schema_extra=unit("evaluations"),
    )
    augment: Annotated[int, Field(ge=0, le=1000)] = Field(
        0,
        description="test-time augmentation for images: number of cropped and mirrored views whose predictions are averaged with "
        "those of the original, reported as loss_augmented and accuracy_augmented in addition to the plain values; 0: none",
        json_schema_extra=unit("views"),
    )

    cache_pointer: CachePointer | None = Field(
        None,
        description="for language models: the continuous cache pointer, which gives perplexity_cache in addition to the plain one; {} has "
        "the values below; null: none",
    )

    @model_validator(mode="after")
    def _best(self) -> Evaluate:
        if self.patience is not None and self.best is None:
            raise ValueError(
                "patience: needs the score that is to become better; write evaluate.best, as in best: accuracy"
            )
        if self.best is not None and self.every is None:
            raise ValueError("best: there is only one evaluation; write evaluate.every, as in every: 1 epochs")
        return self


class Checkpoint(Section):
    """Checkpoints. They are saved at step boundaries, and always at the end of each phase."""

    every: IntervalField | None = Field(
        None, description="interval between checkpoints; null: only at the end of each phase"
    )
    async_save: bool = Field(
        True,
        description="copy a checkpoint into host memory and write it while training goes on; the copy is kept, and page-locked beside a "
        "GPU; false: training stands still until it is written",
    )
    keep: Count = Field(3, description="number of newest checkpoints to keep", json_schema_extra=unit("checkpoints"))
    export: bool = Field(True, description="export the finished model to export/ in save_pretrained format")


class Mlperf(Section):
    """The run's log for MLPerf training, mllog.txt, and its place in the report among reference points and submissions."""

    benchmark: Literal["bert", "resnet"] | None = Field(
        None, description="benchmark of MLPerf training that the run is measured by; null: no mllog.txt is written"
    )
    division: Literal["closed", "open"] = Field("open", description="division of the submission")
    status: Literal["onprem", "cloud", "preview", "research"] = Field(
        "research", description="status of the submission"
    )
    organization: Annotated[str, Field(min_length=1)] = Field("unnamed", description="who submits")
    platform: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="name of the system; null: number of processes and their device"
    )


class Log(Section):
    """Metrics on the terminal, in metrics.jsonl and in experiment trackers."""

    every: IntervalField = Field(Duration(10, "steps"), description="interval between logged training steps")
    keep: Count = Field(
        5,
        description="number of newest attempts whose processes' output is kept, and of newest dumps of the stacks of a hang",
        json_schema_extra=unit("attempts"),
    )
    trackers: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = Field(
        ["tensorboard"],
        description="experiment trackers that get the metrics: tensorboard, wandb, mlflow, trackio; resuming a run also resumes its run "
        "in each",
    )
    report: bool = Field(
        True, description="write report.html at the end of the run; `bellwether report` writes it at any time"
    )
    noise_scale: bool = Field(
        True,
        description="estimate the gradient noise scale, a rough guide to the critical batch size; costs one norm of the gradients "
        "of one micro-batch of a measured step",
    )
    noise_scale_every: Count | None = Field(
        None,
        description="interval between steps in which the gradient noise is measured; null: 1 in phases of less than 4,000 steps, "
        "growing to 10 from 20,000 steps on",
        json_schema_extra=STEPS,
    )
    mlperf: Mlperf = Mlperf()


class Interpolate(Section):
    """The loss of a step's batch on the straight line from the weights before the step to those after it."""

    every: IntervalField | None = Field(
        None, description="interval between interpolated steps; null: only the steps listed in `steps`"
    )
    steps: list[Count] = Field(
        [], description="steps to interpolate, counted from 1 at the start of the run", json_schema_extra=STEPS
    )
    points: Annotated[int, Field(ge=2, le=1000)] = Field(
        11,
        description="evenly spaced points on the line, both ends included; each costs one forward pass of the batch",
        json_schema_extra=unit("points"),
    )


class Trajectory(Section):
    """Measurements of the update and weight trajectory (Xing et al. 2018, A Walk with SGD)."""

    every: IntervalField | None = Field(
        None,
        description="interval between measurements of the cosine between successive updates, the distance from the initial "
        "weights, and norms; null: never. Keeps three copies of the sharded weights",
    )
    interpolate: Interpolate = Interpolate()

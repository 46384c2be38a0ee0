"""``evaluate``, ``checkpoint``, ``log``, ``trajectory``: what is measured and kept; none of it changes the training."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from bellwether.trainer.config.schema.section import Count, Section
from bellwether.trainer.config.units import Duration, IntervalField, TargetField


class Evaluate(Section):
    """Held-out loss and accuracy."""

    every: IntervalField | None = Field(None, description="how often; null: only at the end of each phase")
    limit: Count | None = Field(None, description="most held-out samples to use; null: all")
    target: TargetField | None = Field(
        None, description="end the run at the first evaluation that shows it, as in accuracy >= 0.9 or loss <= 2.5"
    )
    augment: Annotated[int, Field(ge=0, le=1000)] = Field(
        0,
        description="of images: views, cropped and mirrored as in training, whose predictions are averaged with the original's, "
        "for loss_augmented and accuracy_augmented beside the plain ones; 0: none",
    )


class Checkpoint(Section):
    """Saving, always at a step boundary and always at the end of each phase."""

    every: IntervalField | None = Field(None, description="how often; null: only at the end of each phase")
    keep: Count = Field(3, description="how many of the newest checkpoints stay")
    export: bool = Field(True, description="write the finished model to export/, as save_pretrained does")


class Log(Section):
    """Metrics on the terminal, in metrics.jsonl and in TensorBoard."""

    every: IntervalField = Field(Duration(10, "steps"), description="how often")
    tensorboard: bool = Field(True, description="write TensorBoard event files to logs/")
    report: bool = Field(True, description="write report.html at the end; bellwether report does it at any time")
    noise_scale: bool = Field(
        True,
        description="estimate the critical batch from gradient norms; costs a norm of each micro-batch's gradients",
    )


class Interpolate(Section):
    """The loss of a step's batch on the way from the weights before it to those after it."""

    every: IntervalField | None = Field(None, description="how often; null: at `steps` alone")
    steps: list[Count] = Field([], description="steps of the run, counted from 1")
    points: Annotated[int, Field(ge=2, le=1000)] = Field(
        11, description="evenly from the weights before the step to those after; each costs a forward pass of its batch"
    )


class Trajectory(Section):
    """Where the weights go (Xing et al. 2018, A Walk with SGD). Changes nothing of the training."""

    every: IntervalField | None = Field(
        None,
        description="how often to measure the cosine between two updates, the distance from the start, and norms; null: "
        "never. Keeps three copies of the shards' weights",
    )
    interpolate: Interpolate = Interpolate()

"""The keys of a config: each with its type, its unit, its default and what it is for.

`Config` is the whole of a run. `bellwether.trainer.config.load` reads one from YAML and from the command line
and turns pydantic's complaints into messages that name file, key and value.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from bellwether.trainer.config.schema.data import Data, ImageData, TextData
from bellwether.trainer.config.schema.engine import Batch, Engine
from bellwether.trainer.config.schema.evaluation import Checkpoint, Evaluate, Log, Trajectory
from bellwether.trainer.config.schema.models import BertModel, CifarResNetModel, Model, ResNetModel, WideResNetModel
from bellwether.trainer.config.schema.optimization import Averaging, Optimizer, Scaling, Schedule
from bellwether.trainer.config.schema.section import Count, Section
from bellwether.trainer.config.units import DurationField

__all__ = [
    "Batch", "BertModel", "CifarResNetModel", "Config", "Count", "ImageData", "Model", "Optimizer", "ResNetModel", "Section",
    "TextData", "WideResNetModel",
]  # fmt: skip


class Config(Section):
    """One run, whole."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = Field(
        description="the run's directory under `runs`"
    )
    runs: str = Field("runs", description="directory that holds the run directories")
    resume: str = Field(
        "auto", description="auto (go on where the run directory stands), never, or a checkpoint's path"
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(
        1,
        description="of weights, sample order, masking and augmentation, whatever the number of processes; and of dropout, which each process draws for itself",
    )
    duration: DurationField = Field(description="length of the run, or of each phase")
    stop_after: DurationField | None = Field(None, description="stop early, with a checkpoint, this far into the run")
    divergence: Annotated[float, Field(gt=1)] | None = Field(
        None,
        description="stop once the smoothed loss is this many times its lowest, or no number; what was saved before stays. null: never",
    )
    model: Model
    data: Data
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
        description="parts of the run, one after the other; each says what differs from the keys above "
        "(duration, batch, data, optimizer, scaling, schedule)",
    )

    @model_validator(mode="after")
    def _fit(self) -> Config:
        wanted = "text" if self.model.kind == "bert" else "images"
        if self.data.kind != wanted:
            raise ValueError(f"data.kind: model.kind {self.model.kind} needs data.kind: {wanted}")
        if (
            isinstance(self.model, BertModel)
            and isinstance(self.data, TextData)
            and self.data.sequence_length > self.model.max_positions
        ):
            raise ValueError(
                f"data.sequence_length: {self.data.sequence_length} tokens do not fit "
                f"model.max_positions: {self.model.max_positions}"
            )
        if self.evaluate.augment and not (
            isinstance(self.data, ImageData) and (self.data.flip or self.data.crop != "none")
        ):
            raise ValueError(
                f"evaluate.augment: {self.evaluate.augment} views need images with data.crop or data.flip; take it out"
            )
        if self.schedule.scale_decay and self.optimizer.weight_decay_mode in ("independent", "prox"):
            raise ValueError(
                f"schedule.scale_decay: optimizer.weight_decay_mode: {self.optimizer.weight_decay_mode} follows the rate by itself; take it out"
            )
        return self

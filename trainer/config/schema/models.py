"""``model``: the model architecture. The kinds are defined in `bellwether.trainer.models`, one file each."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from bellwether.trainer.config.schema.data import DataConfig
from bellwether.trainer.config.schema.kinds import Kind

if TYPE_CHECKING:
    from bellwether.trainer.data import Dataset
    from bellwether.trainer.models.tasks import Task


class ModelConfig(Kind):
    """The model architecture. docs/extending.md shows how to add one.

    Attributes:
        data_kind: the kind of data that the model is trained on.
        matrix_efficiency: share of a GPU's peak that its matrix products reach, for the planner.
        memory_traffic: bytes read and written for each byte saved for the backward pass, for the planner. Both: docs/results/planner.md.
        assumed_classes: number of classes that the planner assumes while the data have not been read.
        losses: the values of `loss.kind` that it can be trained on; none where the loss is no classification's.
    """

    package: ClassVar[str] = "bellwether.trainer.models"
    data_kind: ClassVar[str]
    matrix_efficiency: ClassVar[float] = 0.38
    memory_traffic: ClassVar[float] = 7.0
    assumed_classes: ClassVar[int] = 10
    losses: ClassVar[tuple[str, ...]] = ()

    @property
    def label(self) -> str:
        """A short name of this architecture and size, for tables of results."""
        return self.kind

    def plan(self) -> list[tuple[str, str]]:
        """Rows of a phase's plan, label and value: what is done to the model in training."""
        return []

    def check_data(self, data: DataConfig) -> None:
        """Checks that the model can be trained on these data, beyond their kind.

        Raises:
            ValueError: with a message that begins with the key to change, as in ``data.sequence_length: ...``.
        """

    def build(self, dataset: Dataset, activation_checkpointing: bool) -> Task:
        """The model with newly initialized weights, and its loss. See `bellwether.trainer.models.build`."""
        raise NotImplementedError

"""What the configs of recurrent language models share. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from bellwether.trainer.config.schema.models import ModelConfig
from bellwether.trainer.config.schema.section import FRACTION, Count, unit

if TYPE_CHECKING:
    from bellwether.trainer.data import Dataset
    from bellwether.trainer.models.tasks import Task

Dropout = Annotated[float, Field(ge=0, lt=1, json_schema_extra=FRACTION)]
ELEMENTS, LAYERS = unit("elements"), unit("layers")
Factor = Annotated[float, Field(ge=0, json_schema_extra=unit("factor"))]


class RecurrentModel(ModelConfig):
    """A recurrent language model with the dropout and the regularisation of Merity et al. 2017 (1708.02182)."""

    data_kind: ClassVar[str] = "token-stream"

    embedding_size: Count = Field(
        400,
        description="size of a word's embedding and of the last layer, whose output weights are the embeddings",
        json_schema_extra=ELEMENTS,
    )
    hidden_size: Count
    layers: Count
    output_dropout: Dropout = Field(0.4, description="dropout probability of what the last layer returns")
    hidden_dropout: Dropout = Field(0.2, description="dropout probability between two layers")
    input_dropout: Dropout
    embedding_dropout: Dropout = Field(
        0.1, description="share of the words of the vocabulary whose embeddings are 0 in a micro-batch"
    )
    weight_dropout: Dropout
    alpha: Factor = Field(
        2.0,
        description="activation regularisation: factor of the mean square of what the last layer returns, after dropout, in the loss of "
        "training",
    )
    beta: Factor = Field(
        1.0,
        description="temporal activation regularisation: factor of the mean square of its change from one position to the next, before "
        "dropout, in the loss of training",
    )

    @property
    def label(self) -> str:
        return f"{self.kind}-{self.layers}-{self.hidden_size}"

    def build(self, dataset: Dataset, activation_checkpointing: bool) -> Task:
        from bellwether.trainer.models.language_modelling import LanguageModelling
        from bellwether.trainer.models.partitioned import construct
        from bellwether.trainer.models.pretrained import checkpoint_activations

        own = {"kind", "layers"}
        config = self.model_dump(exclude=own) | {
            "vocab_size": dataset.vocabulary_size,
            "num_hidden_layers": self.layers,
        }
        model = construct(lambda: self._model(**config))
        if activation_checkpointing:
            checkpoint_activations(model)
        return LanguageModelling(model)

    def _model(self, **config: Any) -> Any:
        raise NotImplementedError

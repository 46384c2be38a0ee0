"""AWD-LSTM (Merity, Keskar and Socher 2017, 1708.02182): ``model: {kind: awd-lstm}``. Imports no torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from bellwether.trainer.config.schema.section import Count
from bellwether.trainer.models.recurrent import ELEMENTS, LAYERS, Dropout, RecurrentModel


class AwdLstmModel(RecurrentModel):
    """AWD-LSTM language model (Merity et al. 2017), with the sizes and dropouts of its WikiText-2 run."""

    kind: Literal["awd-lstm"]
    hidden_size: Count = Field(1150, description="size of all layers but the last", json_schema_extra=ELEMENTS)
    layers: Count = Field(3, description="number of LSTM layers", json_schema_extra=LAYERS)
    input_dropout: Dropout = Field(
        0.65, description="dropout probability of the embeddings that enter the first layer; 0.4 for the Penn Treebank"
    )
    weight_dropout: Dropout = Field(0.5, description="dropout probability of the recurrent weights (DropConnect)")

    def _model(self, **config: Any) -> Any:
        from bellwether.trainer.models import auto_classes

        return auto_classes.AwdLstmForCausalLM(auto_classes.AwdLstmConfig(**config))

"""QRNN (Bradbury et al. 2016, 1611.01576) as a language model: ``model: {kind: qrnn}``. Imports no torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from bellwether.trainer.config.schema.section import TOKENS, Count
from bellwether.trainer.models.recurrent import ELEMENTS, LAYERS, Dropout, RecurrentModel


class QrnnModel(RecurrentModel):
    """QRNN language model (Bradbury et al. 2016), in the shell and with the WikiText-2 settings of AWD-LSTM's authors."""

    kind: Literal["qrnn"]
    hidden_size: Count = Field(1550, description="size of all layers but the last", json_schema_extra=ELEMENTS)
    layers: Count = Field(4, description="number of QRNN layers", json_schema_extra=LAYERS)
    input_dropout: Dropout = Field(0.4, description="dropout probability of the embeddings that enter the first layer")
    weight_dropout: Dropout = Field(0.1, description="dropout probability of the layers' weights (DropConnect)")
    window: Count = Field(
        2, description="inputs that the first layer's gates see; those of the others see one", json_schema_extra=TOKENS
    )
    zoneout: Dropout = Field(
        0.0, description="probability that an element of the state stays as it was (Bradbury et al. 2016, equation 6)"
    )

    def _model(self, **config: Any) -> Any:
        from bellwether.trainer.models import auto_classes

        return auto_classes.QrnnForCausalLM(auto_classes.QrnnConfig(**config))

"""Recurrent language models: AWD-LSTM and QRNN, one shell around a stack of recurrent layers.

This file and `recurrent_layers` import torch and transformers only: `save_pretrained` copies both next to the weights, so that

    AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)

works without Bellwether installed.

Sources: Merity, Keskar and Socher 2017 (1708.02182); Bradbury et al. 2016 (1611.01576); with QRNN layers in the shell: Merity, Keskar
and Socher 2018 (1803.08240).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PretrainedConfig, PreTrainedModel

from .recurrent_layers import QrnnLayer, WeightDroppedLSTM, locked_dropout  # noqa: TID252  (save_pretrained follows it)


class _RecurrentConfig(PretrainedConfig):
    """Sizes, dropout probabilities and penalties that both architectures have.

    ``alpha`` and ``beta`` are the factors of `_RecurrentLM.regularisation`. The last layer has the size of the embeddings, whose
    weights are those of the output layer.
    """

    def __init__(
        self,
        vocab_size: int = 100,
        embedding_size: int = 400,
        hidden_size: int = 1150,
        num_hidden_layers: int = 3,
        output_dropout: float = 0.4,
        hidden_dropout: float = 0.2,
        input_dropout: float = 0.65,
        embedding_dropout: float = 0.1,
        weight_dropout: float = 0.5,
        alpha: float = 2.0,
        beta: float = 1.0,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.embedding_size = embedding_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.output_dropout = output_dropout
        self.hidden_dropout = hidden_dropout
        self.input_dropout = input_dropout
        self.embedding_dropout = embedding_dropout
        self.weight_dropout = weight_dropout
        self.alpha = alpha
        self.beta = beta
        super().__init__(**{"tie_word_embeddings": True, **kwargs})

    def layer_sizes(self) -> list[tuple[int, int]]:
        """Inputs and outputs of each layer, from the first to the last."""
        sizes = [self.embedding_size, *[self.hidden_size] * (self.num_hidden_layers - 1), self.embedding_size]
        return list(itertools.pairwise(sizes))


class AwdLstmConfig(_RecurrentConfig):
    """AWD-LSTM with the sizes and dropouts of Merity et al. 2017 for WikiText-2."""

    model_type = "bellwether-awd-lstm"

    def __init__(self, **kwargs: Any) -> None:  # transformers would generate one that ignores the base class's
        super().__init__(**kwargs)


class QrnnConfig(_RecurrentConfig):
    """QRNN in the shell of AWD-LSTM. ``window``: inputs that the first layer's gates see; the other layers see one."""

    model_type = "bellwether-qrnn"

    def __init__(self, window: int = 2, zoneout: float = 0.0, **kwargs: Any) -> None:
        self.window = window
        self.zoneout = zoneout
        defaults = {"hidden_size": 1550, "num_hidden_layers": 4, "input_dropout": 0.4, "weight_dropout": 0.1}
        super().__init__(**{**defaults, **kwargs})


@dataclass
class RecurrentLMOutput:
    """What a recurrent language model returns for T tokens of B streams.

    Attributes:
        last_hidden_state: [B, T, E] after output dropout, from which `decode` makes logits.
        raw_hidden_state: [B, T, E] before output dropout.
        state: the state after the last token; `initial_state` has its shapes. Not detached.
        loss: mean cross-entropy of the labels, if they were given.
    """

    last_hidden_state: Tensor
    raw_hidden_state: Tensor
    state: dict[str, Tensor]
    loss: Tensor | None = None
    decode: Callable[[Tensor], Tensor] | None = field(default=None, repr=False)

    @property
    def logits(self) -> Tensor:
        """[B, T, V], computed when they are read: they are by far the largest tensor."""
        assert self.decode is not None
        return self.decode(self.last_hidden_state)


class _RecurrentLM(PreTrainedModel):
    """Embedding, recurrent layers, and an output layer with the embedding's weights and a bias; with dropout of Merity et al. 2017.

    Dropout draws from torch's global generator.
    """

    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _tied_weights_keys = {"lm_head.weight": "embedding.weight"}  # noqa: RUF012

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.embedding_size)
        self.layers: Any = nn.ModuleList(
            self._layer(index, inputs, outputs) for index, (inputs, outputs) in enumerate(config.layer_sizes())
        )
        self.lm_head = nn.Linear(config.embedding_size, config.vocab_size)
        self.post_init()

    def _layer(self, index: int, inputs: int, outputs: int) -> nn.Module:
        raise NotImplementedError

    def _init_weights(self, module: nn.Module) -> None:
        # Merity et al. 2017, section 5, and their code for the bias.
        if isinstance(module, WeightDroppedLSTM | QrnnLayer):
            for parameter in module.parameters(recurse=False):
                nn.init.uniform_(parameter, -module.bound, module.bound)
        elif isinstance(module, nn.Embedding):
            nn.init.uniform_(module.weight, -0.1, 0.1)
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def initial_state(
        self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> dict[str, Tensor]:
        """The state of B streams before their first token: zeros [B, ...].

        Args:
            device, dtype: None: those of the weights.
        """
        weight = self.embedding.weight
        options: dict[str, Any] = {"device": device or weight.device, "dtype": dtype or weight.dtype}
        return {
            f"layers.{index}.{name}": torch.zeros(batch_size, *shape, **options)
            for index, layer in enumerate(self.layers)
            for name, shape in layer.state_shapes.items()
        }

    def forward(
        self, input_ids: Tensor, state: dict[str, Tensor] | None = None, labels: Tensor | None = None, **kwargs: Any
    ) -> RecurrentLMOutput:
        """Reads T tokens of each of B streams: ``input_ids`` [B, T].

        Args:
            state: what was read before, as `initial_state` or an earlier output has it; None: nothing.
            labels: [B, T], the same tokens as ``input_ids`` or -100; each is predicted from those before it.
        """
        config, state = self.config, self.initial_state(len(input_ids)) if state is None else state
        x = locked_dropout(self._embed(input_ids), config.input_dropout, self.training)
        new: dict[str, Tensor] = {}
        for index, layer in enumerate(self.layers):
            if index:
                x = locked_dropout(x, config.hidden_dropout, self.training)
            prefix = f"layers.{index}."
            x, after = layer(x, {name: state[prefix + name] for name in layer.state_shapes})
            new.update({prefix + name: tensor for name, tensor in after.items()})
        dropped = locked_dropout(x, config.output_dropout, self.training)
        output = RecurrentLMOutput(dropped, x, new, decode=self.decode)
        if labels is not None:
            logits = output.logits[:, :-1].float()
            output.loss = functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
        return output

    def _embed(self, input_ids: Tensor) -> Tensor:
        """[B, T] to [B, T, E]; in training some words of the vocabulary are 0 wherever they occur in the micro-batch."""
        x, p = self.embedding(input_ids), self.config.embedding_dropout
        if not self.training or not p:
            return x
        words = functional.dropout(x.new_ones(self.config.vocab_size), p, True)
        return x * words[input_ids].unsqueeze(2)

    def decode(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of the next token from hidden states [..., E]."""
        return self.lm_head(hidden)

    def regularisation(self, output: RecurrentLMOutput) -> Tensor:
        """What training adds to the loss of each sequence, float32 [B]: alpha mean(h^2) after dropout + beta mean((h_t - h_{t-1})^2) before it.

        Activation regularisation and its temporal form, Merity, McCann and Socher 2017 (1708.01009) and section 4.5 of 1708.02182;
        as in the authors' code the squares are averaged over positions and elements, and differences are within the T tokens.
        """
        raw = output.raw_hidden_state.float()
        size = self.config.alpha * output.last_hidden_state.float().square().mean(dim=(1, 2))
        if raw.shape[1] < 2:
            return size
        return size + self.config.beta * (raw[:, 1:] - raw[:, :-1]).square().mean(dim=(1, 2))


class AwdLstmForCausalLM(_RecurrentLM):
    """AWD-LSTM (Merity et al. 2017)."""

    config_class = AwdLstmConfig

    def _layer(self, index: int, inputs: int, outputs: int) -> nn.Module:
        return WeightDroppedLSTM(inputs, outputs, self.config.weight_dropout)


class QrnnForCausalLM(_RecurrentLM):
    """QRNN layers (Bradbury et al. 2016) in the shell of AWD-LSTM."""

    config_class = QrnnConfig

    def _layer(self, index: int, inputs: int, outputs: int) -> nn.Module:
        config = self.config
        window = 1 if index else config.window
        return QrnnLayer(inputs, outputs, config.weight_dropout, window, config.zoneout)

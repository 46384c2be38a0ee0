"""The layers of recurrent language models: weight-dropped LSTM, QRNN and its scan, and dropout with one mask per sequence.

`modeling_recurrent` has the models, and says why this file imports torch and transformers only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers.modeling_layers import GradientCheckpointingLayer


def locked_dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Dropout of x [B, T, F] with one mask per sequence, the same at each of its positions (Gal and Ghahramani 2016)."""
    if not training or not p:
        return x
    return x * functional.dropout(x.new_ones(x.shape[0], 1, x.shape[2]), p, training)


class WeightDroppedLSTM(GradientCheckpointingLayer):
    """One LSTM layer whose recurrent weights are dropped: one mask per forward pass, the same at each position.

    torch's own kernel, cuDNN's on GPUs. Gates in torch's order: input, forget, cell, output.
    """

    def __init__(self, inputs: int, outputs: int, weight_dropout: float) -> None:
        super().__init__()
        self.weight_dropout = weight_dropout
        self.weight_ih = nn.Parameter(torch.empty(4 * outputs, inputs))
        self.weight_hh = nn.Parameter(torch.empty(4 * outputs, outputs))
        self.bias_ih = nn.Parameter(torch.empty(4 * outputs))
        self.bias_hh = nn.Parameter(torch.empty(4 * outputs))
        self.bound = outputs**-0.5  # of the initial weights: Merity et al. 2017, section 5
        self.state_shapes = {"hidden": (outputs,), "cell": (outputs,)}

    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """x [B, T, inputs] and the state [B, ...] before it to h [B, T, outputs] and the state after it."""
        dropped = functional.dropout(self.weight_hh, self.weight_dropout, self.training)
        weights = [self.weight_ih, dropped, self.bias_ih, self.bias_hh]
        if x.is_cuda:  # cuDNN wants them in one piece, and copies them with a warning at each call otherwise
            pieces = torch.cat([weight.flatten() for weight in weights]).split([w.numel() for w in weights])
            weights = [piece.view_as(weight) for piece, weight in zip(pieces, weights, strict=True)]
        initial = [state[name].to(x.dtype).unsqueeze(0).contiguous() for name in ("hidden", "cell")]
        # with biases, layers, dropout between them, gradients, bidirectional, batch first
        output, hidden, cell = torch._VF.lstm(x, initial, weights, True, 1, 0.0, torch.is_grad_enabled(), False, True)
        return output, {"hidden": hidden[0], "cell": cell[0]}


class QrnnLayer(GradientCheckpointingLayer):
    """One quasi-recurrent layer with fo-pooling (Bradbury et al. 2016, equations 1 to 4 and 6).

    Z, F and O are functions of the last ``window`` inputs, for all positions at once; c_t = f_t c_{t-1} + (1 - f_t) z_t and
    h_t = o_t c_t go through time. Gates and c are computed in float32 at least. Zoneout keeps an element of c as it was.
    """

    def __init__(self, inputs: int, outputs: int, weight_dropout: float, window: int, zoneout: float) -> None:
        super().__init__()
        self.weight_dropout, self.window, self.zoneout = weight_dropout, window, zoneout
        # Of x_t, x_{t-1}, ...: [3 outputs, window inputs].
        self.weight = nn.Parameter(torch.empty(3 * outputs, window * inputs))
        self.bias = nn.Parameter(torch.empty(3 * outputs))
        self.bound = (window * inputs) ** -0.5  # of the initial weights: as those of nn.Linear
        self.state_shapes: dict[str, tuple[int, ...]] = {"cell": (outputs,)}
        if window > 1:
            self.state_shapes["inputs"] = (window - 1, inputs)

    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """x [B, T, inputs] and the state [B, ...] before it to h [B, T, outputs] and the state after it."""
        length, new = x.shape[1], {}
        seen = x
        if self.window > 1:
            before = torch.cat([state["inputs"].to(x.dtype), x], dim=1)
            new["inputs"] = before[:, length:]
            seen = torch.cat([before[:, i : i + length] for i in reversed(range(self.window))], dim=2)
        weight = functional.dropout(self.weight, self.weight_dropout, self.training)
        gates = functional.linear(seen, weight, self.bias)
        z, forget, out = gates.to(torch.promote_types(x.dtype, torch.float32)).chunk(3, dim=2)
        update = 1 - forget.sigmoid()
        if self.zoneout:  # without the rescaling of dropout; its expectation in evaluation
            kept = 1 - self.zoneout
            update = update * kept
            update = functional.dropout(update, self.zoneout, self.training)
        cells = linear_scan(1 - update, update * z.tanh(), state["cell"].to(z.dtype))
        new["cell"] = cells[:, -1]
        return (out.sigmoid() * cells).to(x.dtype), new


def linear_scan(decay: Tensor, inputs: Tensor, initial: Tensor) -> Tensor:
    """c_t = decay_t c_{t-1} + inputs_t for all t: [B, T, H] twice and c_{-1} [B, H] to [B, T, H].

    A loop over time, in the backward pass too, which saves decay and c alone. On a CPU core it took a third of the time of a scan over
    chunks of sqrt(T), and a twentieth of one of log2(T) passes, at the sizes of the paper (docs/models.md).
    """
    return _Scan.apply(decay, inputs, initial)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, decay: Tensor, inputs: Tensor, initial: Tensor) -> Tensor:
        cells, cell = [], initial
        for a, b in zip(decay.unbind(1), inputs.unbind(1), strict=True):
            cell = torch.addcmul(b, a, cell)
            cells.append(cell)
        result = torch.stack(cells, dim=1)
        ctx.save_for_backward(decay, result, initial)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_cells: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        decay, cells, initial = ctx.saved_tensors
        # The same recurrence, backwards: dc_t = gradient_t + decay_{t+1} dc_{t+1}.
        gradients = list(of_cells.unbind(1))
        factors = decay.unbind(1)
        for t in reversed(range(len(gradients) - 1)):
            gradients[t] = torch.addcmul(gradients[t], factors[t + 1], gradients[t + 1])
        of_inputs = torch.stack(gradients, dim=1)
        before = torch.cat([initial.unsqueeze(1), cells[:, :-1]], dim=1)
        return of_inputs * before, of_inputs, gradients[0] * factors[0]

"""The equations of LSTM and QRNN as loops over words in float64, for `test_recurrent`."""

from __future__ import annotations

import torch
from torch import Tensor


def lstm(weights: dict[str, Tensor], inputs: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """One sequence [T, I] through an LSTM layer (Merity et al. 2017, section 2); the state is of one sequence too."""
    w, u = weights["weight_ih"].chunk(4), weights["weight_hh"].chunk(4)
    b, c = weights["bias_ih"].chunk(4), weights["bias_hh"].chunk(4)
    hidden, cell = state["hidden"], state["cell"]
    found = []
    for x in inputs:
        i, f, g, o = (w[k] @ x + b[k] + u[k] @ hidden + c[k] for k in range(4))
        cell = torch.sigmoid(i) * torch.tanh(g) + torch.sigmoid(f) * cell
        hidden = torch.sigmoid(o) * torch.tanh(cell)
        found.append(hidden)
    return torch.stack(found), {"hidden": hidden, "cell": cell}


def qrnn(
    weights: dict[str, Tensor], inputs: Tensor, state: dict[str, Tensor], zoneout: float = 0.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """One sequence [T, I] through a QRNN layer (Bradbury et al. 2016, equations 1 to 4), zoneout by its expectation."""
    window = weights["weight"].shape[1] // inputs.shape[1]
    w, b = weights["weight"].chunk(3), weights["bias"].chunk(3)
    seen, cell = list(state["inputs"]) if window > 1 else [], state["cell"]
    found = []
    for x in inputs:
        seen.append(x)
        last = torch.cat(seen[: -window - 1 : -1])  # x_t, x_{t-1}, ...
        z, f, o = (w[k] @ last + b[k] for k in range(3))
        f = 1 - (1 - zoneout) * (1 - torch.sigmoid(f))
        cell = f * cell + (1 - f) * torch.tanh(z)
        found.append(torch.sigmoid(o) * cell)
    after = {"cell": cell} | ({"inputs": torch.stack(seen[1 - window :])} if window > 1 else {})
    return torch.stack(found), after

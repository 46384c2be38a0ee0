"""The optimizers once more, in float64 on whole tensors, one process: what every sharded run is compared with.

Written from the papers, apart from the package, and slow.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

Weights = dict[str, np.ndarray]


def minimise(
    rule: str,
    weights: Weights,
    gradients: Callable[[int, Weights], Weights],
    *,
    steps: int,
    lr: float,
    options: dict[str, dict],
    clip: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
) -> tuple[Weights, dict[str, float]]:
    """``steps`` updates in float64. ``options[name]`` holds ``weight_decay`` and ``trust_ratio`` of a parameter.

    Returns the weights and the trust ratios of the last step.
    """
    eps = 1e-6 if rule == "lamb" else 1e-8
    beta1, beta2 = betas
    w = {k: np.array(v, dtype=np.float64) for k, v in weights.items()}
    m = {k: np.zeros_like(v) for k, v in w.items()}
    v = {k: np.zeros_like(x) for k, x in w.items()}
    ratios: dict[str, float] = {}
    for t in range(1, steps + 1):
        g = gradients(t - 1, w)
        norm = math.sqrt(sum(float((g[k] ** 2).sum()) for k in options))
        if clip and norm > clip:
            # DeepSpeed divides by (norm + 1e-6) / clip.
            g = {k: x * clip / (norm + 1e-6) for k, x in g.items()}
        for k, option in options.items():
            decay = option["weight_decay"]
            gk = g[k] + decay * w[k] if rule == "radam" else g[k]
            m[k] = beta1 * m[k] + (1 - beta1) * gk
            v[k] = beta2 * v[k] + (1 - beta2) * gk**2
            mhat = m[k] / (1 - beta1**t)
            if rule == "radam":
                rho_inf = 2 / (1 - beta2) - 1
                rho = rho_inf - 2 * t * beta2**t / (1 - beta2**t)
                u = mhat
                if rho > 5:
                    r = math.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
                    u = r * mhat * math.sqrt(1 - beta2**t) / (np.sqrt(v[k]) + eps)
            else:
                u = mhat / (np.sqrt(v[k] / (1 - beta2**t)) + eps) + decay * w[k]
            ratio = 1.0
            if rule == "lamb" and option["trust_ratio"]:
                wn, un = np.linalg.norm(w[k].ravel()), np.linalg.norm(u.ravel())
                ratio = ratios[k] = float(wn / un) if wn > 0 and un > 0 else 1.0
            w[k] = w[k] - lr * ratio * u
    return w, ratios

"""The optimizers in float64 on whole tensors in one process: what every sharded run is compared with.

Written from the papers, independent of the package, and slow.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Weights = dict[str, np.ndarray]


@dataclass(frozen=True)
class Spec:
    """The rule and its options, named as in the papers."""

    rule: str = "adam"  # adam, radam, momentum, lars, muon (vectors by adam), schedule-free, soap
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    momentum: float = 0.9
    nesterov: bool = False
    amsgrad: bool = False
    corrected: bool = True
    decay: str = "decoupled"
    trust: bool = False
    bounds: tuple[float, float] = (0.0, math.inf)
    coefficient: float = 1e-3
    match_rms: bool = False
    normalized: bool = False
    lookahead: tuple[int, float] | None = None  # k, alpha
    average: tuple[str, int, int, float] | None = None  # kind, start, every, decay
    swats: float | None = None  # tolerance
    schedule_free: tuple[float, float, int] = (0.0, 2.0, 0)  # r, power of the largest rate, steps of warm-up
    soap: tuple[int, int] = (10, 10000)  # steps between updates of the basis, the largest dimension that has one


LAMB = Spec(eps=1e-6, trust=True)


@dataclass
class Result:
    weights: Weights
    ratios: dict[str, float]  # of the last step
    averages: Weights  # of Schedule-Free its x; the weights are its y
    switched: int  # the step after which SGD took over; 0: never


def minimise(
    spec: Spec,
    weights: Weights,
    gradients: Callable[[int, Weights], Weights],
    *,
    steps: int,
    lr: float,
    options: dict[str, dict],
    clip: float = 0.0,
    eta: Callable[[int], float] = lambda t: 1.0,
) -> Result:
    """``steps`` updates in float64.

    Args:
        gradients: of (step from 0, weights).
        lr: the peak; ``eta(step)`` is the schedule's multiplier.
        options: ``weight_decay`` and ``trust_ratio`` of each parameter that is trained.
    """
    w = {k: np.array(v, dtype=np.float64) for k, v in weights.items()}
    state: dict[str, dict[str, Any]] = {k: {"m": 0.0 * w[k], "v": 0.0 * w[k], "top": 0.0 * w[k]} for k in options}
    slow = {k: w[k].copy() for k in options}
    result = Result(w, {}, {}, 0)
    gamma_mean = gammas = rate = 0.0
    for t in range(1, steps + 1):
        g = {k: gradients(t - 1, w)[k] for k in options}
        norm = math.sqrt(sum(float((x**2).sum()) for x in g.values()))
        if clip and norm > clip:
            # DeepSpeed divides by (norm + 1e-6) / clip.
            g = {k: x * clip / (norm + 1e-6) for k, x in g.items()}
        if spec.normalized:
            norm = math.sqrt(sum(float((x**2).sum()) for x in g.values()))
            g = {k: x / norm for k, x in g.items()}
        before = {k: w[k].copy() for k in options}
        for k, option in options.items():
            if spec.rule == "schedule-free":
                _schedule_free(spec, w, state, result.averages, k, g[k], t, lr * eta(t), option["weight_decay"])
            elif spec.rule == "soap":
                _soap(spec, w, state, k, g[k], t, lr * eta(t), option["weight_decay"])
            elif rate:
                _sgd_of_swats(spec, w, state, k, g[k], rate, lr, option["weight_decay"])
            else:
                ratio = _update(spec, w, state, k, g[k], t, lr, eta(t), option)
                if ratio is not None:
                    result.ratios[k] = ratio
        if spec.swats is not None and not rate:
            p = {k: w[k] - before[k] for k in options}
            square, slope = (sum(float((p[k] * x[k]).sum()) for k in options) for x in (p, g))
            if slope < 0:
                gamma, gammas = -square / slope, gammas + 1
                gamma_mean = spec.betas[1] * gamma_mean + (1 - spec.betas[1]) * gamma
                corrected = gamma_mean / (1 - spec.betas[1] ** gammas)
                if gammas > 1 and abs(corrected - gamma) < spec.swats:
                    rate, result.switched = corrected, t
                    for s in state.values():
                        s["m"] = 0.0 * s["m"]
        if spec.lookahead and t % spec.lookahead[0] == 0:
            for k in options:
                slow[k] = slow[k] + spec.lookahead[1] * (w[k] - slow[k])
                w[k] = slow[k].copy()
        if spec.average:
            _average(spec.average, t, w, options, result.averages)
    return result


def _update(spec: Spec, w: Weights, state: dict, k: str, g: np.ndarray, t: int, lr: float, eta: float, option: dict):
    """One parameter's update; returns its trust ratio if it has one."""
    decay, s = option["weight_decay"], state[k]
    trusted = spec.trust and option["trust_ratio"]
    alpha = lr * eta
    if spec.rule == "lars":
        ratio = None
        if option["trust_ratio"]:
            wn, gn = np.linalg.norm(w[k].ravel()), np.linalg.norm(g.ravel())
            ratio = 1.0
            if wn > 0 and gn > 0:
                ratio = float(np.clip(spec.coefficient * wn / (gn + decay * wn + spec.eps), *spec.bounds))
        scaled = alpha * (1.0 if ratio is None else ratio) * (g + decay * w[k])
        s["m"] = spec.momentum * s["m"] + scaled
        w[k] = w[k] - (scaled + spec.momentum * s["m"] if spec.nesterov else s["m"])
        return ratio
    if spec.rule == "muon" and w[k].ndim > 1:
        s["m"] = spec.momentum * s["m"] + (1 - spec.momentum) * g
        u = spec.momentum * s["m"] + (1 - spec.momentum) * g if spec.nesterov else s["m"]
        rows, columns = w[k].shape[0], w[k].size // w[k].shape[0]
        scale = 0.2 * math.sqrt(max(rows, columns)) if spec.match_rms else math.sqrt(max(1, rows / columns))
        w[k] = (1 - alpha * decay) * w[k] - alpha * scale * _newton_schulz(u.reshape(rows, columns)).reshape(w[k].shape)
        return None
    if spec.decay == "l2":
        g = g + decay * w[k]
    metric = np.ones_like(w[k])  # 1 / D
    if spec.rule == "momentum":
        s["m"] = spec.momentum * s["m"] + g
        u = g + spec.momentum * s["m"] if spec.nesterov else s["m"]
    else:
        beta1, beta2 = spec.betas
        s["m"] = beta1 * s["m"] + (1 - beta1) * g
        s["v"] = beta2 * s["v"] + (1 - beta2) * g**2
        s["top"] = np.maximum(s["top"], s["v"])
        mhat = s["m"] / (1 - beta1**t) if spec.corrected else s["m"]
        v = s["top"] if spec.amsgrad else s["v"]
        vhat = v / (1 - beta2**t) if spec.corrected else v
        if spec.rule in ("adam", "muon"):
            metric = 1 / (np.sqrt(vhat) + spec.eps)
        else:
            rho_inf = 2 / (1 - beta2) - 1
            rho = rho_inf - 2 * t * beta2**t / (1 - beta2**t)
            if rho > 5:
                r = math.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
                metric = r * math.sqrt(1 - beta2**t) / (np.sqrt(v) + spec.eps)
        u = metric * mhat
    if spec.decay == "decoupled":
        u = u + decay * w[k]
    ratio = None
    if trusted:
        wn, un = np.linalg.norm(w[k].ravel()), np.linalg.norm(u.ravel())
        ratio = float(np.clip(wn / un, *spec.bounds)) if wn > 0 and un > 0 else 1.0
        u = ratio * u
    if spec.decay == "independent":
        w[k] = (1 - eta * decay) * w[k]
    w[k] = w[k] - alpha * u
    if spec.decay == "prox":
        w[k] = w[k] / (1 + eta * decay)
    if spec.decay == "prox-metric":
        w[k] = w[k] / (1 + alpha * decay * metric)
    return ratio


def _newton_schulz(x: np.ndarray) -> np.ndarray:
    """Five iterations of Jordan's quintic polynomial, on the singular values."""
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    s = s / max(float(np.sqrt((s**2).sum())), 1e-7)
    for _ in range(5):
        s = 3.4445 * s - 4.775 * s**3 + 2.0315 * s**5
    return u @ np.diag(s) @ vt


def _schedule_free(
    spec: Spec, w: Weights, state: dict, x: Weights, k: str, g: np.ndarray, t: int, lr: float, decay: float
):
    """Algorithm 1 of the paper, with its three sequences: w[k] is y_t, where g is taken, and becomes y_{t+1}.

    The paper weighs z_{t+1} by gamma_t^2, here gamma_max^p t^r, as in section 4.
    """
    s, (beta1, beta2), (r, power, warmup) = state[k], spec.betas, spec.schedule_free
    if t == 1:
        s.update(z=w[k].copy(), gamma_max=0.0, total=0.0)
        x[k] = w[k].copy()
    gamma = lr * min(1.0, t / max(warmup, 1))
    s["v"] = beta2 * s["v"] + (1 - beta2) * g**2
    s["z"] = s["z"] - gamma * g / (np.sqrt(s["v"] / (1 - beta2**t)) + spec.eps) - gamma * decay * w[k]
    s["gamma_max"] = max(s["gamma_max"], gamma)
    weight = t**r * s["gamma_max"] ** power
    s["total"] += weight
    c = weight / s["total"]
    x[k] = (1 - c) * x[k] + c * s["z"]
    w[k] = (1 - beta1) * s["z"] + beta1 * x[k]


def _soap(spec: Spec, w: Weights, state: dict, k: str, g: np.ndarray, t: int, lr: float, decay: float):
    """Algorithm 3 of the paper, for tensors of any number of dimensions, with what the authors' code adds to it.

    That is: the first gradient only makes the bases, eps is beside the root that is not corrected, and the decay comes last.
    """
    s, (beta1, beta2), (every, largest) = state[k], spec.betas, spec.soap
    have = [d for d in range(g.ndim) if g.ndim > 1 and g.shape[d] <= largest]
    flat = {d: np.moveaxis(g, d, 0).reshape(g.shape[d], -1) for d in have}
    if t == 1:
        s["GG"] = {d: (1 - beta2) * flat[d] @ flat[d].T for d in have}
        s["Q"] = {d: np.linalg.eigh(s["GG"][d])[1][:, ::-1] for d in have}
        return

    def turned(x: np.ndarray, back: bool = False) -> np.ndarray:
        for d, q in s["Q"].items():
            x = np.moveaxis(np.tensordot(q if back else q.T, x, (1, d)), 0, d)
        return x

    s["m"] = beta1 * s["m"] + (1 - beta1) * g
    s["v"] = beta2 * s["v"] + (1 - beta2) * turned(g) ** 2
    rate = lr * math.sqrt(1 - beta2 ** (t - 1)) / (1 - beta1 ** (t - 1))
    w[k] = w[k] - rate * turned(turned(s["m"]) / (np.sqrt(s["v"]) + spec.eps), back=True)
    w[k] = w[k] * (1 - lr * decay)
    for d in have:
        s["GG"][d] = beta2 * s["GG"][d] + (1 - beta2) * flat[d] @ flat[d].T
    if (t - 1) % every == 0:
        for d in have:
            order = np.argsort(-np.diag(s["Q"][d].T @ s["GG"][d] @ s["Q"][d]))
            s["v"] = np.take(s["v"], order, axis=d)
            s["Q"][d] = np.linalg.qr((s["GG"][d] @ s["Q"][d])[:, order])[0]


def _sgd_of_swats(spec: Spec, w: Weights, state: dict, k: str, g: np.ndarray, rate: float, lr: float, decay: float):
    """The second half of Swats(AdamW), at a constant learning rate."""
    s = state[k]
    s["m"] = spec.betas[0] * s["m"] + g
    w[k] = (1 - rate * decay) * w[k] - rate * (1 - spec.betas[0]) * s["m"]


def _average(averaging: tuple[str, int, int, float], t: int, w: Weights, options: dict, averages: Weights) -> None:
    kind, start, every, decay = averaging
    if t < start or (t - start) % every:
        return
    number = (t - start) // every + 1
    for k in options:
        if number == 1:
            averages[k] = w[k].copy()
        elif kind == "swa":
            averages[k] = averages[k] + (w[k] - averages[k]) / number
        else:
            averages[k] = decay * averages[k] + (1 - decay) * w[k]

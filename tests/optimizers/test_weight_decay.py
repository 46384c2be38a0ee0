"""Every weight decay mode with every rule, against the formulas of the papers in float64, and claims of the papers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from bellwether.optimizers import SGD, Adam, AdamW, Lamb, Lars, RAdam, kernels

Array = np.ndarray

SHAPE, STEPS = (4, 3), 12
ALPHA, LAMBDA = 0.05, 0.3  # the peak rate, and a decay that is noticeable in every mode
BETA1, BETA2, EPS, MOMENTUM = 0.9, 0.99, 1e-6, 0.8


def eta(step: int) -> float:
    """The schedule's multiplier at a step, from 0: up from 1/4 to 1, and down to 0 at the last."""
    return min((step + 1) / 4, (STEPS - 1 - step) / 7)


def gradient(step: int, w: Array) -> Array:
    return np.random.default_rng(step).standard_normal(SHAPE) + 0.5 * w


def start() -> Array:
    return np.random.default_rng(99).standard_normal(SHAPE)


# --- the formulas ---------------------------------------------------------------------------------------------------

# A direction takes all gradients so far, with L2 decay added, and returns m^ and 1 / D, so that u = m^ / D.


def adam(gs: list[Array], amsgrad: bool = False) -> tuple[Array, Array]:
    t = len(gs)
    m = sum((1 - BETA1) * BETA1 ** (t - 1 - i) * g for i, g in enumerate(gs))
    v = second_moments(gs)
    top = np.max(v, axis=0) if amsgrad else v[-1]
    return m / (1 - BETA1**t), 1 / (np.sqrt(top / (1 - BETA2**t)) + EPS)


def radam(gs: list[Array]) -> tuple[Array, Array]:
    t = len(gs)
    mhat, _ = adam(gs)
    rho_inf = 2 / (1 - BETA2) - 1
    rho = rho_inf - 2 * t * BETA2**t / (1 - BETA2**t)
    if rho <= 5:
        return mhat, np.ones(SHAPE)
    r = math.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
    # torch adds eps to sqrt(v) before the bias correction of v.
    return mhat, r * math.sqrt(1 - BETA2**t) / (np.sqrt(second_moments(gs)[-1]) + EPS)


def second_moments(gs: list[Array]) -> list[Array]:
    return [sum((1 - BETA2) * BETA2 ** (t - i) * g**2 for i, g in enumerate(gs[: t + 1])) for t in range(len(gs))]


def momentum(gs: list[Array], factor: float = MOMENTUM, nesterov: bool = False) -> tuple[Array, Array]:
    m = sum(factor ** (len(gs) - 1 - i) * g for i, g in enumerate(gs))
    return (gs[-1] + factor * m if nesterov else m), np.ones(SHAPE)


# alpha is eta times the peak rate, times the trust ratio if there is one.
DECAYED: dict[str, Callable[..., Array]] = {
    "l2": lambda w, u, metric, alpha, eta: w - alpha * u,
    "decoupled": lambda w, u, metric, alpha, eta: (1 - alpha * LAMBDA) * w - alpha * u,
    "independent": lambda w, u, metric, alpha, eta: (1 - eta * LAMBDA) * w - alpha * u,
    "prox": lambda w, u, metric, alpha, eta: (w - alpha * u) / (1 + LAMBDA * eta),
    "prox-metric": lambda w, u, metric, alpha, eta: (w - alpha * u) / (1 + alpha * LAMBDA * metric),
}

BETAS = {"betas": (BETA1, BETA2), "eps": EPS}
RULES: dict[str, tuple[Callable[[list[Array]], tuple[Array, Array]], type, dict[str, Any]]] = {
    "adam": (adam, Adam, BETAS),
    "adamw": (adam, AdamW, BETAS),
    "amsgrad": (lambda gs: adam(gs, amsgrad=True), AdamW, {**BETAS, "amsgrad": True}),
    "radam": (radam, RAdam, BETAS),
    "lamb": (adam, Lamb, {**BETAS, "trust_ratio": True}),
    "lamb-as-adam": (adam, Lamb, {**BETAS, "trust_ratio": False}),
    "radam-trust": (radam, RAdam, {**BETAS, "trust_ratio": True}),
    "sgd": (lambda gs: momentum(gs, 0.0), SGD, {}),
    "momentum": (momentum, SGD, {"momentum": MOMENTUM}),
    "nesterov": (lambda gs: momentum(gs, nesterov=True), SGD, {"momentum": MOMENTUM, "nesterov": True}),
    "momentum-trust": (momentum, SGD, {"momentum": MOMENTUM, "trust_ratio": True}),
}
CASES = [
    (rule, form)
    for rule, (_, kind, options) in RULES.items()
    for form in DECAYED
    if form in kind.weight_decay_modes and not (form == "prox-metric" and options.get("trust_ratio"))
]


def expected_weights(rule: str, form: str) -> Array:
    """The weights after all steps, by the formulas."""
    direction, _, options = RULES[rule]
    w, gs = start(), []
    for t in range(STEPS):
        g = gradient(t, w)
        gs.append(g + LAMBDA * w if form == "l2" else g)
        mhat, metric = direction(gs)
        u, alpha = mhat * metric, eta(t) * ALPHA
        if options.get("trust_ratio"):
            whole = u + LAMBDA * w if form == "decoupled" else u  # the update that LAMB scales
            alpha *= np.linalg.norm(w) / np.linalg.norm(whole)
        w = DECAYED[form](w, u, metric, alpha, eta(t))
    return w


# --- the package ----------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """One thread: synchronizing threads takes longer than updating tensors this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(
    kind: type,
    *,
    gradients: Callable[[int, Array], Array] = gradient,
    dtype: torch.dtype = torch.float64,
    steps: int = STEPS,
    begin: Array | None = None,
    **options: Any,
) -> Array:
    """The weights after all steps, under the schedule."""
    p = torch.nn.Parameter(torch.tensor(start() if begin is None else begin).to(dtype))
    optimizer = kind([p], **options)
    schedule = LambdaLR(optimizer, eta)
    for t in range(steps):
        p.grad = torch.as_tensor(gradients(t, p.detach().double().numpy())).to(dtype)
        optimizer.step()
        schedule.step()
    return p.detach().double().numpy()


def off(found: Array, wanted: Array) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("rule, form", CASES)
@pytest.mark.parametrize(
    "kernel, dtype, close",
    [
        # 12 steps of about ten roundings each, of weights and moments of order 1: the formulas sum in another order.
        ("reference", torch.float64, 1e-14),
        ("reference", torch.float32, 1e-6),
        ("cpu", torch.float32, 1e-6),
    ],
    ids=["float64", "float32", "cpu"],
)
def test_weight_decay_follows_the_formula(rule: str, form: str, kernel: str, dtype: torch.dtype, close: float) -> None:
    try:
        kernels.check(kernel)
    except RuntimeError as error:
        pytest.skip(str(error))
    _, kind, options = RULES[rule]
    found = run(kind, dtype=dtype, lr=ALPHA, weight_decay=LAMBDA, weight_decay_mode=form, kernel=kernel, **options)
    assert off(found, expected_weights(rule, form)) < close


@pytest.mark.parametrize("trust_ratio", [True, False])
@pytest.mark.parametrize("nesterov", [True, False])
def test_lars_follows_the_formula(nesterov: bool, trust_ratio: bool) -> None:
    """The decay is part of the gradient and of the ratio; the rate is applied before the momentum."""
    coefficient = 0.5
    w, m = start(), np.zeros(SHAPE)
    for t in range(STEPS):
        g = gradient(t, w)
        wn, gn = np.linalg.norm(w), np.linalg.norm(g)
        ratio = coefficient * wn / (gn + LAMBDA * wn + EPS) if trust_ratio else 1.0
        scaled = eta(t) * ALPHA * ratio * (g + LAMBDA * w)
        m = MOMENTUM * m + scaled
        w = w - (scaled + MOMENTUM * m if nesterov else m)
    options = dict(momentum=MOMENTUM, eps=EPS, trust_coefficient=coefficient, nesterov=nesterov)

    def lars(params: list[Any], **others: Any) -> Lars:
        return Lars([{"params": params, "trust_ratio": trust_ratio}], **others)

    found = run(lars, lr=ALPHA, weight_decay=LAMBDA, **options)  # type: ignore[arg-type]
    assert off(found, w) < 1e-14


@pytest.mark.parametrize("rule", RULES)
def test_modes_are_equal_without_weight_decay(rule: str) -> None:
    _, kind, options = RULES[rule]
    forms = [form for r, form in CASES if r == rule]
    found = [run(kind, lr=ALPHA, weight_decay=0.0, weight_decay_mode=form, **options) for form in forms]
    assert all((w == found[0]).all() for w in found[1:])


# --- claims of the papers -------------------------------------------------------------------------------------------

# The factor of w in a step without gradient, from the schedule's multiplier and the peak rate.
SHRINKS: dict[str, Callable[[float, float], float]] = {
    "decoupled": lambda eta, alpha: 1 - eta * alpha * LAMBDA,
    "independent": lambda eta, alpha: 1 - eta * LAMBDA,
    "prox": lambda eta, alpha: 1 / (1 + eta * LAMBDA),
    "prox-metric": lambda eta, alpha: 1 / (1 + eta * alpha * LAMBDA / EPS),
}


@pytest.mark.parametrize("alpha", [1e-3, 0.5])
@pytest.mark.parametrize("rule, form", [(r, f) for r in ("adamw", "momentum") for f in SHRINKS if (r, f) in CASES])
def test_decay_without_gradient_follows_the_schedule(rule: str, form: str, alpha: float) -> None:
    """Independent and prox depend on its multiplier but not on the peak rate; decoupled and prox-metric on both."""
    _, kind, options = RULES[rule]
    found = run(kind, gradients=lambda t, w: 0 * w, lr=alpha, weight_decay=LAMBDA, weight_decay_mode=form, **options)
    wanted = start() * math.prod(SHRINKS[form](eta(t), alpha) for t in range(STEPS))
    np.testing.assert_allclose(found, wanted, rtol=1e-14, atol=0)


@pytest.mark.parametrize("form", ["independent", "prox"])
def test_peak_lr_is_part_of_the_state(form: str) -> None:
    """Loaded into an optimizer with another rate, the multiplier is that of the saved schedule."""
    p, q = (torch.nn.Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(2))
    optimizer = AdamW([p], lr=ALPHA, weight_decay=LAMBDA, weight_decay_mode=form)
    schedule = LambdaLR(optimizer, lambda step: 0.5)
    p.grad = torch.zeros_like(p)
    optimizer.step()
    schedule.step()
    other = AdamW([q], lr=7.0, weight_decay=0.1)
    other.load_state_dict(optimizer.state_dict())
    q.grad = torch.zeros_like(q)
    other.step()
    torch.testing.assert_close(p, q, rtol=1e-15, atol=0)
    wanted = 1 - LAMBDA / 2 if form == "independent" else 1 / (1 + LAMBDA / 2)
    torch.testing.assert_close(q, torch.full_like(q, wanted), rtol=1e-15, atol=0)


def path(kind: type, scale: float, form: str, **options: Any) -> Array:
    """The weights for a loss multiplied by a constant, without eps."""
    return run(
        kind,
        gradients=lambda t, w: scale * gradient(t, w),
        lr=ALPHA,
        weight_decay=LAMBDA,
        weight_decay_mode=form,
        eps=0.0,
        betas=(BETA1, BETA2),
        **options,
    )


@pytest.mark.parametrize("form", ["decoupled", "independent", "prox"])
@pytest.mark.parametrize(
    "kind, options", [(AdamW, {}), (AdamW, {"amsgrad": True}), (Lamb, {})], ids=["adamw", "amsgrad", "lamb"]
)
def test_scale_free(kind: type, options: dict[str, Any], form: str) -> None:
    """Bitwise if the constant is a power of 2, which rounds nothing."""
    once = path(kind, 1.0, form, **options)
    assert (once == path(kind, 1024.0, form, **options)).all()
    assert off(path(kind, 1000.0, form, **options), once) < 1e-14


@pytest.mark.parametrize("form", ["l2", "prox-metric"])
def test_not_scale_free(form: str) -> None:
    """Zhuang et al. 2022, 2202.00089: the proximal step in Adam's metric, like Adam with L2, depends on the scale of the loss."""
    assert off(path(AdamW, 1024.0, form), path(AdamW, 1.0, form)) > 0.05


@pytest.mark.parametrize(
    "form, order",
    [
        ("independent", 2),  # equal to first order: AdamW is ProxAdam's first-order form
        ("decoupled", 1),  # different in first order
    ],
)
def test_order_of_the_difference_to_prox(form: str, order: int) -> None:
    """Halving rate and decay together halves a first-order difference and quarters a second-order one."""
    apart = []
    for h in (0.01, 0.005):
        one = {"steps": 2, "lr": h, "weight_decay": h}
        apart.append(
            np.linalg.norm(run(AdamW, weight_decay_mode="prox", **one) - run(AdamW, weight_decay_mode=form, **one))
        )
    assert math.log2(apart[0] / apart[1]) == pytest.approx(order, abs=0.05)


def test_large_gradients_weaken_l2_but_not_adamw() -> None:
    """Loshchilov and Hutter 2017: L2 regularizes weights with large gradients less, AdamW regularizes all alike."""
    sizes = np.array([1.0, 16.0])  # a power of 2 apart, so that AdamW's weights are bitwise equal

    def pull(form: str) -> Array:
        return 1 - run(
            AdamW,
            gradients=lambda t, w: sizes * (-1) ** t,
            begin=np.ones(2),
            lr=1e-3,
            eps=0.0,
            weight_decay=LAMBDA,
            weight_decay_mode=form,
        )

    neither = 1 - run(
        AdamW, gradients=lambda t, w: sizes * (-1) ** t, begin=np.ones(2), lr=1e-3, eps=0.0, weight_decay=0.0
    )
    small, large = pull("decoupled") - neither
    assert small == large > 0
    small, large = pull("l2") - neither
    assert 0 < 8 * large < small

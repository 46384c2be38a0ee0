"""Checks the options of a param group: ranges, and combinations that contradict each other."""

from __future__ import annotations

import math
from typing import Any

from bellwether.optimizers.weight_decay import NEED_PEAK


def validate(group: dict[str, Any], modes: tuple[str, ...], inherited_bounds: Any = None) -> None:
    """Refuse options that are out of range or contradict each other.

    Args:
        modes: the weight decay modes that the rule supports.
        inherited_bounds: the optimizer's trust_bounds, which a group without a trust ratio inherits and does not use.

    Raises:
        ValueError: with the key, its value, and what to write instead.
    """
    for key, (good, allowed) in _RANGES.items():
        if key in group and not _holds(good, group[key]):
            raise ValueError(f"{key}={group[key]!r}: must be {allowed}")
    _check_weight_decay(group, modes)
    if group.get("stochastic_rounding") and group.get("kahan_sum"):
        raise ValueError("stochastic_rounding=True with kahan_sum=True: write one of them")
    if group.get("capturable"):
        _check_capturable(group)
    bounds = group["trust_bounds"]
    if bounds is not None and bounds != inherited_bounds and not group["trust_ratio"]:
        raise ValueError(f"trust_bounds={bounds!r} with trust_ratio=False: write trust_ratio=True, or omit the bounds")
    if group.get("nesterov") and "muon" not in group:  # as torch's Muon, which accepts it without momentum
        if not group["momentum"]:
            raise ValueError(f"nesterov=True with momentum={group['momentum']!r}: write momentum=0.9")
        if group.get("dampening"):
            raise ValueError(f"nesterov=True with dampening={group['dampening']!r}: write dampening=0")
    for p in group.get("params", ()):
        if p.is_complex():
            raise ValueError(f"parameter of {p.dtype}: must be real; write it as torch.view_as_real(...)")


def _check_weight_decay(group: dict[str, Any], modes: tuple[str, ...]) -> None:
    mode = group["weight_decay_mode"]
    if mode not in modes:
        choices = " or ".join([", ".join(map(repr, modes[:-1])), repr(modes[-1])]) if modes[1:] else repr(modes[0])
        reason = _REASONS.get(mode, "is not a weight decay mode")
        raise ValueError(f"weight_decay_mode={mode!r}: {reason}; write {choices}")
    peak = "peak_lr" if group.get("peak_lr") is not None else "lr"
    if mode in NEED_PEAK and group["weight_decay"] and not group[peak]:
        raise ValueError(
            f"weight_decay_mode={mode!r} is relative to the peak learning rate: {peak}={group[peak]!r} must be above 0"
        )
    if mode in NEED_PEAK and peak == "peak_lr" and float(group["lr"]) > float(group[peak]):
        raise ValueError(f"peak_lr={group[peak]!r} is below lr={group['lr']!r}: write the highest lr of the schedule")
    if group.get("decoupled_weight_decay") and mode != "decoupled":  # torch's RAdam has it in its groups
        raise ValueError(
            f"decoupled_weight_decay=True with weight_decay_mode={mode!r}: write weight_decay_mode='decoupled' in the group"
        )
    if mode == "prox-metric" and group["trust_ratio"]:
        raise ValueError(
            "weight_decay_mode='prox-metric' with trust_ratio=True: the ratio would rescale the metric; write 'prox', or "
            "'decoupled' to have the ratio scale the decay too"
        )


def _check_capturable(group: dict[str, Any]) -> None:
    for key in ("max_grad_norm", "prenormalize"):
        if group.get(key):
            raise ValueError(
                f"capturable=True with {key}={group[key]!r}: the global norm is read on the host; clip inside the graph instead"
            )
    for key in ("stochastic_rounding", "kahan_sum"):
        if group.get(key):
            raise ValueError(
                f"capturable=True with {key}={group[key]!r}: 16-bit weights take a path that a graph cannot capture; omit it"
            )


def check_torch_flags(
    kernel: str, *, foreach: bool | None, capturable: bool, differentiable: bool, fused: bool | None
) -> None:
    """Accept the flags of torch's optimizers that choose an implementation, and refuse what this package does not have.

    ``foreach`` and ``fused`` choose among implementations of the same update: here ``kernel`` does.

    Raises:
        ValueError: with the flag and the reason.
    """
    if fused and foreach:
        raise ValueError("fused=True with foreach=True: write one of them, as in torch")
    if fused and kernel == "reference":
        raise ValueError("fused=True with kernel='reference', which is not fused: write kernel='auto'")
    if differentiable:
        raise ValueError("differentiable=True: step() updates in place without autograd; write differentiable=False")
    if capturable and kernel not in ("auto", "reference"):
        raise ValueError(
            f"capturable=True with kernel={kernel!r}: its numbers are computed on the host; write kernel='auto'"
        )


def _holds(good: Any, value: Any) -> bool:
    try:
        return bool(good(value))
    except (TypeError, ValueError, RuntimeError):  # not a number, or not two
        return False


def _number(low: float, high: float = float("inf"), *, open_top: bool = True) -> Any:
    def good(value: Any) -> bool:
        if isinstance(value, str):  # YAML reads 1e-3 as a string
            return False
        return low <= float(value) and (float(value) < high if open_top else float(value) <= high)

    return good


def _bounds(value: Any) -> bool:
    return value is None or (len(value) == 2 and 0 <= value[0] <= value[1] and value[1] > 0)


_RANGES: dict[str, tuple[Any, str]] = {
    "lr": (_number(0), "a finite number, at least 0"),
    "peak_lr": (lambda peak: peak is None or _number(0)(peak), "None or a finite number, at least 0"),
    "betas": (lambda b: len(b) == 2 and all(0 <= x < 1 for x in b), "two numbers in [0, 1)"),
    "momentum": (_number(0, 1, open_top=False), "a number from 0 to 1"),
    "dampening": (_number(0, 1, open_top=False), "a number from 0 to 1"),
    "eps": (_number(0), "a finite number, at least 0"),
    "adam_eps": (_number(0), "a finite number, at least 0"),
    "adam_lr": (lambda lr: lr is None or _number(0)(lr), "None or a finite number, at least 0"),
    "muon": (lambda muon: isinstance(muon, bool), "True or False"),
    "ns_steps": (lambda n: isinstance(n, int) and 0 <= n < 100, "a whole number from 0 to 99"),
    "ns_coefficients": (lambda c: len(c) == 3 and all(math.isfinite(x) for x in c), "three finite numbers"),
    "adjust_lr_fn": (lambda fn: fn in (None, "original", "match_rms_adamw"), "None, 'original' or 'match_rms_adamw'"),
    "shampoo_beta": (lambda b: b is None or 0 <= b < 1, "None or a number in [0, 1)"),
    "precondition_frequency": (lambda n: isinstance(n, int) and n >= 1, "a whole number of steps, at least 1"),
    "max_precond_dim": (lambda n: isinstance(n, int) and n >= 0, "a whole number, at least 0"),
    "warmup_steps": (lambda n: isinstance(n, int) and n >= 0, "a whole number of steps, at least 0"),
    "r": (_number(0), "a finite number, at least 0"),
    "weight_lr_power": (_number(0), "a finite number, at least 0"),
    "weight_decay": (_number(0), "a finite number, at least 0"),
    "trust_coefficient": (lambda c: 0 < c < float("inf"), "a finite number above 0"),
    "max_grad_norm": (lambda n: n is None or 0 < n < float("inf"), "None, or a finite number above 0"),
    "trust_bounds": (_bounds, "None, or (lowest, highest) with 0 <= lowest <= highest"),
}

_REASONS = {
    "l2": "this rule has no decay in the gradient",
    "decoupled": "its trust ratio is defined with the decay in the gradient",
    "independent": "its trust ratio is defined with the decay in the gradient",
    "prox": "its trust ratio is defined with the decay in the gradient",
    "prox-metric": "the rule has no metric, as it does not divide by a second moment",
}

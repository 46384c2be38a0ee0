"""What a param group may hold, and what does not go together."""

from __future__ import annotations

from typing import Any

from optimizers.decay import NEED_PEAK


def validate(group: dict[str, Any], decays: tuple[str, ...]) -> None:
    """Refuse what is out of range or contradicts itself.

    Args:
        decays: the forms of decay that make sense with the rule.

    Raises:
        ValueError: with the key, its value, and what to write instead.
    """
    for key, (good, allowed) in _RANGES.items():
        if key in group and not good(group[key]):
            raise ValueError(f"{key}={group[key]!r}: must be {allowed}")
    form, strength = group["decay"], group["weight_decay"]
    if form not in decays:
        choices = " or ".join([", ".join(map(repr, decays[:-1])), repr(decays[-1])]) if decays[1:] else repr(decays[0])
        raise ValueError(f"decay={form!r}: {_WHY.get(form, 'is not a form of decay')}; write {choices}")
    if form in NEED_PEAK and strength and not (group["lr"] or group.get("peak_lr")):
        raise ValueError(f"decay={form!r} is measured against the peak rate: lr={group['lr']!r} must be above 0")
    if form == "prox-metric" and group["trust_ratio"]:
        raise ValueError(
            "decay='prox-metric' with trust_ratio=True: the ratio would rescale the metric; write decay='prox', "
            "or decay='decoupled' to have the ratio scale the decay too"
        )
    if group.get("nesterov") and (not group["momentum"] or group.get("dampening")):
        raise ValueError("nesterov=True: needs momentum above 0 and dampening=0; write momentum=0.9")


def _number(low: float, high: float = float("inf"), *, open_top: bool = True) -> Any:
    return lambda value: low <= float(value) and (float(value) < high if open_top else float(value) <= high)


def _bounds(value: Any) -> bool:
    return value is None or (len(value) == 2 and 0 <= value[0] <= value[1] and value[1] > 0)


_RANGES: dict[str, tuple[Any, str]] = {
    "lr": (_number(0), "a finite number, at least 0"),
    "betas": (lambda b: len(b) == 2 and all(0 <= x < 1 for x in b), "two numbers from 0 up to, not including, 1"),
    "momentum": (_number(0, 1), "a number from 0 up to, not including, 1"),
    "dampening": (_number(0, 1, open_top=False), "a number from 0 to 1"),
    "eps": (_number(0), "a finite number, at least 0"),
    "weight_decay": (_number(0), "a finite number, at least 0"),
    "trust_coefficient": (lambda c: 0 < c < float("inf"), "a finite number above 0"),
    "trust_bounds": (_bounds, "None, or (lowest, highest) with 0 <= lowest <= highest"),
}

_WHY = {
    "l2": "this rule has no decay in the gradient",
    "decoupled": "its trust ratio is defined with the decay in the gradient",
    "independent": "its trust ratio is defined with the decay in the gradient",
    "prox": "its trust ratio is defined with the decay in the gradient",
    "prox-metric": "the rule has no metric, as it does not divide by a second moment",
}

"""What a param group may hold, and what does not go together."""

from __future__ import annotations

from typing import Any

from bellwether.optimizers.decay import NEED_PEAK


def validate(group: dict[str, Any], decays: tuple[str, ...], inherited_bounds: Any = None) -> None:
    """Refuse what is out of range or contradicts itself.

    Args:
        decays: the forms of decay that make sense with the rule.
        inherited_bounds: the optimizer's trust_bounds, which a group without a trust ratio has but does not use.

    Raises:
        ValueError: with the key, its value, and what to write instead.
    """
    for key, (good, allowed) in _RANGES.items():
        if key in group and not _holds(good, group[key]):
            raise ValueError(f"{key}={group[key]!r}: must be {allowed}")
    form, strength = group["decay"], group["weight_decay"]
    if form not in decays:
        choices = " or ".join([", ".join(map(repr, decays[:-1])), repr(decays[-1])]) if decays[1:] else repr(decays[0])
        raise ValueError(f"decay={form!r}: {_WHY.get(form, 'is not a form of decay')}; write {choices}")
    peak = "peak_lr" if "peak_lr" in group else "lr"
    if form in NEED_PEAK and strength and not group[peak]:
        raise ValueError(f"decay={form!r} is measured against the peak rate: {peak}={group[peak]!r} must be above 0")
    if group.get("decoupled_weight_decay") and form != "decoupled":  # torch's RAdam has it in its groups
        raise ValueError(f"decoupled_weight_decay=True with decay={form!r}: write decay='decoupled' in the group")
    if form == "prox-metric" and group["trust_ratio"]:
        raise ValueError(
            "decay='prox-metric' with trust_ratio=True: the ratio would rescale the metric; write decay='prox', "
            "or decay='decoupled' to have the ratio scale the decay too"
        )
    bounds = group["trust_bounds"]
    if bounds is not None and bounds != inherited_bounds and not group["trust_ratio"]:
        raise ValueError(
            f"trust_bounds={bounds!r} with trust_ratio=False: write trust_ratio=True, or leave the bounds out"
        )
    if group.get("nesterov"):
        if not group["momentum"]:
            raise ValueError(f"nesterov=True with momentum={group['momentum']!r}: write momentum=0.9")
        if group.get("dampening"):
            raise ValueError(f"nesterov=True with dampening={group['dampening']!r}: write dampening=0")
    for p in group.get("params", ()):
        if p.is_complex():
            raise ValueError(f"parameter of {p.dtype}: must be real; write it as torch.view_as_real(...)")


def _holds(good: Any, value: Any) -> bool:
    try:
        return bool(good(value))
    except (TypeError, ValueError, RuntimeError):  # not a number, or not two
        return False


def _number(low: float, high: float = float("inf"), *, open_top: bool = True) -> Any:
    def good(value: Any) -> bool:
        if isinstance(value, str):  # YAML reads 1e-3 as a word
            return False
        return low <= float(value) and (float(value) < high if open_top else float(value) <= high)

    return good


def _bounds(value: Any) -> bool:
    return value is None or (len(value) == 2 and 0 <= value[0] <= value[1] and value[1] > 0)


_RANGES: dict[str, tuple[Any, str]] = {
    "lr": (_number(0), "a finite number, at least 0"),
    "peak_lr": (_number(0), "a finite number, at least 0"),
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

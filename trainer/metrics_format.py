"""The lines of ``metrics.jsonl`` (`bellwether.trainer.metrics` describes them): their events, the types of their keys, and a parser."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from bellwether.trainer import scores

FILE = "metrics.jsonl"

Line = dict[str, Any]

KINDS = ("augmented", "averaged")  #: of held-out loss and accuracy, in addition to the plain ones
#: Keys of `eval`.
HELD = (
    "loss",
    "accuracy",
    *(f"{key}_{kind}" for kind in KINDS for key in ("loss", "accuracy", "perplexity")),
    *scores.NAMES,
)

#: Events that belong to steps, not to launches.
OF_STEPS = ("train", "layers", "walk", "norms", "between", "eval", "checkpoint")
EVENTS = ("start", "plan", "groups", *OF_STEPS, "end")
# These hold only numbers, so a string "nan" in them is a number; elsewhere it is text.
_NUMERIC = ("train", "layers", "walk", "norms", "between", "eval")
BY_NAME = ("trust_ratio", "update_norms", "weight_norms")
# The type of each key, which readers of a history rely on. None: not measured.
_NUMBER = (int, float, type(None))
_TYPES: dict[str, type | tuple[type, ...]] = {
    "phases": list,
    "losses": list,
    "groups": list,
    **dict.fromkeys(BY_NAME, dict),
    **dict.fromkeys(("distance", "update_norm", "weight_norm", "cosine"), _NUMBER),
    **dict.fromkeys(("step", "samples", "batch", "examples"), int),
    **dict.fromkeys(("device", "path", "reason"), str),
    **dict.fromkeys(
        ("time", "seconds", "step_time", "data_time", "data_wait", "epoch", "lr", "grad_norm", *HELD), _NUMBER
    ),
    **dict.fromkeys(("blocked_seconds", "waited_seconds"), (int, float)),
    **dict.fromkeys(("samples_per_s", "tokens_per_s", "memory_gib", "startup"), _NUMBER),
    **dict.fromkeys(
        ("noise_scale", "noise_scale_error", "noise_scale_recent", "noise_scale_spikes", "noise_scale_every"), _NUMBER
    ),
}
_NONFINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def parse(raw: bytes) -> Line | None:
    """The line, or None if it was cut off by a kill or has a value of the wrong type."""
    try:
        line = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict) or line.get("event") not in EVENTS:
        return None
    if line["event"] != "plan" and not {"step", "samples"} <= line.keys():
        return None
    if line["event"] in _NUMERIC:
        line = {key: value if key in ("event", "phase") else number(value) for key, value in line.items()}
    known = (isinstance(value, _TYPES.get(key, object)) for key, value in line.items())
    return line if all(known) else None


def number(value: Any) -> Any:
    """The value with "nan", "inf" and "-inf" as floats."""
    if isinstance(value, dict):
        return {key: number(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [number(inner) for inner in value]
    return _NONFINITE.get(value, value) if isinstance(value, str) else value


def is_held_out(key: str) -> bool:
    """Whether a key of `eval` is a result: loss, accuracy or a score, also of one of several sets.

    >>> [key for key in ("loss", "f1_macro", "accuracy_test", "loss_augmented", "seconds", "examples") if is_held_out(key)]
    ['loss', 'f1_macro', 'accuracy_test', 'loss_augmented']
    """
    return key in HELD or any(key.startswith(f"{held}_") for held in HELD)


def of_set_named(name: str, results: Mapping[str, float]) -> dict[str, float]:
    """The results of one of several sets of held-out data, by the keys that they have beside those of the first.

    >>> of_set_named("wiki", {"loss": 1.5, "f1": 0.25, "examples": 10})
    {'loss_wiki': 1.5, 'f1_wiki': 0.25}
    """
    return {f"{key}_{name}": value for key, value in results.items() if key != "examples"}

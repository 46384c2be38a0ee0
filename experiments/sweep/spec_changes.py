"""Which keys of SWEEP.yaml may change between two starts of a sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bellwether.trainer.config import ConfigError, ConfigErrors

# A change of these leaves the trials that exist comparable with new ones.
_FREE = (
    "runs",
    "batches",
    "optimizers",
    "search.trials",
    "seeds",
    "repeat",
    "stop",
    "processes",
    "cores",
    "price",
    "keep",
    "config",
    "base.batch.global",
)


def check_unchanged(old: Any, new: dict[str, Any], directory: Path) -> None:
    """Compare the ``sweep.yaml`` of a directory with the sweep that is to be resumed there.

    Optimizers may be added or removed; one that is in both must be the same.

    Raises:
        ConfigErrors: with one error for each key that must not change and did.
    """
    before, after = _fixed(old), _fixed(new)
    for name, variant in (old.get("optimizers") or {}).items():
        if name in new["optimizers"]:
            before[f"optimizers.{name}"], after[f"optimizers.{name}"] = variant, new["optimizers"][name]
    advice = "restore it to resume the sweep, or choose another name: in SWEEP.yaml"
    errors = [
        ConfigError(key, after.get(key), f"{directory} was created with {before.get(key)!r}", advice)
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
    ]
    if errors:
        raise ConfigErrors(errors)


def _fixed(raw: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by key path, without the keys that may change."""
    fixed_values: dict[str, Any] = {}
    for key, value in raw.items():
        key_path = f"{prefix}.{key}".lstrip(".")
        if key_path not in _FREE:
            fixed_values |= _fixed(value, key_path) if isinstance(value, dict) and value else {key_path: value}
    return fixed_values

"""Renamed keys of SWEEP.yaml, and of the config keys inside it: the old names work for one version."""

from __future__ import annotations

from typing import Any

from bellwether.trainer.config.renamed import Renaming, convert, convert_paths

# Old key path: new key path. Only the last part may change.
RENAMED = {
    "stop.beaten": "stop.prune_factor",  # until 0.2
}


def with_new_names(raw: dict[str, Any], source: str = "", renamings: list[Renaming] | None = None) -> dict[str, Any]:
    """The content of SWEEP.yaml, or of the ``sweep.yaml`` of a study, with new names for old ones.

    Args:
        source: the file's name, for errors and for `renamings`.
        renamings: collects the renamings, for `bellwether.trainer.config.renamed.report`.

    Raises:
        ConfigErrors: if an old and a new name are both set.
    """
    raw = _with_new_config_keys(convert(raw, RENAMED, source=source, renamings=renamings), source, renamings)
    if isinstance(raw.get("optimizers"), dict):
        variants = raw["optimizers"].items()
        raw["optimizers"] = {name: _with_new_config_keys(variant, source, renamings) for name, variant in variants}
    if isinstance(raw.get("base"), dict):
        raw["base"] = convert(raw["base"])
    return raw


def _with_new_config_keys(section: Any, source: str, renamings: list[Renaming] | None) -> Any:
    """A section whose ``set`` and ``space`` map key paths of the config to values."""
    if not isinstance(section, dict):
        return section
    mappings = {key: section[key] for key in ("set", "space") if isinstance(section.get(key), dict)}
    return {**section, **{key: convert_paths(m, source=source, renamings=renamings) for key, m in mappings.items()}}

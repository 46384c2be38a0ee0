"""Overrides of a config on the command line: ``key.path=value``."""

from __future__ import annotations

import re
from typing import Any

import yaml

from bellwether.trainer.config.errors import ConfigError, ConfigErrors
from bellwether.trainer.config.key_paths import COMMAND_LINE, KeyPath, Origins, at, dotted, leaves
from bellwether.trainer.config.renamed import Renaming, convert_setting
from bellwether.trainer.config.validation import PHASE_KEYS
from bellwether.trainer.config.yaml_syntax import parse_yaml


def apply_override(raw: dict[str, Any], origins: Origins, text: str, renamings: list[Renaming]) -> None:
    """Sets one key of ``raw``.

    Args:
        raw: the mapping of the config, which is changed.
        origins: is changed to name the command line for the key.
        text: ``key.path=value``; the value is parsed as YAML.
        renamings: collects the renamed keys.

    Raises:
        ConfigErrors: if the text is not an override, or the key path does not exist.
    """
    where = COMMAND_LINE
    name, equals, value = text.partition("=")
    parts = _parts(name.strip())
    if not equals or not all(parts) or parts[0].isdecimal():
        raise ConfigErrors(
            [ConfigError(text, "", "not an override", "write key.path=value, as in optimizer.lr=2e-3", where)]
        )
    try:
        parsed = parse_yaml(value)
    except (yaml.YAMLError, ValueError):
        parsed = value
    keys: KeyPath = tuple(int(part) if part.isdecimal() else part for part in parts)
    keys, parsed = convert_setting(keys, parsed, source=where, renamings=renamings)
    if keys[0] == "schedule" and len(keys) > 1 and isinstance(raw.get("schedule"), str):
        # A recipe given by its name alone becomes a section, so that other keys can be added.
        raw["schedule"] = {"recipe": raw["schedule"]}
        origins["schedule", "recipe"] = origins.pop(("schedule",))
    node: Any = raw
    for depth, key in enumerate(keys):
        if not (isinstance(node, dict) if isinstance(key, str) else isinstance(node, list) and key < len(node)):
            parent = dotted(keys[:depth])
            if isinstance(node, list):
                problem = f"{parent} is a list of {len(node)}, counted from 0"
            else:
                problem = f"{parent} is no list" if isinstance(key, int) else f"{parent} holds no keys of its own"
            advice = f"set it as a whole: {parent}=..."
            raise ConfigErrors([ConfigError(dotted(keys[: depth + 1]), value, problem, advice, where)])
        if depth == len(keys) - 1:
            node[key] = parsed
        elif isinstance(node, dict) and key not in node:
            node[key] = {}
            origins[keys[: depth + 1]] = where
        node = node[key]
    for leaf in leaves(parsed):
        origins[keys + leaf] = where


def _parts(name: str) -> list[str]:
    """The keys of a key path. What follows `optimizer.lr_scale` is one key: a pattern of names, which have dots."""
    found = re.fullmatch(r"(.*\boptimizer\.lr_scale)\.(.+)", name)
    path, pattern = (found[1], [found[2]]) if found else (name, [])
    return [*re.sub(r"\[(\d+)\]", r".\1", path).split("."), *pattern]


def overridden_by_phases(raw: dict[str, Any], origins: Origins) -> list[ConfigError]:
    """Errors for keys that the command line sets for the whole run, but that every phase sets itself."""
    phases, schedule = raw.get("phases"), raw.get("schedule")
    if not isinstance(phases, list) or not phases:
        return []
    if isinstance(schedule, str) or (isinstance(schedule, dict) and schedule.get("recipe") is not None):
        return []  # the recipe then defines the phases
    candidates = [
        k
        for k, where in origins.items()
        if where == COMMAND_LINE and not isinstance(at(raw, k), dict) and not isinstance(k[-1], int)
    ]
    advice = "write phases.0.{0}=..., phases.1.{0}=... and so on"
    return [
        ConfigError(
            dotted(k), at(raw, k), "has no effect: every phase sets its own", advice.format(dotted(k)), COMMAND_LINE
        )
        for k in candidates
        if k[0] in PHASE_KEYS and all(at(phase, k) is not None for phase in phases)
    ]

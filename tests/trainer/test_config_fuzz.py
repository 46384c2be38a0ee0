"""Configs in which something is replaced, removed, renamed or added: each is accepted, or refused by a message."""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bellwether.trainer import config as c
from bellwether.trainer.config import ConfigErrors

RECIPES = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
RESOLVED = [c.dump(c.load(path)) for path in RECIPES]  # with all keys
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 70_000), st.floats(), st.text(max_size=8),
    st.sampled_from(["5 steps", "-1 epochs", "1e-3", "0", "${x}", "~", "a/b", "nan", 10**400, "\ud800", "\0", "auto", "3 of 4"]),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=2)),
    max_leaves=4,
)


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values below a node."""
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [found for key, value in inner for found in [(*path, key), *places(value, (*path, key))]]


def mutate(raw: Any, data: st.DataObject) -> None:
    *parents, last = data.draw(st.sampled_from(places(raw)))
    node = raw
    for key in parents:
        node = node[key]
    action = data.draw(st.sampled_from(["replace", "replace", "remove", "rename", "add"]))
    if action == "replace":
        node[last] = data.draw(VALUES)
    elif action == "remove":
        del node[last]
    elif isinstance(node, dict):
        value = node.pop(last) if action == "rename" else data.draw(VALUES)
        node[data.draw(st.one_of(st.just(f"{last}x"), st.text(max_size=6)))] = value
    else:
        node.append(data.draw(VALUES))


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_mutated_config_is_accepted_or_refused_by_a_message(data: st.DataObject) -> None:
    raw = copy.deepcopy(data.draw(st.sampled_from(RESOLVED)))
    for _ in range(data.draw(st.integers(1, 3))):
        mutate(raw, data)
    with contextlib.suppress(ConfigErrors):
        config = c.validate(raw)
        assert c.validate(c.dump(config)) == config or "nan" in str(c.dump(config))
        c.phases(config)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    key=st.sampled_from(sorted({".".join(map(str, path)) for raw in RESOLVED for path in places(raw)})), value=VALUES
)
def test_any_override_is_accepted_or_refused_by_a_message(key: str, value: Any) -> None:
    text = value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True)
    with contextlib.suppress(ConfigErrors):
        c.load("bert-tiny", [f"{key}={text}"])

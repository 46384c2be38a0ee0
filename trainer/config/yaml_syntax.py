"""The YAML of configs: keys are text, duplicate keys are errors, and numbers are what people expect."""

from __future__ import annotations

import re
from typing import Any

import yaml

from bellwether.trainer.config.units import DIGITS


class _Loader(yaml.SafeLoader):
    """YAML in which keys are text, duplicate keys are errors, and numbers are what people expect.

    1e-3 is a number; 010 (octal 8 in YAML 1.1), 1:30 (90 in YAML 1.1) and 2020-01-01 are text.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, form) for tag, form in forms if tag.rpartition(":")[2] in ("null", "bool", "merge")]
        for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    seen: set[str] = set()
    for key, _ in node.value:
        plain = isinstance(key, yaml.ScalarNode)
        if not plain or key.value in seen:
            problem = f"the key {key.value!r} appears twice" if plain else "a key is a word"
            raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
        seen.add(key.value)
    loader.flatten_mapping(node)
    return {key.value: loader.construct_object(value, deep=True) for key, value in node.value}


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


class _Dumper(yaml.SafeDumper):
    """Quotes text that `_Loader` would read as a number."""


_INT = re.compile(r"^[-+]?(0|[1-9](_?[0-9])*)$")
_FLOAT = re.compile(
    rf"^[-+]?(({DIGITS}\.({DIGITS})?|\.{DIGITS})([eE][-+]?[0-9]+)?|{DIGITS}[eE][-+]?[0-9]+|\.(inf|Inf|INF|nan|NaN|NAN))$"
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def parse_yaml(text: str) -> Any:
    """Parses YAML as `_Loader` describes. Raises yaml.YAMLError or ValueError."""
    return yaml.load(text, Loader=_Loader)


def yaml_problem(error: Exception) -> str:
    """The message of a YAML error, on one line."""
    return " ".join(str(error).replace('in "<unicode string>", ', "at ").split())


def to_text(mapping: dict[str, Any]) -> str:
    """A mapping of plain types as YAML text, which `parse_yaml` reads back."""
    return yaml.dump(mapping, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)

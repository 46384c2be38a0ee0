"""The reference of config keys: path, type, unit, default and meaning of each key, read from the schema.

`bellwether keys` and docs/config.md are generated from `keys`.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from bellwether.trainer.config.error_messages import kinds_of, models_of
from bellwether.trainer.config.schema import Config
from bellwether.trainer.config.units import Duration, Span, Target

_TYPES = {
    str: "text", int: "integer", float: "number", bool: "true or false", Any: "any",
    Duration: "duration", Span: "fraction or duration", Target: "target",
}  # fmt: skip
_UNITS = {Duration: "samples, steps or epochs", Span: "fraction of the phase; or samples, steps or epochs"}
_LARGE = 10**9  # bounds beyond this only exclude nonsense and are not shown


@dataclass(frozen=True)
class KeyInfo:
    """One config key, or one section of keys.

    Attributes:
        path: the key path, as in ``optimizer.lr``.
        type: the values it accepts, as in ``integer > 0`` or ``duration``; ``section`` for a section.
        unit: the unit of a number, as in ``samples``; empty if it has none.
        default: the default as YAML; ``required`` if there is none; empty for a section.
        description: what the key means.
        condition: when the key exists, as in ``model.kind: bert``; empty if it always does.
    """

    path: str
    type: str
    unit: str
    default: str
    description: str
    condition: str = ""

    @property
    def is_section(self) -> bool:
        """Whether this is a section, which has no value of its own."""
        return self.type == "section"


def keys(prefix: str = "") -> list[KeyInfo]:
    """All config keys in the order of the schema, each section before its keys.

    Args:
        prefix: only the key or section of this name and what is below it, as in ``optimizer`` or ``schedule.warmup``;
            failing that, all keys that begin with it, as in ``optimizer.w``. Empty: all keys.

    >>> [(key.path, key.type, key.unit, key.default) for key in keys("batch.micro")]
    [('batch.micro', 'integer > 0', 'samples', '32')]
    """
    infos = list(_section(Config, ""))
    below = [key for key in infos if key.path == prefix or key.path.startswith(f"{prefix}.")]
    return infos if not prefix else below or [key for key in infos if key.path.startswith(prefix)]


def _section(model: type[BaseModel], path: str, condition: str = "") -> Iterator[KeyInfo]:
    for name, field in model.model_fields.items():
        key = f"{path}.{field.alias or name}".lstrip(".")
        inner = models_of(field.annotation)
        if not inner:
            yield _leaf(key, field, condition)
        elif len(inner) == 1:
            yield KeyInfo(key, "section", "", "", _first_paragraph(inner[0]), condition)
            yield from _section(inner[0], key, condition)
        else:
            yield KeyInfo(key, "section", "", "", field.description or "", condition)
            yield from _kinds(inner, key)


def _kinds(sections: list[type[BaseModel]], path: str) -> Iterator[KeyInfo]:
    """The keys of a section whose ``kind`` decides which it has; first those that all kinds have."""
    kinds = [str(kinds_of(section)[0]) for section in sections]
    yield KeyInfo(f"{path}.kind", f"one of {', '.join(kinds)}", "", "required", f"the kind of {path}")
    keys = [[key for key in _section(section, path) if key.path != f"{path}.kind"] for section in sections]
    common = [key for key in keys[0] if all(key in others for others in keys)]
    yield from common
    for kind, section, own in zip(kinds, sections, keys, strict=True):
        condition = f"{path}.kind: {kind}"
        yield KeyInfo(path, "section", "", "", _first_paragraph(section), condition)
        yield from (replace(key, condition=condition) for key in own if key not in common)


def _leaf(path: str, field: FieldInfo, condition: str) -> KeyInfo:
    extra = field.json_schema_extra
    unit = str(extra["unit"]) if isinstance(extra, dict) and "unit" in extra else _implied_unit(field.annotation)
    other = f" or {extra['or']}" if isinstance(extra, dict) and "or" in extra else ""
    return KeyInfo(
        path, _type(field.annotation, field.metadata) + other, unit, _default(field), field.description or "", condition
    )


def _type(annotation: Any, metadata: typing.Sequence[Any] = ()) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type(arguments[0], [*arguments[1:], *metadata])
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if a is type(None) else _type(a, metadata) for a in arguments)
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin is list:
        return f"list, each {_type(arguments[0])}"
    if origin is tuple:
        return f"list of {len(arguments)}, each {_type(arguments[0])}"
    if origin is dict:
        return "mapping"
    return f"{_TYPES[annotation]} {', '.join(_bounds(metadata))}".rstrip()


def _bounds(metadata: typing.Sequence[Any]) -> list[str]:
    """``["> 0", "< 1"]`` from the constraints in a field's metadata."""
    flat = [part for each in metadata for part in (each.metadata if isinstance(each, FieldInfo) else [each])]
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    bounds = [(sign, getattr(each, name, None)) for each in flat for name, sign in signs.items()]
    return [f"{sign} {_yaml(bound)}" for sign, bound in bounds if bound is not None and bound < _LARGE]


def _implied_unit(annotation: Any) -> str:
    """The unit of a duration or span, which its value names."""
    if annotation in _UNITS:
        return _UNITS[annotation]
    return next((unit for a in typing.get_args(annotation) if (unit := _implied_unit(a))), "") if annotation else ""


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    return "required" if value is PydanticUndefined else _yaml(value)


def _yaml(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_yaml, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _first_paragraph(section: type[BaseModel]) -> str:
    return " ".join((inspect.getdoc(section) or "").partition("\n\n")[0].split())

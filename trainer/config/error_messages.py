"""pydantic's complaints in the words of someone who edits a YAML file."""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel

from bellwether.trainer.config.errors import ConfigError
from bellwether.trainer.config.schema import Config

Key = tuple[str | int, ...]
Origins = dict[Key, str]
COMMAND_LINE = "command line"  # in place of a file's name

# What a value of the wrong type is not.
_WANTED = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "dict_type": "a section of key: value lines",
    "finite_number": "a finite number",
    "float_parsing": "a number",
    "float_type": "a number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number",
    "int_type": "a whole number",
    "list_type": "a list",
    "string_type": "text",
    "tuple_type": "a list",
}


def explain(
    error: Any, raw: dict[str, Any], origins: Origins, source: str, top: type[BaseModel] = Config
) -> ConfigError:
    """One of ``ValidationError.errors()`` of the model `top`, naming file, key, value and what to write instead."""
    place = _without_tags(error["loc"], raw)
    value, kind = error["input"], error["type"]
    message: str = error["msg"].removeprefix("Value error, ")
    if kind == "value_error" and re.match(r"^[a-z0-9_.]+( and [a-z0-9_.]+)?: ", message):
        # A check over several keys names the one to change at the head of its message.
        named, message = message.split(": ", 1)
        place = (*place, *named.split(" and ")[0].split("."))
        value = at(raw, place)
        if value is None and (field := _field(place, raw, top)):
            value = field.get_default(call_default_factory=True)
    elif kind in ("union_tag_not_found", "union_tag_invalid"):
        place = (*place, "kind")
        value = at(raw, place)
    elif kind == "missing":
        value = None
    problem, allowed = _words(kind, message, place, value, error, raw, top)
    # A key that is not there was set nowhere: name the file that was asked for.
    absent = kind == "missing" and isinstance(place[-1], str)
    section = at(raw, place[:-1])
    if value is None and isinstance(section, dict) and place[-1] in section:
        value = "null"  # as it stands there
    return ConfigError(dotted(place), value, problem, allowed, origin_of(() if absent else place, origins, source))


def _words(
    kind: str, message: str, place: Key, value: Any, error: Any, raw: Any, top: type[BaseModel]
) -> tuple[str, str]:
    """What is wrong, and what is allowed."""
    if kind == "extra_forbidden":
        return "there is no such key", nearest(str(place[-1]), _fields(place[:-1], raw, top))
    if kind == "missing":
        return "this list is too short" if isinstance(place[-1], int) else "this key is needed", meaning(
            place, raw, top
        )
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        return (
            "this key is needed" if value is None else "not one of the kinds",
            f"write one of {_kinds(place[:-1], top)}",
        )
    if kind in ("model_type", "model_attributes_type"):
        # Which keys a section with a kind has is open before the kind is known.
        keys = ", ".join(_fields(place, raw, top)) or f"kind: one of {_kinds(place, top)}, and the keys of that kind"
        return "this is a section", f"write its keys below it: {keys}"
    if kind == "literal_error":
        allowed = error["ctx"]["expected"]
        near = difflib.get_close_matches(str(value), re.findall(r"'([^']*)'", allowed), 1, 0.5)
        return "not one of the choices", f"write {allowed}" + (f"; did you mean {near[0]!r}?" if near else "")
    if kind == "string_pattern_mismatch":
        return "not a plain name", "letters, digits, '.', '_' and '-' only, the first a letter or digit"
    if kind == "value_error":
        return message, ""
    if kind == "string_type" and isinstance(value, int | float):
        return "not text", """put it in quotes: "..." in a file, '"..."' on the command line"""
    if kind == "too_short":
        return f"write at least {error['ctx']['min_length']}", meaning(place, raw, top)
    if kind == "too_long":
        return f"more than {error['ctx']['max_length']} values", meaning(place, raw, top)
    if kind in _WANTED:
        return f"not {_WANTED[kind]}", meaning(place, raw, top)
    return message.replace("Input should be", "must be"), meaning(place, raw, top)


def meaning(place: Key, raw: Any, top: type[BaseModel] = Config) -> str:
    """What the key at a place is for, with its default as an example where that is a list."""
    while place and isinstance(place[-1], int):
        place = place[:-1]
    field = _field(place, raw, top)
    if field is None:
        return ""
    example = f", as in {list(field.default)}" if isinstance(field.default, list | tuple) else ""
    return f"{field.description or ''}{example}"


def _kinds(place: Key, top: type[BaseModel]) -> str:
    field = top.model_fields[str(place[-1])]
    return ", ".join(
        kind for model in models_of(field.annotation) for kind in typing.get_args(model.model_fields["kind"].annotation)
    )


def _without_tags(loc: tuple[Any, ...], raw: Any) -> Key:
    """pydantic puts a union's tag into the path; the file does not have it."""
    place: list[str | int] = []
    node = raw
    for part in loc:
        if isinstance(node, dict) and part not in node and node.get("kind") == part:
            continue
        place.append(part)
        try:
            node = node[part]
        except (KeyError, IndexError, TypeError):
            node = None
    return tuple(place)


def at(raw: Any, place: Key) -> Any:
    for key in place:
        try:
            raw = raw[key]
        except (KeyError, IndexError, TypeError):
            return None
    return raw


def _field(place: Key, raw: Any, top: type[BaseModel]) -> Any:
    return _fields(place[:-1], raw, top).get(str(place[-1])) if place else None


def _fields(place: Key, raw: Any, top: type[BaseModel]) -> dict[str, Any]:
    """The fields of the section at a place, by the names used in YAML."""
    model: Any = top
    inner: Any = None  # of a mapping whose keys are the user's: what each holds
    node = raw
    for key in place:
        field = next((f for n, f in model.model_fields.items() if (f.alias or n) == key), None)
        node = node.get(key) if isinstance(node, dict) else None
        annotation = inner or (field and field.annotation)
        if annotation is None:
            return {}
        if typing.get_origin(annotation) is dict:
            model, inner = BaseModel, typing.get_args(annotation)[1]
            continue
        inner = None
        choices = models_of(annotation)
        if len(choices) > 1:
            kind = node.get("kind") if isinstance(node, dict) else None
            choices = [m for m in choices if kind in typing.get_args(m.model_fields["kind"].annotation)]
        if not choices:
            return {}
        model = choices[0]
    return {f.alias or n: f for n, f in model.model_fields.items()}


def models_of(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated):
        return [m for arg in typing.get_args(annotation) for m in models_of(arg)]
    return []


def nearest(key: str, keys: Iterable[str]) -> str:
    keys = list(keys)
    near = difflib.get_close_matches(key, keys, 1, 0.6)
    return f"did you mean {near[0]!r}?" if near else f"the keys here are {', '.join(keys)}"


def origin_of(place: Key, origins: Origins, default: str) -> str:
    for depth in range(len(place), 0, -1):
        if place[:depth] in origins:
            return origins[place[:depth]]
    return default


def dotted(place: Key) -> str:
    return "".join(f"[{k}]" if isinstance(k, int) else f".{k}" for k in place).lstrip(".") or "(the file)"

"""Converts pydantic's validation errors into messages for someone who edits a YAML file."""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel

from bellwether.trainer.config.errors import ConfigError
from bellwether.trainer.config.key_paths import KeyPath, Origins, at, dotted, origin_of
from bellwether.trainer.config.schema import Config
from bellwether.trainer.config.schema.kinds import Kind

# By pydantic's error type: what a value of the wrong type should have been.
_EXPECTED = {
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
_SECTION = ("model_type", "model_attributes_type")
_KIND = ("union_tag_not_found", "union_tag_invalid")


def explain(
    error: Any, raw: dict[str, Any], origins: Origins, source: str, top: type[BaseModel] = Config
) -> ConfigError:
    """Converts one of ``ValidationError.errors()`` into a `ConfigError` with file, key, value and what to write instead.

    Args:
        error: the error, from validation by the model `top`.
        raw: the mapping that was validated.
        origins: the file that has set each key.
        source: the file to name for keys without an origin.
        top: the model that validated `raw`.
    """
    path: KeyPath = tuple(error["loc"])
    value, kind = error["input"], error["type"]
    message: str = error["msg"].removeprefix("Value error, ")
    if kind == "value_error" and re.match(r"^[a-z0-9_.]+( and [a-z0-9_.]+)?: ", message):
        # The message of a check over several keys begins with the key to change.
        named, message = message.split(": ", 1)
        path = (*path, *named.split(" and ")[0].split("."))
        value = at(raw, path)
        if value is None and (field := _field(path, raw, top)):
            value = field.get_default(call_default_factory=True)
    elif kind in _KIND:
        path = (*path, "kind")
        value = at(raw, path)
    elif kind == "missing":
        value = None
    problem, allowed = _describe(kind, message, path, value, error, raw, top)
    # A missing key has no origin: name the file that was given.
    absent = kind == "missing" and isinstance(path[-1], str)
    section = at(raw, path[:-1])
    if value is None and isinstance(section, dict) and path[-1] in section:
        value = "null"  # as written in the file
    return ConfigError(dotted(path), value, problem, allowed, origin_of(() if absent else path, origins, source))


def _describe(
    kind: str, message: str, path: KeyPath, value: Any, error: Any, raw: Any, top: type[BaseModel]
) -> tuple[str, str]:
    """What is wrong, and what is allowed."""
    if kind in ("extra_forbidden", "missing", *_KIND, *_SECTION):
        return _describe_key(kind, path, value, raw, top)
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
        return f"write at least {error['ctx']['min_length']}", meaning(path, raw, top)
    if kind == "too_long":
        return f"more than {error['ctx']['max_length']} values", meaning(path, raw, top)
    if kind in _EXPECTED:
        return f"not {_EXPECTED[kind]}", meaning(path, raw, top)
    return message.replace("Input should be", "must be"), meaning(path, raw, top)


def _describe_key(kind: str, path: KeyPath, value: Any, raw: Any, top: type[BaseModel]) -> tuple[str, str]:
    """`_describe` for errors about a key or a section, not about the value of a key."""
    if kind == "extra_forbidden":
        return "there is no such key", nearest(str(path[-1]), _fields(path[:-1], raw, top))
    if kind == "missing":
        problem = "this list is too short" if isinstance(path[-1], int) else "this key is needed"
        return problem, meaning(path, raw, top)
    if kind in _KIND:
        problem = "this key is needed" if value is None else "not one of the kinds"
        return problem, f"write one of {_kinds(path[:-1], top)}"
    # The keys of a section of several kinds are unknown until its kind is.
    keys = ", ".join(_fields(path, raw, top)) or f"kind: one of {_kinds(path, top)}, and the keys of that kind"
    return "this is a section", f"write its keys below it: {keys}"


def meaning(path: KeyPath, raw: Any, top: type[BaseModel] = Config) -> str:
    """The description of a key, with its default as an example if that is a list."""
    while path and isinstance(path[-1], int):
        path = path[:-1]
    field = _field(path, raw, top)
    if field is None:
        return ""
    example = f", as in {list(field.default)}" if field.default and isinstance(field.default, list | tuple) else ""
    return f"{field.description or ''}{example}"


def models_of(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a field's annotation allows: none for a plain value, one for each kind if there are several."""
    if isinstance(annotation, type) and issubclass(annotation, Kind):
        return list(annotation.kinds().values())
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated):
        return [m for arg in typing.get_args(annotation) for m in models_of(arg)]
    return []


def kinds_of(section: type[BaseModel]) -> tuple[str, ...]:
    """The names by which ``kind`` selects a section."""
    return typing.get_args(section.model_fields["kind"].annotation)


def _kinds(path: KeyPath, top: type[BaseModel]) -> str:
    field = top.model_fields[str(path[-1])]
    return ", ".join(kind for model in models_of(field.annotation) for kind in kinds_of(model))


def _field(path: KeyPath, raw: Any, top: type[BaseModel]) -> Any:
    return _fields(path[:-1], raw, top).get(str(path[-1])) if path else None


def _fields(path: KeyPath, raw: Any, top: type[BaseModel]) -> dict[str, Any]:
    """The fields of the section at a key path, by their names in YAML; none if its kind is unknown."""
    model: Any = top
    value_type: Any = None  # inside a mapping whose keys are the user's: the type of its values
    node = raw
    for key in path:
        field = next((f for n, f in model.model_fields.items() if (f.alias or n) == key), None)
        node = node.get(key) if isinstance(node, dict) else None
        annotation = value_type or (field and field.annotation)
        if annotation is None:
            return {}
        if typing.get_origin(annotation) is dict:
            model, value_type = BaseModel, typing.get_args(annotation)[1]
            continue
        value_type = None
        choices = models_of(annotation)
        if len(choices) > 1:
            kind = node.get("kind") if isinstance(node, dict) else None
            choices = [m for m in choices if kind in kinds_of(m)]
        if not choices:
            return {}
        model = choices[0]
    return {f.alias or n: f for n, f in model.model_fields.items()}


def nearest(key: str, keys: Iterable[str]) -> str:
    """A hint for an unknown key: the most similar known one, or else all of them."""
    keys = list(keys)
    near = difflib.get_close_matches(key, keys, 1, 0.6)
    return f"did you mean {near[0]!r}?" if near else f"the keys here are {', '.join(keys)}"

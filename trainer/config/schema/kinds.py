"""Sections of several kinds, such as ``model`` and ``data``: the key ``kind`` selects the class that has the other keys."""

from __future__ import annotations

import importlib
import typing
from typing import Any, ClassVar

from pydantic import GetJsonSchemaHandler, ModelWrapValidatorHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticKnownError
from typing_extensions import Self

from bellwether.trainer.config.schema.section import Section


class Kind(Section):
    """Base class of a section of several kinds.

    A direct subclass is such a section. A class below it that declares ``kind: Literal["name"]`` is one of its kinds and
    registers itself when it is defined.

    Attributes:
        package: the package that defines the kinds; imported before the first of them is looked up, so that reading the
            schema needs none of them. It must not import torch.
    """

    package: ClassVar[str]
    _kinds: ClassVar[dict[str, type[Any]]]

    kind: str

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        if Kind in cls.__bases__:
            cls._kinds = {}
        for kind in cls._names():
            other = cls._kinds.setdefault(kind, cls)
            if (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
                raise TypeError(f"kind {kind!r} is defined by {other.__module__} and by {cls.__module__}")
            cls._kinds[kind] = cls

    @classmethod
    def kinds(cls) -> dict[str, type[Self]]:
        """All kinds of this section, by name, in the order in which they were defined."""
        importlib.import_module(cls.package)
        return cls._kinds

    @classmethod
    def _names(cls) -> tuple[str, ...]:
        return typing.get_args(cls.model_fields["kind"].annotation)

    @model_validator(mode="wrap")
    @classmethod
    def _select(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Validates with the class that ``kind`` names. The errors are those of a discriminated union of pydantic."""
        if cls._names() or isinstance(value, cls):
            return handler(value)
        if not isinstance(value, dict):
            raise PydanticKnownError("model_attributes_type")
        kind, kinds = value.get("kind"), cls.kinds()
        if "kind" not in value:
            raise PydanticKnownError("union_tag_not_found", {"discriminator": "'kind'"})
        if not isinstance(kind, str) or kind not in kinds:
            expected = {"discriminator": "'kind'", "tag": str(kind), "expected_tags": ", ".join(map(repr, kinds))}
            raise PydanticKnownError("union_tag_invalid", expected)
        return kinds[kind].model_validate(value)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(schema) if cls._names() else {"oneOf": [k.model_json_schema() for k in cls.kinds().values()]}

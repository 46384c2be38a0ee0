"""The base class of all sections, and types and units that several of them use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, JsonValue

Share = Annotated[float, Field(ge=0, le=1)]  # a fraction
# The upper bound is far beyond any use. It keeps products of a few counts finite as floats.
Count = Annotated[int, Field(gt=0, le=2**40)]


def unit(name: str) -> dict[str, JsonValue]:
    """For ``Field(json_schema_extra=...)``: the unit of a key, for the reference of keys."""
    return {"unit": name}


SAMPLES, STEPS, TOKENS, PIXELS, SECONDS, FRACTION = map(
    unit, ("samples", "steps", "tokens", "pixels", "seconds", "fraction")
)


class Section(BaseModel):
    """One mapping of the YAML file. Unknown keys are errors, and values cannot be changed after validation."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, populate_by_name=True, allow_inf_nan=False
    )

    def refuse_others(self, which: str, keys: Mapping[str, set[str]]) -> None:
        """Refuses keys that were set although the choice made under the key ``which`` does not have them.

        Args:
            which: the key whose value is the choice, such as ``name`` or ``kind``.
            keys: for each choice, those keys that only some choices have.

        Raises:
            ValueError: naming the key and the choices that have it.
        """
        chosen = getattr(self, which)
        for key in sorted(set().union(*keys.values()) - keys[chosen]):
            if getattr(self, key) != type(self).model_fields[key].default:
                *others, last = [choice for choice, its in keys.items() if key in its]
                having = " or ".join([", ".join(others), last] if others else [last])
                raise ValueError(f"{key}: {chosen} has none; remove it, or write {which}: {having}")

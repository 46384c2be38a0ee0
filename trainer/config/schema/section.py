"""What all sections have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
# The bound is far beyond any use, and keeps products of a few counts finite as floats.
Count = Annotated[int, Field(gt=0, le=2**40)]


class Section(BaseModel):
    """One mapping of the YAML file. Unknown keys are errors."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, populate_by_name=True, allow_inf_nan=False
    )

    def refuse_others(self, which: str, keys: Mapping[str, set[str]]) -> None:
        """Refuse keys that were set, and that what was chosen under the key ``which`` does not have.

        Args:
            keys: that only some choices have, by choice.

        Raises:
            ValueError: naming the choices that have it.
        """
        chosen = getattr(self, which)
        for key in sorted(set().union(*keys.values()) - keys[chosen]):
            if getattr(self, key) != type(self).model_fields[key].default:
                having = " or ".join(choice for choice, its in keys.items() if key in its)
                raise ValueError(f"{key}: {chosen} has none; take it out, or write {which}: {having}")

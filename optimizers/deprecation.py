"""Old names that work for one more version, with a DeprecationWarning that gives the new one."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

RENAMED = {"decay": "weight_decay_mode"}  # keyword arguments of the optimizers, and keys of their param groups


def renamed_keywords(function: Callable[P, T]) -> Callable[P, T]:
    """Accept the old names of `RENAMED` as keyword arguments.

    Raises:
        TypeError: if a value is given under both names.
    """

    @functools.wraps(function)
    def with_new_names(*args: P.args, **kwargs: P.kwargs) -> T:
        upgrade(kwargs)
        return function(*args, **kwargs)

    return with_new_names


def upgrade(options: dict[str, Any], *, warn: bool = True) -> None:
    """Rename old keys in place.

    Raises:
        TypeError: with ``warn``, if a value is given under both names.
    """
    for old, new in RENAMED.items():
        if old not in options:
            continue
        if warn:
            if new in options:
                raise TypeError(f"{old}= is the old name of {new}=: give one of them")
            # The caller of the constructor, past this function and the wrapper above.
            warnings.warn(f"{old}= is deprecated, write {new}=", DeprecationWarning, stacklevel=3)
        options[new] = options.pop(old)

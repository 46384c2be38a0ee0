"""Errors in a user's input: the key, its value, what is wrong, and what to write instead."""

from __future__ import annotations


class ConfigError(ValueError):
    """A wrong value of a key, an option or a variable that the user can change.

    Args:
        key: key path, such as ``batch.global``.
        value: the value; None if it was not set, and not shown then.
        problem: what is wrong with it.
        allowed: what to write instead.
        source: the file, or ``command line``, that has set the value.
    """

    def __init__(self, key: str, value: object, problem: str, allowed: str = "", source: str = "") -> None:
        self.key, self.value, self.problem, self.allowed, self.source = key, value, problem, allowed, source
        super().__init__(str(self))

    def __reduce__(self) -> tuple[object, ...]:
        # Errors are sent between ranks and from data workers. By default, an exception is made from its message alone.
        return type(self), (self.key, self.value, self.problem, self.allowed, self.source)

    def __str__(self) -> str:
        where = f"{self.source}: " if self.source else ""
        hint = f"; {self.allowed}" if self.allowed else ""
        value = "" if self.value is None else f"{self.value!r}: "
        return f"{where}{self.key}: {value}{self.problem}{hint}"


class ConfigErrors(ValueError):
    """All errors of one config, one per line."""

    def __init__(self, errors: list[ConfigError]) -> None:
        self.errors = errors
        super().__init__("\n".join(str(error) for error in errors))

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.errors,)

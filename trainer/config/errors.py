"""The error of a user's input: which key, which value, what is wrong, what would work."""

from __future__ import annotations


class ConfigError(ValueError):
    """A key that a user has set and can change.

    Args:
        key: path of the key, such as ``batch.global``.
        value: what it was set to; None, and not shown, where it was not.
        problem: what is wrong with that.
        allowed: what to write instead.
        source: the file, or ``command line``, that the value comes from.
    """

    def __init__(self, key: str, value: object, problem: str, allowed: str = "", source: str = "") -> None:
        self.key, self.value, self.problem, self.allowed, self.source = key, value, problem, allowed, source
        super().__init__(str(self))

    def __reduce__(self) -> tuple[object, ...]:
        # Errors travel between ranks; by default an exception is rebuilt from its message alone.
        return type(self), (self.key, self.value, self.problem, self.allowed, self.source)

    def __str__(self) -> str:
        where = f"{self.source}: " if self.source else ""
        hint = f"; {self.allowed}" if self.allowed else ""
        value = "" if self.value is None else f"{self.value!r}: "
        return f"{where}{self.key}: {value}{self.problem}{hint}"


class ConfigErrors(ValueError):
    """All that is wrong with one config, a line each."""

    def __init__(self, errors: list[ConfigError]) -> None:
        self.errors = errors
        super().__init__("\n".join(str(error) for error in errors))

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.errors,)

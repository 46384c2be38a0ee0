"""Refuses keys of ``engine.deepspeed`` that DeepSpeed would ignore, or reject with an error that names no key.

DeepSpeed's config is made from a mapping that records which keys are looked up, at every level: a key that is never looked up is
unknown, and those that were asked for are the known ones, whatever DeepSpeed's version. Where it has pydantic models, these know.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any

from bellwether.trainer.config import Config, ConfigError, ConfigErrors
from bellwether.trainer.config.error_messages import nearest
from bellwether.trainer.config.key_paths import KeyPath, at, dotted
from bellwether.trainer.config.schema.engine import OURS

_PREFIX = ("engine", "deepspeed")


def check(config: Config) -> None:
    """Refuse unknown keys of ``engine.deepspeed``. Imports DeepSpeed, unless there are no keys or it is not installed.

    Raises:
        ConfigErrors: with the nearest known key for each unknown one.
    """
    given = config.engine.deepspeed
    if not given:
        return
    had_accelerator = "DS_ACCELERATOR" in os.environ
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or it looks for devices, on a machine that only submits the run
    try:
        from bellwether.trainer.libraries import import_deepspeed

        import_deepspeed()
    except ImportError:
        return
    finally:
        if not had_accelerator:
            del os.environ["DS_ACCELERATOR"]
    if errors := list(_errors(given, config)):
        raise ConfigErrors(errors)


def _errors(given: dict[str, Any], config: Config) -> Iterator[ConfigError]:
    from deepspeed.runtime.config import DeepSpeedConfig, DeepSpeedConfigError
    from pydantic import ValidationError

    ours: dict[str, Any] = {
        "train_batch_size": 1, "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1,
        "zero_optimization": {"stage": config.engine.stage}, "bf16": {"enabled": config.engine.precision == "bf16"},
        "fp16": {"enabled": config.engine.precision == "fp16"},
    }  # fmt: skip
    for key, value in given.items():
        base = ours.get(key)
        ours[key] = {**base, **value} if isinstance(base, dict) and isinstance(value, dict) else value
    recording = _Recording(ours)
    try:
        DeepSpeedConfig(recording)
    except ValidationError as error:
        for each in error.errors(include_url=False):
            yield _of_model(each, error.title, given)
        return
    except DeepSpeedConfigError as error:
        yield _error((), given, f"DeepSpeed rejects it: {' '.join(str(error).split())[:300]}", "remove the key")
        return
    except Exception:  # with an error that names no key: that of the engine will
        return
    yield from _unknown(recording, given, ())


def _unknown(recording: _Recording, given: Any, path: KeyPath) -> Iterator[ConfigError]:
    """The keys that were not looked up, in a section that was not handed on as a whole."""
    for key, value in given.items() if isinstance(given, dict) else ():
        inner = dict.get(recording, key)
        if key not in recording.asked and recording.asked and not (path and recording.whole):
            yield _error((*path, key), value, "DeepSpeed has no such key", _hint(str(key), recording.asked, path))
        elif isinstance(inner, _Recording):
            yield from _unknown(inner, value, (*path, key))


def _of_model(error: Any, model: str, given: dict[str, Any]) -> ConfigError:
    """An error of one of DeepSpeed's pydantic models, with the key path, which the error does not know."""
    location = tuple(error["loc"])
    path = next((path for path in _paths(given) if path[-len(location) :] == location), location)
    if error["type"] == "extra_forbidden":
        fields = _fields(model, location[:-1])
        return _error(path, at(given, path), "DeepSpeed has no such key", _hint(str(location[-1]), fields, path[:-1]))
    return _error(path, at(given, path), f"DeepSpeed rejects it: {error['msg']}", "see DeepSpeed's documentation")


def _error(path: KeyPath, value: Any, problem: str, advice: str) -> ConfigError:
    return ConfigError(dotted((*_PREFIX, *path)), value, problem, advice)


def _hint(key: str, known: Iterable[object], path: KeyPath) -> str:
    hint = nearest(key, sorted(str(each) for each in known))
    for name, own in OURS.items():
        if hint == f"did you mean {name.rpartition('.')[2]!r}?" and dotted(path) in (
            "(the file)",
            name.rpartition(".")[0],
        ):
            return f"did you mean {name!r}? set {own} instead"
    return hint


def _paths(value: Any, path: KeyPath = ()) -> Iterator[KeyPath]:
    for key, inner in value.items() if isinstance(value, dict) else ():
        yield (*path, key)
        yield from _paths(inner, (*path, key))


def _fields(name: str, location: KeyPath) -> list[str]:
    """The keys of DeepSpeed's model of this name, or of the one at a place inside it."""
    from deepspeed.runtime.config_utils import DeepSpeedConfigModel

    from bellwether.trainer.config.error_messages import models_of

    models = [model for model in _subclasses(DeepSpeedConfigModel) if model.__name__ == name]
    for key in location:
        models = [
            inner
            for model in models
            for field, info in model.model_fields.items()
            if key in (field, info.alias)
            for inner in models_of(info.annotation)
        ]
    return [info.alias or field for model in models for field, info in model.model_fields.items()]


def _subclasses(model: type[Any]) -> Iterator[type[Any]]:
    for each in model.__subclasses__():
        yield each
        yield from _subclasses(each)


class _Recording(dict[Any, Any]):
    """A mapping that records which keys are looked up, and whether all of them were listed.

    A shallow copy, which DeepSpeed makes, records in the same place.
    """

    def __init__(self, value: dict[Any, Any]) -> None:
        inner = {key: _Recording(each) if isinstance(each, dict) else each for key, each in value.items()}
        super().__init__(inner)
        self.asked: set[Any] = set()
        self.listed: list[bool] = []

    @property
    def whole(self) -> bool:
        return bool(self.listed)

    def get(self, key: Any, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)

    def __getitem__(self, key: Any) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: Any) -> bool:
        self.asked.add(key)
        return super().__contains__(key)

    def __iter__(self) -> Iterator[Any]:
        self.listed.append(True)
        return super().__iter__()

    def keys(self) -> Any:
        return [*self]

    def items(self) -> Any:
        return [(key, dict.__getitem__(self, key)) for key in self]

    def values(self) -> Any:
        return [dict.__getitem__(self, key) for key in self]

"""The keys ``config`` and ``init`` of a model: any architecture of transformers, with fresh or with pretrained weights.

`bellwether.trainer.models.pretrained` builds what they name. Importing this module imports neither torch nor transformers.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, model_validator

from bellwether.trainer.config.errors import ConfigError
from bellwether.trainer.config.schema.models import ModelConfig
from bellwether.trainer.models.presets import PRESETS

# Keys of a saved config.json that describe the saved weights and the program that saved them, not the architecture.
_OF_THE_SAVED = ("architectures", "transformers_version", "dtype", "torch_dtype", "auto_map", "_name_or_path")


_FOR_CHECKPOINT: ContextVar[bool] = ContextVar("models are built for the weights of a checkpoint", default=False)


@contextmanager
def for_checkpoint() -> Iterator[None]:
    """Inside this context models are built for the weights of a checkpoint: those of ``init`` are not read, and nothing is said."""
    token = _FOR_CHECKPOINT.set(True)
    try:
        yield
    finally:
        _FOR_CHECKPOINT.reset(token)


def is_for_checkpoint() -> bool:
    """Whether models are built for the weights of a checkpoint."""
    return _FOR_CHECKPOINT.get()


class Architecture(ModelConfig):
    """A model of transformers, named by ``config`` or ``init``.

    Attributes:
        auto_class: transformers' class that builds it, as in ``AutoModelForMaskedLM``.
    """

    auto_class: ClassVar[str]

    config: str | dict[str, Any] | None = Field(
        None,
        description="the architecture, with newly initialized weights: a preset, as in modernbert-base; a config.json or its folder; "
        "or the keys of a transformers config with model_type, or with preset and what differs from it; with init: keys that "
        "differ from the folder's",
    )
    init: str | None = Field(
        None,
        description="pretrained weights and their architecture: the folder of an export, or of another model with safetensors, or "
        "the name of a hub model; null: newly initialized weights",
    )

    @model_validator(mode="after")
    def _check_origin(self) -> Architecture:
        if self.init is not None:
            if isinstance(self.config, str) or (isinstance(self.config, dict) and "preset" in self.config):
                raise ValueError(
                    "config: model.init has the architecture; remove one of the two, or list only keys that differ"
                )
            return self
        if self.config is None:
            raise ValueError(f"config: the model needs config or init; presets: {', '.join(PRESETS)}")
        if isinstance(self.config, dict):
            if ("model_type" in self.config) == ("preset" in self.config):
                raise ValueError("config: a mapping needs model_type, as in {model_type: bert, ...}, or else preset")
            name = self.config.get("preset", "")
        else:
            name = "" if _is_path(self.config) else self.config
        if name and name not in PRESETS:
            near = difflib.get_close_matches(str(name), PRESETS, 1, 0.5) or [f"a path, or one of {', '.join(PRESETS)}"]
            raise ValueError(f"config: {name!r} is not a preset; did you mean {near[0]}?")
        return self

    @property
    def label(self) -> str:
        if self.init is not None:
            return Path(self.init).name or self.kind
        if isinstance(self.config, str):
            return Path(self.config).name
        assert self.config is not None
        return str(self.config.get("preset") or self.config["model_type"])

    @property
    def given_keys(self) -> dict[str, Any]:
        """The keys that the user wrote one by one."""
        return {k: v for k, v in self.config.items() if k != "preset"} if isinstance(self.config, dict) else {}

    def keys(self) -> dict[str, Any]:
        """The keys of the transformers config, ``model_type`` among them; with a hub name in ``init``, only those that differ.

        Raises:
            ConfigError: if a file cannot be read.
        """
        if self.init is not None:
            folder = local_folder(self.init)
            return {**({} if folder is None else _read("model.init", folder)), **self.given_keys}
        if isinstance(self.config, str):
            return (
                _read("model.config", Path(self.config).expanduser()) if _is_path(self.config) else PRESETS[self.config]
            )
        assert self.config is not None
        return {**PRESETS.get(self.config.get("preset", ""), {}), **self.given_keys}


# Model types whose positions are numbered from the padding token's number + 1 on, as fairseq's were.
POSITIONS_AFTER_PADDING = frozenset(
    {
        "roberta",
        "xlm-roberta",
        "xlm-roberta-xl",
        "roberta-prelayernorm",
        "camembert",
        "mpnet",
        "longformer",
        "data2vec-text",
        "ibert",
        "xmod",
    }
)


# Model types that take a mask [B, 1, L, L] for scaled_dot_product_attention. tests/trainer/models/test_document_attention.py
# compares each with its documents alone.
DOCUMENT_ATTENTION = frozenset(
    {"bert", "camembert", "distilbert", "electra", "ernie", "modernbert", "roberta", "xlm-roberta"}
)


def longest_sequence(keys: dict[str, Any]) -> int | None:
    """The number of tokens for which an encoder has positions, from the keys of its config; None if these do not say.

    >>> longest_sequence({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1})
    512
    """
    positions = keys.get("max_position_embeddings")
    if positions is None:
        return None
    offset = (keys.get("pad_token_id") or 0) + 1 if keys.get("model_type") in POSITIONS_AFTER_PADDING else 0
    return int(positions) - offset


def local_folder(init: str) -> Path | None:
    """The folder that ``model.init`` names, or None for the name of a hub model.

    Raises:
        ConfigError: if it is meant as a path, and there is no such folder.
    """
    folder = Path(init).expanduser()
    if folder.is_dir():
        return folder
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", init) and not folder.exists():
        return None
    problem = "is a file" if folder.is_file() else "no such folder"
    raise ConfigError(
        "model.init", init, problem, "name the folder with config.json and the weights, as in runs/NAME/export"
    )


def _is_path(name: str) -> bool:
    return "/" in name or name.endswith(".json") or (name not in PRESETS and Path(name).expanduser().exists())


def _read(key: str, path: Path) -> dict[str, Any]:
    file = path / "config.json" if path.is_dir() else path
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            key, str(path), f"{file} does not exist", "name a config.json of transformers, or its folder"
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(
            key, str(path), f"{file} cannot be read: {error}", "name a config.json of transformers"
        ) from None
    if not isinstance(content, dict) or "model_type" not in content:
        raise ConfigError(key, str(path), f"{file} has no model_type", "name a config.json of transformers")
    return {name: value for name, value in content.items() if name not in _OF_THE_SAVED}

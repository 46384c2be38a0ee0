"""The transformers config of an `Architecture`, completed from the data, and checks that the two fit."""

from __future__ import annotations

import difflib
import inspect
import logging
import re
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from bellwether.trainer.config.errors import ConfigError
from bellwether.trainer.data import Dataset
from bellwether.trainer.models import auto_classes  # noqa: F401  (registers our own architectures)
from bellwether.trainer.models.architecture import Architecture, is_for_checkpoint, local_folder, longest_sequence

log = logging.getLogger(__name__)


def make_config(section: Architecture, **changes: Any) -> Any:
    """The `PretrainedConfig` of an architecture.

    Args:
        changes: keys that the data determine; they take precedence.

    Raises:
        ConfigError: if transformers does not know the model type or a key that the user wrote, or rejects a value.
    """
    keys = {**section.keys(), **changes}
    key, value = ("model.init", section.init) if section.init is not None else ("model.config", section.config)
    kind = keys.pop("model_type", None)
    known = transformers.models.auto.configuration_auto.CONFIG_MAPPING
    if kind is None:  # of the hub
        kind = _from_hub(section).model_type
    if kind not in known:
        near = difflib.get_close_matches(str(kind), list(known), 1, 0.5)
        advice = f"did you mean {near[0]}?" if near else "see transformers' documentation"
        raise ConfigError(key, value, f"transformers {transformers.__version__} has no model_type {kind!r}", advice)
    try:
        _check_keys(section, known[kind])
        if section.init is not None and local_folder(section.init) is None:
            config = _from_hub(section)
            for name, new in keys.items():
                setattr(config, name, new)
            return config
        return known[kind](**keys)
    except ConfigError:
        raise
    except Exception as error:
        problem = f"transformers rejects it: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise ConfigError(key, value, problem, "correct the key that the message names") from error


def _from_hub(section: Architecture) -> Any:
    try:
        return transformers.AutoConfig.from_pretrained(section.init, trust_remote_code=False)
    except Exception as error:
        raise unloadable(section, error) from error


def unloadable(section: Architecture, error: Exception) -> ConfigError:
    """The error of transformers as one of ``model.init``."""
    problem = f"transformers cannot load it: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    advice = "name a folder with config.json and model.safetensors, or a model of the hub that has safetensors"
    return ConfigError("model.init", section.init, problem, advice)


def _check_keys(section: Architecture, config_class: Any) -> None:
    """Refuse keys that the user wrote and the architecture does not have: transformers would accept and ignore them."""
    has = {*vars(config_class()), *config_class.attribute_map} - {"_name_or_path"}
    for name in section.given_keys:
        if name not in {"model_type", *has} and not _is_read(name, config_class):
            near = difflib.get_close_matches(name, sorted(has), 1, 0.5)
            advice = f"did you mean {near[0]}?" if near else "remove it"
            problem = f"the config of {config_class.model_type} has no such key"
            raise ConfigError(f"model.config.{name}", section.given_keys[name], problem, advice)


def _is_read(name: str, config_class: Any) -> bool:
    """Whether an architecture's code has a key that its config does not list, such as DeBERTa's ``position_buckets``."""
    folder = Path(inspect.getfile(config_class)).parent
    return any(re.search(rf"\b{re.escape(name)}\b", file.read_text(encoding="utf-8")) for file in folder.glob("*.py"))


def text_keys(section: Architecture, dataset: Dataset) -> dict[str, Any]:
    """The keys of a config that the tokenizer determines: size of the vocabulary and special tokens.

    Pretrained weights keep theirs. A vocabulary larger than the tokenizer's is kept, and said. Where no tokenizer has been read,
    as in the check before a start, and the config names no size, it is the architecture's own.

    Raises:
        ConfigError: if the vocabulary of the config, or of the weights, is smaller than the tokenizer's.
    """
    keys, tokens = section.keys(), dataset.vocabulary_size
    if section.init is not None and "model_type" not in keys:
        keys = {**vars(_from_hub(section)), **keys}
    size = keys.get("vocab_size")
    if size is not None and tokens is not None and dataset.tokenizer is not None:
        if size < tokens:
            problem = f"the tokenizer has {tokens:,} tokens, and the model a vocabulary of {size:,}"
            advice = "leave data.tokenizer out, which takes the model's" if section.init else "remove vocab_size"
            key = "data.tokenizer" if section.init else "model.config.vocab_size"
            raise ConfigError(key, None if section.init else size, problem, advice)
        if size > tokens:
            log.info(
                "%s of %s rows of the word embeddings belong to no token of the tokenizer",
                f"{size - tokens:,}",
                f"{size:,}",
            )
    if section.init is not None:
        return {}
    tokenizer = dataset.tokenizer
    special = {name: getattr(tokenizer, f"{name}_token_id", None) for name in ("pad", "cls", "sep")}
    of_config = {"pad": ("pad",), "cls": ("cls", "bos"), "sep": ("sep", "eos")}
    fallback = 0 if tokenizer is None else None
    size = tokens if size is None else size
    return {
        **({} if size is None else {"vocab_size": size}),
        **{
            f"{name}_token_id": fallback if special[token] is None else special[token]
            for token, names in of_config.items()
            for name in names
        },
    }  # fmt: skip


def check_tokenizer(section: Architecture, tokenizer: Any) -> None:
    """Refuse a tokenizer that numbers tokens otherwise than that of ``init``.

    Raises:
        ConfigError: with the number of tokens that differ.
    """
    if section.init is None or tokenizer is None or tokenizer.name_or_path == section.init:
        return
    folder = local_folder(section.init)
    try:
        own = transformers.AutoTokenizer.from_pretrained(folder or section.init, trust_remote_code=False).get_vocab()
    except Exception:
        log.warning("%s has no tokenizer to compare data.tokenizer with", section.init)
        return
    given = tokenizer.get_vocab()
    different = sum(own.get(token) != number for token, number in given.items())
    if different:
        problem = f"{different:,} of its {len(given):,} tokens have another number in the tokenizer of model.init"
        raise ConfigError(
            "data.tokenizer", tokenizer.name_or_path, problem, f"leave it out, which takes that of {section.init}"
        )


def check_length(config: Any, dataset: Dataset) -> None:
    """Refuse sequences longer than the positions of the model.

    Raises:
        ConfigError: with the longest sequence that fits.
    """
    samples: Any = dataset.train
    length = getattr(samples, "sequence_length", None) or getattr(
        getattr(samples, "config", None), "tokens_per_sample", None
    )
    longest = longest_sequence(vars(config))
    if length is not None and longest is not None and length > longest:
        problem = f"the model has positions for {longest:,} tokens (max_position_embeddings: {config.max_position_embeddings:,})"
        raise ConfigError(
            "data.sequence_length", length, problem, "shorten it, or raise max_position_embeddings in model.config"
        )


def say(text: str) -> None:
    """Log, unless the model is built without values, for a check or a plan, or after training: a run says it at its start."""
    if has_storage() and not is_for_checkpoint():
        log.info(text)


def has_storage() -> bool:
    """Whether tensors that torch makes now have values: not fake ones, and not those of the meta device."""
    probe = torch.empty(0)
    return type(probe) is Tensor and probe.device.type != "meta"

"""Models of transformers, from an `Architecture`: with fresh or pretrained weights.

Weights are read from safetensors alone: nothing is unpickled, and no code of a folder or a hub is run.
"""

from __future__ import annotations

import contextlib
import difflib
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from bellwether.trainer.config.errors import ConfigError
from bellwether.trainer.data import Dataset
from bellwether.trainer.models import partitioned
from bellwether.trainer.models.architecture import Architecture, is_for_checkpoint, local_folder
from bellwether.trainer.models.load_in_parts import load_in_parts
from bellwether.trainer.models.model_config import (
    check_length,
    check_tokenizer,
    has_storage,
    make_config,
    say,
    text_keys,
    unloadable,
)

log = logging.getLogger(__name__)

_NAMED = 4  # names of tensors in a message


def build_for_text(
    section: Architecture,
    dataset: Dataset,
    activation_checkpointing: bool,
    auto_class: str | None = None,
    **changes: Any,
) -> Any:
    """The model of an architecture for the tokenizer and the sequences of a dataset, as `build` builds it.

    Args:
        auto_class: another one than that of ``section``.
        changes: keys of the transformers config, which take precedence.

    Raises:
        ConfigError: as `build`; also if tokenizer, vocabulary or sequence length do not fit the model.
    """
    check_tokenizer(section, dataset.tokenizer)
    config = make_config(section, **text_keys(section, dataset), **changes)
    check_length(config, dataset)
    model = build(section, config, auto_class)
    if activation_checkpointing:
        checkpoint_activations(model)
    return model


def check_input_size(model: nn.Module, pixel_values: Tensor, key: str = "data.size") -> None:
    """Where the model is built without values, for a check or a plan: refuse images that it cannot take.

    Raises:
        ConfigError: with torch's reason.
    """
    if has_storage():
        return
    try:
        with torch.no_grad():
            model(pixel_values)
    except (RuntimeError, ValueError) as error:
        problem = f"the {type(model).__name__} cannot take images of this size: {' '.join(str(error).split())[:200]}"
        raise ConfigError(
            key, pixel_values.shape[-1], problem, "choose another size, or fewer stages or smaller patches"
        ) from error


def checkpoint_activations(model: Any) -> None:
    """Store only the input of each layer, and recompute its activations in the backward pass.

    Raises:
        ConfigError: if the architecture does not support it.
    """
    if not getattr(model, "supports_gradient_checkpointing", False):
        problem = f"transformers' {type(model).__name__} does not support it"
        raise ConfigError("engine.activation_checkpointing", True, problem, "write false")
    # transformers renamed this method in 5.2x; both names are within the supported versions.
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": False})


def build(section: Architecture, config: Any, auto_class: str | None = None) -> Any:
    """The model of ``auto_class``, by default the section's, in float32: with pretrained weights if ``section.init`` is set.

    What ``init`` does not have is drawn from torch's global generator, as fresh weights are. On fake tensors and on the meta
    device nothing is read.

    Raises:
        ConfigError: if the auto class has no model of this type, or the weights are missing, pickled, or do not fit.
    """
    auto_class = auto_class or section.auto_class
    auto = getattr(transformers, auto_class)
    key, value = ("model.init", section.init) if section.init is not None else ("model.config", section.config)
    if type(config) not in auto._model_mapping:
        has = sorted({c.model_type for c in auto._model_mapping})
        near = difflib.get_close_matches(config.model_type, has, 1, 0.5)
        advice = f"name another architecture, such as {near[0] if near else has[0]}"
        raise ConfigError(key, value, f"transformers has no {auto_class} of {config.model_type}", advice)
    config._attn_implementation = attention(auto, config)
    if not has_storage():
        return _without_values(auto, config)

    def make() -> Any:
        return auto.from_config(config, dtype=torch.float32, trust_remote_code=False)

    # Our own architectures, which are small, change weights in their constructors.
    in_parts = type(config).__module__.startswith("transformers.")
    if section.init is None or is_for_checkpoint():
        return partitioned.construct(make) if in_parts else make()
    folder = local_folder(section.init)
    if partitioned.is_active() and in_parts and folder is not None:
        _check_files(section.init, folder)
        info: dict[str, Any] = {}
        state = torch.get_rng_state()
        model = partitioned.construct(make, lambda model: info.update(load_in_parts(model, folder)))
        if not _lost(model, info["missing_keys"]):
            _check_weights(section.init, model, info)
            return model
        torch.set_rng_state(state)
        say("transformers renames tensors of this architecture: each rank reads the whole model before it is split")
    return _load(auto, section, config)


def _without_values(auto: Any, config: Any) -> Any:
    """The model on the kind of tensors that torch makes now: fake ones, or those of the meta device.

    Some constructors read values, which fake tensors refuse. All are written for the meta device.
    """
    with unset_fake_temporarily(), torch.device("meta"):
        model = auto.from_config(config, dtype=torch.float32, trust_remote_code=False)
    made: dict[Tensor, Tensor] = {}  # tied weights stay tied
    for module in model.modules():
        for store in (module._parameters, module._buffers):
            for name, tensor in store.items():
                if tensor is None:
                    continue
                if tensor not in made:
                    new = torch.empty(tensor.shape, dtype=tensor.dtype)
                    made[tensor] = nn.Parameter(new, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new
                store[name] = made[tensor]
    return model


def attention(auto: Any, config: Any) -> str:
    """sdpa where the architecture has it, and else eager, which is said."""
    model_class = auto._model_mapping[type(config)]
    model_class = model_class[0] if isinstance(model_class, tuple) else model_class
    if getattr(model_class, "_supports_sdpa", False):
        return "sdpa"
    if getattr(config, "num_attention_heads", None):
        say(f"transformers' {config.model_type} has no scaled_dot_product_attention: attention is eager")
    return "eager"


def _load(auto: Any, section: Architecture, config: Any) -> Any:
    assert section.init is not None
    folder = local_folder(section.init)
    if folder is not None:
        _check_files(section.init, folder)
    try:
        with _quiet():
            model, info = auto.from_pretrained(
                section.init if folder is None else folder, config=config, dtype=torch.float32, use_safetensors=True,
                ignore_mismatched_sizes=True, output_loading_info=True, trust_remote_code=False,
            )  # fmt: skip
    except Exception as error:
        raise unloadable(section, error) from error
    _check_weights(section.init, model, info)
    return model.train()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' own report on every rank: `_check_weights` says it once."""
    logging_ = transformers.utils.logging
    before = logging_.get_verbosity()
    logging_.set_verbosity_error()
    logging_.disable_progress_bar()
    try:
        yield
    finally:
        logging_.set_verbosity(before)


def _check_files(init: str, folder: Path) -> None:
    if any((folder / f"model.safetensors{suffix}").exists() for suffix in ("", ".index.json")):
        return
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt"))
    problem = "has no model.safetensors"
    advice = "name an export, as in runs/NAME/export, or a folder that save_pretrained wrote"
    if pickled:
        problem = f"its weights are pickled ({', '.join(pickled[:_NAMED])}), and unpickling runs code"
        advice = "convert them to safetensors where you trust them: load and save_pretrained with transformers"
    raise ConfigError("model.init", init, problem, advice)


def _check_weights(init: str, model: nn.Module, info: dict[str, Any]) -> None:
    """Say what was newly initialized and what was left out; refuse weights that do not fit the body of the model."""
    missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    mismatched = sorted((name, tuple(there), tuple(here)) for name, there, here in info["mismatched_keys"])
    body = [name for name, _ in model.named_parameters() if _in_body(model, name)]
    for name, there, here in mismatched:
        if _in_body(model, name):
            problem = f"{name} is {list(there)} there and {list(here)} here"
            raise ConfigError(
                "model.init", init, problem, "remove the keys of model.config that change the architecture"
            )
    lost = _lost(model, missing)
    if lost:
        problem = (
            f"it lacks {len(lost):,} of the {len(body):,} tensors of the {type(model).__name__}'s body: {_names(lost)}"
        )
        raise ConfigError("model.init", init, problem, "name the weights of this architecture")
    fresh = sorted({*missing, *(name for name, _, _ in mismatched)})
    loaded = len({name for name, _ in model.named_parameters()} - set(fresh))
    text = f"{loaded:,} tensors of {init} loaded into {type(model).__name__}"
    if fresh:
        text += f"; newly initialized: {len(fresh):,} ({_names(fresh)})"
    if mismatched:
        text += f", {len(mismatched):,} of them for their shape ({mismatched[0][1]} there, {mismatched[0][2]} here)"
    if unexpected:
        text += f"; left out: {len(unexpected):,} ({_names(unexpected)})"
    log.info(text)


def _lost(model: nn.Module, missing: Iterable[str]) -> list[str]:
    """The missing tensors without which pretrained weights are not those of this architecture."""
    return [name for name in missing if _in_body(model, name) and "pooler" not in name]


def _in_body(model: nn.Module, name: str) -> bool:
    """Whether a tensor belongs to the pretrained body, as opposed to the head of a task."""
    prefix = getattr(model, "base_model_prefix", "")
    if prefix and hasattr(model, prefix):
        return name.startswith(f"{prefix}.")
    return not name.startswith(("classifier.", "head."))


def _names(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else "")

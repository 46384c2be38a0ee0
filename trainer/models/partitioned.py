"""Builds a model in parts under ZeRO-3: each layer is split over the ranks as soon as it exists, and no rank holds the whole.

DeepSpeed's own context for this, `zero.Init`, draws weights on the device and in the type of training. Here they are drawn as
everywhere else, on the CPU in float32, so a model starts from the same weights under every ZeRO stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights

from bellwether.trainer.libraries import import_deepspeed

_CONFIG: ContextVar[dict[str, Any] | None] = ContextVar("deepspeed config of the models that are built", default=None)


@contextmanager
def partitioning(config: dict[str, Any] | None) -> Iterator[None]:
    """Inside this context `construct` splits models over all ranks.

    Args:
        config: DeepSpeed's, of stage 3; None: models are built whole.
    """
    token = _CONFIG.set(config)
    try:
        yield
    finally:
        _CONFIG.reset(token)


def is_active() -> bool:
    """Whether models are split over the ranks when they are built."""
    return _CONFIG.get() is not None


def construct(make: Callable[[], Any], fill: Callable[[Any], None] | None = None) -> Any:
    """The model that ``make`` builds with newly initialized weights; inside `partitioning` in parts, which is collective.

    Args:
        fill: sets the weights of the split model, in float32. It is then built without values, and torch's generator stays where it
            is, as in `from_pretrained`.
    """
    config = _CONFIG.get()
    if config is None:
        return make()
    zero = import_deepspeed().zero
    # Of an empty module: the object that splits parameters.
    split = zero.Init(module=nn.Module(), config_dict_or_path=config, dtype=torch.float32)._convert_to_zero_parameters

    def registered(parent: nn.Module, name: str, module: nn.Module | None) -> None:
        if module is not None:
            split(list(module.parameters()))

    handle = register_module_module_registration_hook(registered)
    try:
        with _layer_by_layer() if fill is None else _without_values():
            model = make()
    finally:
        handle.remove()
    split(list(model.parameters()))
    if fill is not None:
        fill(model)
    for kind in ("bf16", "fp16"):
        if config[kind]["enabled"]:
            _cast(model, {"bf16": torch.bfloat16, "fp16": torch.float16}[kind])
    return model


def initialize(model: Any, loaded: Iterable[Tensor]) -> None:
    """Draws the tensors of a split model that are not ``loaded``, as `from_pretrained` draws those that a file lacks. Collective."""
    for tensor in loaded:
        tensor._is_hf_initialized = True  # type: ignore[attr-defined]
    with _layer_by_layer():
        model.initialize_weights()


@contextmanager
def _layer_by_layer() -> Iterator[None]:
    """transformers' initialization of a module gathers what it may draw: the module's own parameters and those of its children."""
    initialize_module = PreTrainedModel._initialize_weights

    def initialize_whole(self: PreTrainedModel, module: nn.Module, *args: Any, **kwargs: Any) -> None:
        own = [p for each in (module, *module.children()) for p in each.parameters(recurse=False)]
        if own and all(getattr(p, "_is_hf_initialized", False) for p in own):
            return
        with gathered(own):
            initialize_module(self, module, *args, **kwargs)

    PreTrainedModel._initialize_weights = initialize_whole
    try:
        yield
    finally:
        PreTrainedModel._initialize_weights = initialize_module


@contextmanager
def _without_values() -> Iterator[None]:
    """Models that are built inside have parameters without values, and tied weights."""
    with torch.random.fork_rng(devices=[]), no_init_weights():
        PreTrainedModel.init_weights = lambda self: self.tie_weights(recompute_mapping=False)
        yield


def numel(parameter: nn.Parameter) -> int:
    """The number of elements of a parameter, whole or split."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def gathered(parameters: Iterable[nn.Parameter]) -> Any:
    """Context in which split parameters are whole on each rank; afterwards all have rank 0's values. Collective."""
    split = [p for p in parameters if hasattr(p, "ds_id")]
    return import_deepspeed().zero.GatheredParameters(split, modifier_rank=0, enabled=bool(split))


def _cast(model: nn.Module, dtype: torch.dtype) -> None:
    """Each rank's part of the parameters in the type of training, as DeepSpeed expects of a model that is split already."""
    for parameter in model.parameters():
        part: Any = parameter.ds_tensor  # type: ignore[attr-defined]
        part.data = part.data.to(dtype)
        parameter.data = parameter.data.to(dtype)

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
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook
from transformers import PreTrainedModel

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


def construct(make: Callable[[], Any]) -> Any:
    """The model that ``make`` builds with newly initialized weights; inside `partitioning` in parts, which is collective."""
    config = _CONFIG.get()
    if config is None:
        return make()
    zero = import_deepspeed().zero
    # Of an empty module: the object that splits parameters.
    split = zero.Init(module=nn.Module(), config_dict_or_path=config, dtype=torch.float32)._convert_to_zero_parameters
    initialize = PreTrainedModel._initialize_weights

    def initialize_whole(self: PreTrainedModel, module: nn.Module, *args: Any, **kwargs: Any) -> None:
        """transformers' initialization of a module, which may draw its own parameters and those of its children."""
        own = [p for each in (module, *module.children()) for p in each.parameters(recurse=False)]
        with gathered(own):
            initialize(self, module, *args, **kwargs)

    def registered(parent: nn.Module, name: str, module: nn.Module | None) -> None:
        if module is not None:
            split(list(module.parameters()))

    handle = register_module_module_registration_hook(registered)
    PreTrainedModel._initialize_weights = initialize_whole
    try:
        model = make()
    finally:
        handle.remove()
        PreTrainedModel._initialize_weights = initialize
    split(list(model.parameters()))
    for kind in ("bf16", "fp16"):
        if config[kind]["enabled"]:
            _cast(model, {"bf16": torch.bfloat16, "fp16": torch.float16}[kind])
    return model


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

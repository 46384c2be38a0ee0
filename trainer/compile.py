"""`engine.compile: layers`: torch.compile for each layer of an encoder or each residual block.

Layers of one kind share what is compiled, so that 24 layers take the time of one. Parameters keep their names: only `forward` of a
layer is replaced, as compiled modules would rename them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from bellwether.trainer.config import ConfigError

BACKEND = "inductor"

# Of one layer: shapes of training, evaluation and its last batch, each in training and in evaluation mode.
_VARIANTS = 8


def compile_layers(model: Any) -> int:
    """Compile the layers of a model of transformers, or of ours; returns their number.

    Each shape has code of its own: with code for all shapes, which of the two a step runs would depend on what the process ran before,
    and a resumed run would differ by rounding.

    Raises:
        ConfigError: if the model has no layers that are known.
    """
    import torch._dynamo

    found = layers(model)
    if not found:
        problem = f"the layers of {type(model).__name__} are not known"
        raise ConfigError("engine.compile", "layers", problem, "write none")
    torch._dynamo.reset()  # what an earlier phase has compiled
    settings: Any = torch._dynamo.config
    for name in ("recompile_limit", "accumulated_recompile_limit"):
        setattr(settings, name, max(getattr(settings, name), _VARIANTS * len(found)))
    for layer in found:
        layer.forward = _compiled(layer)
    model.has_compiled_layers = True
    return len(found)


def layers(model: Any) -> list[nn.Module]:
    """The residual blocks of a network, or else the layers that transformers treats as units, none inside of another."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    from bellwether.trainer.models.residual import blocks

    modules, names = list(model.modules()), getattr(model, "_no_split_modules", None) or ()
    found = (
        blocks(model)
        or [module for module in modules if isinstance(module, GradientCheckpointingLayer)]
        or [module for module in modules if type(module).__name__ in names]
    )
    inner = {id(child) for module in found for child in module.modules() if child is not module}
    return [module for module in found if id(module) not in inner]


def _compiled(layer: nn.Module) -> Callable[..., Any]:
    """A layer's forward, compiled as one graph.

    Raises (when called):
        ConfigError: if it cannot be, as where there is no compiler.
    """
    from torch._dynamo.exc import TorchDynamoException

    forward = layer.forward
    compiled = torch.compile(forward, backend=BACKEND, fullgraph=True, dynamic=False)

    @functools.wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return compiled(*args, **kwargs)
        except TorchDynamoException as error:
            problem = f"{type(layer).__name__} cannot be compiled: {' '.join(str(error).split())[:300]}"
            raise ConfigError("engine.compile", "layers", problem, "write none") from error

    return run

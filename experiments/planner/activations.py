"""What the forward and the backward pass hold and compute, measured on tensors that have shapes but no numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bellwether import optimizers
from bellwether.experiments.planner.live_bytes import LiveBytes
from bellwether.trainer import models
from bellwether.trainer.data import Data

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from bellwether.trainer.config import Config

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Stretch:
    """The time until a parameter's gradient is made, since the one before, or since the forward pass began.

    Bytes are those of activations and of the gradient itself: without parameters and without earlier gradients.
    """

    before: int  # elements of the gradients made before
    made: int  # elements of the gradient made at its end; 0 for what comes after the last one
    fixed: float  # bytes, whatever the micro-batch
    sample: float  # bytes a sample


@dataclass(frozen=True)
class Profile:
    """A model as the engine sees it, and its two passes.

    Attributes:
        groups: elements of each parameter, for each param group.
        stretches: of the forward and the backward pass, in order.
        kept_fixed, kept_sample: bytes alive between the two passes: what was saved for the backward pass.
        flops: of both passes for a sample; multiplications and additions of matrix products and convolutions.
    """

    groups: list[list[int]]
    stretches: list[Stretch]
    kept_fixed: float
    kept_sample: float
    flops: float

    @property
    def elements(self) -> int:
        return sum(map(sum, self.groups))

    def kept(self, micro: int) -> float:
        return self.kept_fixed + self.kept_sample * micro


@dataclass(frozen=True)
class Blank:
    """Samples of the right shape and number with nothing in them, where the data are not here."""

    config: Any
    rows: int = 0

    def __len__(self) -> int:
        return self.rows

    def batch(
        self, indices: Sequence[int] | npt.NDArray[np.int64], keys: Sequence[int] | npt.NDArray[np.int64]
    ) -> dict[str, Tensor]:
        """See `bellwether.trainer.data.Samples`."""
        size, config = len(indices), self.config
        if config.kind == "text":
            length = config.sequence_length
            places = torch.zeros(size, max(1, round(config.mask_share * (length - 2))), dtype=torch.int64)
            ids = torch.zeros(size, length, dtype=torch.int64)
            return {"input_ids": ids, "masked_positions": places, "labels": torch.zeros_like(places)}
        shape = (size, len(config.mean), config.size, config.size)
        return {"pixel_values": torch.zeros(shape), "labels": torch.zeros(size, dtype=torch.int64)}


def measure(config: Config, data: Data, *, on_gpu: bool = True) -> Profile:
    """Build the model without memory for it, and take a forward and a backward pass of ``batch.micro`` samples and of twice
    as many: between and beyond them bytes are taken to lie on a line, for each stretch of the passes.

    Args:
        data: tells vocabulary, classes and channels; its samples are not read.
        on_gpu: hold what GPUs hold: attention that keeps no matrix of scores, dropout that keeps a mask of bytes. Else
            what CPUs hold.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    # Not one sample: with it, copies of transposed tensors are left out that every larger batch makes.
    few = max(2, config.batch.micro)
    with FakeTensorMode(), _as_on_gpu() if on_gpu else nullcontext():
        task = models.build(config.model, data, activation_checkpointing=config.engine.activation_checkpointing)
        _cast(task, DTYPES[config.engine.precision])
        task.train()
        groups = [[p.numel() for _, p in group["params"]] for group in optimizers.groups(task)]
        small, large = (_passes(task, config, micro) for micro in (few, 2 * few))
        flops = _flops(task, config, few)

    def line(low: int, high: int) -> tuple[float, float]:
        slope = max(0.0, (high - low) / few)
        return low - slope * few, slope

    stretches = []
    before = 0
    for made, low, high in zip((*small.made, 0), small.peaks, large.peaks, strict=True):
        stretches.append(Stretch(before, made, *line(low, high)))
        before += made
    return Profile(groups, stretches, *line(small.kept, large.kept), flops)


@dataclass
class _Passes:
    made: list[int]  # elements of each gradient, in order
    peaks: list[int]  # most bytes before each, and after the last
    kept: int = 0


def _passes(task: nn.Module, config: Config, micro: int) -> _Passes:
    found = _Passes([], [])
    live = LiveBytes([*task.parameters(), *task.buffers()])
    with live, _gradients_let_go(task, live, found):
        loss = _loss(task, config, micro)
        found.kept = live.bytes
        loss.backward()
    found.peaks.append(live.reset_peak())
    return found


def _flops(task: nn.Module, config: Config, micro: int) -> float:
    """Of both passes, a sample. Counted apart: the counter keeps alive what activation checkpointing lets go."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        _loss(task, config, micro).backward()
    return counter.get_total_flops() / micro


def _loss(task: nn.Module, config: Config, micro: int) -> Tensor:
    losses, _ = task(**Blank(config.data).batch(range(micro), range(micro)))
    return losses.mean()


def _cast(task: nn.Module, dtype: torch.dtype) -> None:
    """`task.to(dtype)`, which torch cannot do to fake parameters. BatchNorm's statistics stay as they are, here too."""
    cast: dict[nn.Parameter, nn.Parameter] = {}
    for module in task.modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if parameter not in cast:
                cast[parameter] = nn.Parameter(parameter.detach().to(dtype), parameter.requires_grad)
            module.register_parameter(name, cast[parameter])


@contextmanager
def _gradients_let_go(task: nn.Module, live: LiveBytes, found: _Passes) -> Iterator[None]:
    """Each gradient is counted while it is made and no longer: who keeps it, and as what, is the engine's part."""

    def made(parameter: nn.Parameter) -> None:
        found.peaks.append(live.reset_peak())
        found.made.append(parameter.numel())
        parameter.grad = None

    hooks = [p.register_post_accumulate_grad_hook(made) for p in task.parameters() if p.requires_grad]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _as_on_gpu() -> Iterator[None]:
    """Dropout and attention by the operations that a GPU would take; their shapes are known here too.

    Put in place of torch's functions: a mode over torch's functions is not on while activations are computed again.
    """
    kept = functional.dropout, functional.scaled_dot_product_attention
    functional.dropout, functional.scaled_dot_product_attention = _dropout, _attention  # type: ignore[assignment]
    try:
        yield
    finally:
        functional.dropout, functional.scaled_dot_product_attention = kept


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return torch.native_dropout(input, p, True)[0] if training and p > 0 else input


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, *, scale: float | None = None, **kwargs: Any,
) -> Tensor:  # fmt: skip
    aten = torch.ops.aten
    if query.dtype == torch.float32 or attn_mask is not None:  # what the flash kernel does not take
        efficient = aten._scaled_dot_product_efficient_attention
        return efficient(query, key, value, attn_mask, True, dropout_p, is_causal, scale=scale)[0]
    return aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)[0]

"""Measures the activation memory and FLOPs of a model on fake tensors, which have shapes but no data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bellwether.trainer import models
from bellwether.trainer.config.schema import DataConfig
from bellwether.trainer.data import Dataset
from bellwether.trainer.memory.live_bytes import LiveBytes
from bellwether.trainer.param_groups import param_groups

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from bellwether.trainer.config import Config

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Segment:
    """A segment of the passes that ends when a parameter's gradient is computed; the first begins with the forward pass.

    Bytes are the segment's peak of activations and of the gradient itself, without parameters and earlier gradients.
    """

    before: int  # elements of the gradients computed before
    gradient: int  # elements of the gradient computed at its end; 0 for the segment after the last gradient
    fixed: float  # bytes, independent of the micro-batch
    per_sample: float  # bytes per sample of the micro-batch


@dataclass(frozen=True)
class Profile:
    """The parameters of a model and the costs of its forward and backward pass.

    Attributes:
        groups: elements of each trained parameter, for each param group.
        matrices: of each param group, whether it is one of matrices for Muon, which need less state.
        segments: of the forward and backward pass, in order.
        saved_fixed, saved_per_sample: bytes alive between the two passes, saved for the backward pass.
        flops: of both passes per sample; multiplications and additions of matrix products and convolutions.
        shapes: of each trained parameter, for each param group.
        frozen: elements of each parameter that is not trained.
    """

    groups: list[list[int]]
    matrices: list[bool]
    segments: list[Segment]
    saved_fixed: float
    saved_per_sample: float
    flops: float
    shapes: list[list[tuple[int, ...]]] = field(default_factory=list)
    frozen: list[int] = field(default_factory=list)

    @property
    def elements(self) -> int:
        """Number of trained elements."""
        return sum(map(sum, self.groups))

    def saved(self, micro: int) -> float:
        """Bytes saved for the backward pass of a micro-batch."""
        return self.saved_fixed + self.saved_per_sample * micro


@dataclass(frozen=True)
class DummySamples:
    """All-zero samples of the right shape and number, for data that is not on this machine."""

    config: DataConfig
    rows: int = 0

    def __len__(self) -> int:
        return self.rows

    def batch(
        self, indices: Sequence[int] | npt.NDArray[np.int64], keys: Sequence[int] | npt.NDArray[np.int64]
    ) -> dict[str, Tensor]:
        """See `bellwether.trainer.data.Samples`."""
        return self.config.zeros(len(indices))


def measure(config: Config, data: Dataset, *, on_gpu: bool = True, micro: int | None = None) -> Profile:
    """Profile one forward and backward pass without allocating the model.

    The passes run with a micro-batch and with twice as many samples; the bytes of each segment are assumed to be linear in
    the micro-batch size. They are not where the logits of a vocabulary are computed in chunks in one of the two.

    Args:
        micro: samples; None: ``batch.micro``.
        data: its vocabulary, classes and channels are used; its samples are not read.
        on_gpu: use the operations of GPUs: attention that saves no score matrix, dropout that saves a byte mask. Else those
            of CPUs.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    # With a single sample torch skips copies of transposed tensors that every larger batch makes.
    micro = max(2, config.batch.most if micro is None else micro)
    with FakeTensorMode(), _as_on_gpu() if on_gpu else nullcontext(), _without_onednn():
        task = models.build(config.model, data, activation_checkpointing=config.engine.activation_checkpointing)
        _cast(task, DTYPES[config.engine.precision])
        task.train()
        groups = param_groups(task, config.optimizer)
        numels = [[p.numel() for _, p in group["params"]] for group in groups]
        shapes = [[tuple(p.shape) for _, p in group["params"]] for group in groups]
        matrices = [bool(group.get("muon")) for group in groups]
        frozen = [p.numel() for p in task.parameters() if not p.requires_grad]
        small, large = (_run_passes(task, config, size) for size in (micro, 2 * micro))
        flops = _flops(task, config, micro)

    def line(low: int, high: int) -> tuple[float, float]:
        slope = max(0.0, (high - low) / micro)
        return low - slope * micro, slope

    segments = []
    before = 0
    for gradient, low, high in zip((*small.gradients, 0), small.peaks, large.peaks, strict=True):
        segments.append(Segment(before, gradient, *line(low, high)))
        before += gradient
    return Profile(numels, matrices, segments, *line(small.saved, large.saved), flops, shapes, frozen)


@dataclass
class _Passes:
    gradients: list[int]  # elements of each gradient, in order
    peaks: list[int]  # peak bytes before each gradient, and after the last one
    saved: int = 0


def _run_passes(task: nn.Module, config: Config, micro: int) -> _Passes:
    passes = _Passes([], [])
    live = LiveBytes([*task.parameters(), *task.buffers()])
    with live, _discard_gradients(task, live, passes):
        loss = _loss(task, config, micro)
        passes.saved = live.bytes
        loss.backward()
    passes.peaks.append(live.reset_peak())
    return passes


def _flops(task: nn.Module, config: Config, micro: int) -> float:
    """FLOPs of both passes per sample. A separate run: the counter keeps alive what activation checkpointing frees."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        _loss(task, config, micro).backward()
    return counter.get_total_flops() / micro


def _loss(task: nn.Module, config: Config, micro: int) -> Tensor:
    losses, _ = task(**DummySamples(config.data).batch(range(micro), range(micro)))
    return losses.mean()


def _cast(task: nn.Module, dtype: torch.dtype) -> None:
    """`task.to(dtype)`, which torch does not support for fake parameters. Buffers keep their type, as in the engine."""
    cast: dict[nn.Parameter, nn.Parameter] = {}
    for module in task.modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if parameter not in cast:
                cast[parameter] = nn.Parameter(parameter.detach().to(dtype), parameter.requires_grad)
            module.register_parameter(name, cast[parameter])


@contextmanager
def _discard_gradients(task: nn.Module, live: LiveBytes, passes: _Passes) -> Iterator[None]:
    """Count each gradient only while it is computed: the engine decides who keeps it, and in which type."""

    def hook(parameter: nn.Parameter) -> None:
        passes.peaks.append(live.reset_peak())
        passes.gradients.append(parameter.numel())
        parameter.grad = None

    handles = [p.register_post_accumulate_grad_hook(hook) for p in task.parameters() if p.requires_grad]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _as_on_gpu() -> Iterator[None]:
    """Use the GPU operations of dropout and attention, whose shapes torch knows without a GPU.

    They replace torch's functions, because a TorchFunctionMode is not active while checkpointed activations are recomputed.
    """
    original = functional.dropout, functional.scaled_dot_product_attention
    functional.dropout, functional.scaled_dot_product_attention = _dropout, _attention  # type: ignore[assignment]
    try:
        yield
    finally:
        functional.dropout, functional.scaled_dot_product_attention = original


@contextmanager
def _without_onednn() -> Iterator[None]:
    """Lets torch compute an LSTM in operations whose bytes and products are seen, as oneDNN's single one has neither."""
    enabled = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(enabled)


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return torch.native_dropout(input, p, True)[0] if training and p > 0 else input


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, *, scale: float | None = None, **kwargs: Any,
) -> Tensor:  # fmt: skip
    aten = torch.ops.aten
    if query.dtype == torch.float32 or attn_mask is not None:  # not supported by the flash kernel
        efficient = aten._scaled_dot_product_efficient_attention
        return efficient(query, key, value, attn_mask, True, dropout_p, is_causal, scale=scale)[0]
    return aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)[0]

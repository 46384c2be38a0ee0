"""Estimates the gradient noise scale from gradients that training computes anyway.

McCandlish et al. 2018 (1812.06162, appendix A.1): the gradient of a batch of B samples is G plus noise of covariance
Sigma / B, so its squared norm is |G|^2 + tr(Sigma) / B on average. Two batch sizes determine both: here a micro-batch of each
rank, whose norm is computed during the backward pass, and the global batch, whose norm is the one used for clipping. ``B_simple = tr(Sigma) / |G|^2`` is the gradient noise scale. McCandlish et al. take it as a prediction of the critical batch
size; measured ones have been found several times larger or smaller (docs/measuring.md; 2505.23971).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

# Steps of the moving averages: the values of a single step are far too noisy, and their ratio would be biased.
HORIZON = 200
SHORT_HORIZON = 50  # follows changes during training, with twice the error

# A step whose gradient norm is this far above those before it, in standard deviations of their logarithms, and by this factor, is left
# out: the square of one spike in the loss would outweigh all other steps of the horizon.
_SPIKE_DEVIATIONS, _SPIKE_FACTOR = 6.0, 1.5
_USUAL_STEPS = 32  # over which the usual norm is averaged
_LASTING = 50  # consecutive steps after which a larger norm is the usual one


@dataclass
class SpikeFilter:
    """Recognizes steps whose gradient is far larger than usual."""

    steps: int = 0
    mean: float = 0.0  # of the logarithm of the squared norm
    variance: float = 0.0
    spikes: int = 0  # in a row

    def is_spike(self, square: float) -> bool:
        """Add a squared norm, above 0; returns whether it is one."""
        change = math.log(square) - self.mean
        if self.steps >= _USUAL_STEPS and change > max(
            _SPIKE_DEVIATIONS * math.sqrt(self.variance), 2 * math.log(_SPIKE_FACTOR)
        ):
            self.spikes += 1
            if self.spikes < _LASTING:
                return True
            self.steps, self.variance = 0, 0.0
        self.spikes = 0
        self.steps = min(self.steps + 1, _USUAL_STEPS)
        share = 1 / self.steps
        self.mean += share * change
        self.variance = (1 - share) * (self.variance + share * change * change)
        return False


@dataclass
class Estimate:
    """Moving averages of tr(Sigma) and |G|^2, each the mean over steps of an unbiased value, and of their products.

    Exponential averages over ``horizon`` steps; the noise scale is the ratio of the averages, as in the paper. All fields
    are numbers, so that a checkpoint can store them: `state`.
    """

    micro: int  # samples of a micro-batch
    batch: int  # samples of the global batch
    horizon: int = HORIZON
    weight: float = 0.0
    weight_squared: float = 0.0
    steps: int = 0
    trace: float = 0.0  # of the covariance of one sample's gradient
    square: float = 0.0  # of the norm of the true gradient
    trace_trace: float = 0.0  # averages of the products, for the standard error
    trace_square: float = 0.0
    square_square: float = 0.0

    def add(self, small: float, big: float) -> None:
        """Add the values of one step. Not for a step that fp16 skipped.

        Args:
            small: mean squared norm of the gradients of its micro-batches.
            big: squared norm of the gradient of its global batch.
        """
        if not (math.isfinite(small) and math.isfinite(big)):
            return
        trace = (small - big) / (1 / self.micro - 1 / self.batch)
        square = (self.batch * big - self.micro * small) / (self.batch - self.micro)
        keep = 1 - 1 / self.horizon
        self.steps += 1
        self.weight = keep * self.weight + 1
        self.weight_squared = keep**2 * self.weight_squared + 1
        share = 1 / self.weight
        self.trace += share * (trace - self.trace)
        self.square += share * (square - self.square)
        self.trace_trace += share * (trace * trace - self.trace_trace)
        self.trace_square += share * (trace * square - self.trace_square)
        self.square_square += share * (square * square - self.square_square)

    @property
    def scale(self) -> float | None:
        """B_simple in samples; None while an estimate is not positive."""
        return self.trace / self.square if self.square > 0 and self.trace > 0 else None

    @property
    def error(self) -> float | None:
        """Standard error of `scale`, from the variance between steps; None before there are 10 of them."""
        scale = self.scale
        if scale is None or self.steps < 10:
            return None
        # The variance of trace - scale * square, which has mean 0: the error of a ratio of means, to first order.
        variance = (
            (self.trace_trace - self.trace**2)
            - 2 * scale * (self.trace_square - self.trace * self.square)
            + scale**2 * (self.square_square - self.square**2)
        ) / self.square**2
        count = self.weight**2 / self.weight_squared
        return math.sqrt(max(0.0, variance) / (count - 1))

    def state(self) -> dict[str, float]:
        """For `load_state`."""
        return {key: value for key, value in asdict(self).items() if key not in ("micro", "batch", "horizon")}


class NoiseEstimate:
    """The noise scale over a long and a short horizon, without the steps of spikes."""

    def __init__(self, micro: int, batch: int) -> None:
        self.long, self.short = Estimate(micro, batch), Estimate(micro, batch, SHORT_HORIZON)
        self.small, self.big = SpikeFilter(), SpikeFilter()
        self.spikes = 0  # steps left out

    def add(self, small: float, big: float) -> None:
        """Add the values of one step, as `Estimate.add` takes them."""
        if not (math.isfinite(small) and math.isfinite(big) and min(small, big) > 0):
            return
        is_spike = [self.small.is_spike(small), self.big.is_spike(big)]
        if any(is_spike):
            self.spikes += 1
            return
        self.long.add(small, big)
        self.short.add(small, big)

    def set_batch(self, micro: int, batch: int) -> None:
        """The sizes of the steps that follow. The averages go on, as they do not depend on the sizes; what is a usual norm does."""
        for estimate in (self.long, self.short):
            estimate.micro, estimate.batch = micro, batch
        self.small, self.big = SpikeFilter(), SpikeFilter()

    def values(self) -> dict[str, float]:
        """``noise_scale`` with its ``noise_scale_error``, ``noise_scale_recent`` and ``noise_scale_spikes``, where there are estimates."""
        found = {
            "noise_scale": self.long.scale, "noise_scale_error": self.long.error, "noise_scale_recent": self.short.scale,
            "noise_scale_spikes": self.spikes or None,
        }  # fmt: skip
        return {key: value for key, value in found.items() if value is not None}

    def state(self) -> dict[str, float]:
        """For `load_state`: numbers by name."""
        parts = {"short": self.short.state(), "small": vars(self.small), "big": vars(self.big)}
        flat = {f"{part}_{key}": value for part, values in parts.items() for key, value in values.items()}
        return {**self.long.state(), **flat, "spikes": self.spikes}

    def load_state(self, state: dict[str, float]) -> None:
        """Restore `state`; one of a version without the short horizon starts that anew. The micro-batch size may differ."""
        targets = {"short": self.short, "small": self.small, "big": self.big}
        for key, value in state.items():
            part, _, name = key.partition("_")
            if part in targets:
                setattr(targets[part], name, value)
            elif key == "spikes":
                self.spikes = int(value)
            else:
                setattr(self.long, key, value)


class NoiseScale:
    """Measures the noise scale in the backward passes of training. No extra pass: it costs the norm of each gradient in the first backward
    pass of a measured step, whose micro-batch stands for the others.

    In your own training loop, under DDP or DeepSpeed::

        noise = NoiseScale(model, micro=32, batch=32 * accumulation * world_size)
        ...
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)      # or engine.get_global_grad_norm()
        noise.step(norm)
        ...
        print(noise.read())                                                # now and then

    Args:
        model: hooks are registered on its trainable parameters while a measured backward pass is due.
        micro: samples of each backward pass of each rank.
        batch: samples of an update, over all ranks.
        every: measure each so many steps, beginning with the first.

    Raises:
        ValueError: if a micro-batch is the whole batch, from which the noise cannot be estimated.
    """

    def __init__(self, model: nn.Module, micro: int, batch: int, every: int = 1) -> None:
        if not 1 <= micro < batch:
            raise ValueError(f"micro={micro}: must be at least 1, and less than batch={batch}")
        if every < 1:
            raise ValueError(f"every={every}: must be at least 1 step")
        self.estimate = NoiseEstimate(micro, batch)
        self._micro, self._batch, self._every = micro, batch, every
        self._measures = True  # the present sizes
        self._taken = 0  # steps, measured or not
        self._params = [p for p in model.parameters() if p.requires_grad]
        self._hooks: list[RemovableHandle] = []
        self._norms: dict[int, Tensor] = {}  # of the gradients of the measured pass, by the number of the parameter
        self._small: list[Tensor] = []
        self._big: list[Tensor] = []
        self._register()

    def set_batch(self, micro: int, batch: int) -> None:
        """Change the sizes between two steps, where the batch grows. Steps of a single micro-batch are not measured. Collective."""
        self.read()
        self.close()
        self._measures, self._micro, self._batch = micro < batch, micro, batch
        if self._measures:
            self.estimate.set_batch(micro, batch)
        self._register()

    def _register(self) -> None:
        """Watch the next backward pass if its step is to be measured."""
        if self._measures and self._taken % self._every == 0:
            # A hook gets the gradient of this backward pass alone, before it is accumulated, reduced or sharded.
            self._hooks = [p.register_hook(partial(self._record, number)) for number, p in enumerate(self._params)]

    def _record(self, number: int, gradient: Tensor) -> None:
        if number in self._norms:  # the next pass has begun: the first one had no gradient for some parameter
            self.close()
            return
        # float32, as the squares of fp16 would overflow.
        self._norms[number] = torch.linalg.vector_norm(gradient.detach(), dtype=torch.float32)
        if len(self._norms) == len(self._params):
            self.close()

    def step(self, norm: float | Tensor, factor: float = 1.0) -> None:
        """Record the end of a step.

        Args:
            norm: of the gradient of the global batch, before clipping; a tensor is not synchronized here.
            factor: of the loss, if the norm does not include it: the loss scale of fp16.
        """
        self.close()
        if self._norms:
            # In the order of the parameters: that of the hooks may differ after a restart, and with it the rounding.
            square = torch.stack([self._norms[number] for number in sorted(self._norms)]).double().square().sum()
            world_size = dist.get_world_size() if dist.is_initialized() else 1
            accumulation = self._batch // (self._micro * world_size)
            # The loss of each micro-batch is divided by their number.
            self._small.append(square * (accumulation / factor) ** 2)
            self._big.append(torch.as_tensor(norm, dtype=torch.float64, device=square.device).square())
            self._norms = {}
        self._taken += 1
        self._register()

    def read(self) -> dict[str, float]:
        """The values of `NoiseEstimate.values`, in samples, if there are estimates yet. Collective."""
        if self._small:
            small, big = torch.stack(self._small), torch.stack(self._big)
            if dist.is_initialized():
                dist.all_reduce(small)
                small /= dist.get_world_size()
            for values in zip(small.tolist(), big.tolist(), strict=True):
                self.estimate.add(*values)
            self._small, self._big = [], []
        found = self.estimate.values()
        return {**found, "noise_scale_every": self._every} if found and self._every > 1 else found

    def state(self) -> dict[str, float]:
        """For `load_state`: numbers by name."""
        return {**self.estimate.state(), "taken": self._taken}

    def load_state(self, state: Mapping[str, float]) -> None:
        """Restore `state`. The micro-batch size and the interval may differ."""
        self.close()
        self._taken = int(state.get("taken", 0))
        self.estimate.load_state({key: value for key, value in state.items() if key != "taken"})
        self._register()

    def close(self) -> None:
        """Remove the hooks; the next `step` registers them again where they are due."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

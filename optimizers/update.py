"""What all optimizers share: direction -> decay -> trust ratio -> learning rate, over shards."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from bellwether.optimizers import kernels
from bellwether.optimizers.decay import NEED_PEAK, with_decay
from bellwether.optimizers.kernels.tensor_list import STATE, Coefficients, Kernel, Layout, TensorList
from bellwether.optimizers.sharded import Attachment, Group, ShardedOptimizer, Work
from bellwether.optimizers.shards import dtensor, zero_redundancy
from bellwether.optimizers.shards.layout import (
    ShardLayout,
    local,
    local_gradient,
    sqrt,
    sum_by_process_group,
    sum_over_ranks,
)
from bellwether.optimizers.validation import validate

Rule = Callable[[Group, int], Coefficients]

# Kept at most: gradients that come and go, as of experts, make ever new combinations of tensors.
_LAYOUTS = 256


@dataclass
class _Job:
    """Tensors of one group that have come equally far."""

    group: Group
    coefficients: Coefficients
    shards: list[ShardLayout]
    process_group: dist.ProcessGroup | None
    batch: TensorList
    kernel: Kernel


class Composed(ShardedOptimizer):
    """w <- w - lr ratio (direction(g) + decay), the parts chosen by subclass and param group.

    State of each tensor: ``step`` (float32 scalar, on the CPU), and the moments under torch's names, as the tensor.
    """

    decays: ClassVar[tuple[str, ...]]  # the forms of decay that make sense with it
    adapts_gradient = False  # whether the trust ratio scales the gradient, before the momentum, as in LARS

    @staticmethod
    def rule(group: Group, step: int) -> Coefficients:
        """One of `bellwether.optimizers.rules`."""
        raise NotImplementedError

    def __init__(self, params: Any, *, kernel: str = "auto", prenormalize: bool = False, **defaults: Any) -> None:
        kernels.check(kernel)
        self.kernel, self.prenormalize = kernel, prenormalize
        self._is_part = zero_redundancy.is_constructing()
        self._forget()
        validate(defaults, self.decays)
        super().__init__(params, defaults)

    def _forget(self) -> None:
        self._names: dict[Tensor, str] = {}  # of the parameters as given, until an engine replaces them
        self._shards: dict[Tensor, ShardLayout] | None = None
        self._layouts: dict[tuple[bool, tuple[int, ...]], tuple[Layout, dict[str, object]]] = {}
        self._ratios: dict[str, tuple[Tensor, int]] = {}  # those of a step are one tensor, on the device
        self._attachment: Attachment | None = None

    def __getstate__(self) -> dict[str, Any]:
        ours = {"kernel": self.kernel, "prenormalize": self.prenormalize, "_is_part": self._is_part}
        ours["attached"] = self._attachment is not None
        return {**super().__getstate__(), **ours}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """For pickle and deepcopy, and for torch's load_state_dict, which leaves the tensors as they are."""
        attached = state.pop("attached", None)
        super().__setstate__(state)
        self._adopt()
        if attached is None:
            return
        self._forget()
        if not attached:  # an engine's shards cannot be copied: step() asks for attach again
            for index, group in enumerate(self.param_groups):
                self._know(group, index)

    def _adopt(self) -> None:
        """Complete what torch's optimizer of the same name has saved, of whatever version."""
        for group in self.param_groups:
            if "decay" in group:
                continue
            if "decoupled_weight_decay" in group:
                group["decay"] = "decoupled" if group["decoupled_weight_decay"] else "l2"
            for key, value in self.defaults.items():
                group.setdefault(key, value)
            if group["decay"] in NEED_PEAK:
                group.setdefault("peak_lr", float(group.get("initial_lr", group["lr"])))  # a schedule's, if it had one
        for state in self.state.values():
            step = state.get("step", 1 if "momentum_buffer" in state else 0)  # its SGD does not count: past the first
            if isinstance(step, Tensor):  # torch.load(map_location="cuda") leaves a GPU's, to be waited for each time
                state["step"] = step.to("cpu", torch.float32)
            elif step:
                state["step"] = torch.tensor(float(step), dtype=torch.float32, device="cpu")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            validate(group, self.decays, inherited_bounds=self.defaults["trust_bounds"])
        except ValueError:
            self.param_groups.pop()  # who goes on without it must not train it
            raise
        if group["decay"] in NEED_PEAK:
            group.setdefault("peak_lr", float(group["lr"]))
        self._know(group, len(self.param_groups) - 1)

    def _know(self, group: Group, index: int) -> None:
        """Remember the parameters as given: an engine that shards puts other tensors in their place."""
        names = group.get("param_names", ())
        if len(names) != len(group["params"]):  # an engine that takes a part of the group leaves all names there
            names = [f"{index}.{i}" for i in range(len(group["params"]))]
        taken = set(self._names.values())  # two models may have the same names
        names = [f"{index}.{name}" if name in taken else name for name in names]
        self._names.update(zip(group["params"], names, strict=True))
        self._shards = None
        self._layouts.clear()  # they go by the identity of shards, which new ones may inherit from these

    @property
    def shards(self) -> Sequence[ShardLayout]:
        return list(self._known.values())

    @property
    def _known(self) -> dict[Tensor, ShardLayout]:
        # Not before it is needed: all parameters together decide over which ranks DTensors are summed.
        if self._shards is None:
            self._shards = {shard.tensor: shard for shard in dtensor.shards(self._names)}
        return self._shards

    def use(self, attachment: Attachment) -> None:
        self._forget()
        self._shards = {shard.tensor: shard for shard in attachment.shards}
        self._attachment = attachment

    @property
    def attachment(self) -> Attachment | None:
        return self._attachment

    def trust_ratios(self) -> dict[str, float]:
        tensors = {id(ratios): ratios for ratios, _ in self._ratios.values()}
        values = {key: ratios.tolist() for key, ratios in tensors.items()}
        return {name: values[id(ratios)][i] for name, (ratios, i) in self._ratios.items()}

    def _update(self, work: Work, rule: Rule | None = None) -> None:
        if self._attachment is not None:
            self._check_groups()
        jobs = self._jobs(work, rule or self.rule)
        if self.prenormalize:
            norm = self._gradient_norm(jobs)
            for job in jobs:
                job.coefficients = replace(job.coefficients, grad=job.coefficients.grad / norm)
        adapted = []
        for job in jobs:
            if not job.group["trust_ratio"]:
                job.kernel.step(job.batch, job.coefficients)
            elif self._is_one_call(job):
                self._adapt(job)
            else:
                adapted.append(job)
        # The norms of all, then the collective, then the weights of all.
        for job, sums in self._summed([(job, self._norms(job)) for job in adapted]):
            self._descend(job, sums)

    def _jobs(self, work: Work, rule: Rule) -> list[_Job]:
        found: dict[Any, Work] = {}
        steps: dict[Any, int] = {}
        for group, tensor in work:
            # A step count for each tensor: engines call step() once a sub-group, with the others left out.
            step = self._count(tensor)
            weights = local(tensor)
            key = (id(group), step, self._known[tensor].process_group, weights.device, weights.dtype)
            found.setdefault(key, []).append((group, tensor))
            steps[key] = step
        jobs = []
        for key, pairs in found.items():
            group, shards = pairs[0][0], [self._known[tensor] for _, tensor in pairs]
            c = with_decay(rule(group, steps[key]), group, steps[key])
            batch = self._batch(shards, c, by_parameter=group["trust_ratio"] or self.prenormalize)
            jobs.append(_Job(group, c, shards, shards[0].process_group, batch, kernels.choose(self.kernel, batch)))
        return jobs

    def _check_groups(self) -> None:
        first = [group["param_names"][0] for group in self.param_groups if group.get("param_names")]
        if len(set(first)) < len(first):
            raise RuntimeError(
                "several param groups have the same param_names: DeepSpeed's universal checkpoint at ZeRO stage 3 has "
                "given all groups the options of the first one, its weight decay and trust ratio too. Keep the options "
                "before load_checkpoint() and update() each group with its own after it"
            )

    def _count(self, tensor: Tensor) -> int:
        if tensor.grad.is_sparse:  # type: ignore[union-attr]
            raise RuntimeError(f"{type(self).__name__} needs dense gradients: build the embedding with sparse=False")
        state = self.state[tensor]
        if "step" not in state:
            state["step"] = torch.tensor(0.0, dtype=torch.float32, device="cpu")
        # Not in place: DeepSpeed's universal checkpoint gives all tensors the same step tensor.
        state["step"] = state["step"] + 1
        return int(state["step"].item())

    def _batch(self, shards: list[ShardLayout], c: Coefficients, by_parameter: bool) -> TensorList:
        key = (by_parameter, tuple(id(shard) for shard in shards))
        if key not in self._layouts:
            self._layouts[key] = (Layout.of(shards, by_parameter), {})
        layout, tables = self._layouts[key] = self._layouts.pop(key)  # the last one used stands last
        if len(self._layouts) > _LAYOUTS:
            del self._layouts[next(iter(self._layouts))]
        states = []
        for name in STATE[c.formula]:
            for shard in shards:
                state = self.state[shard.tensor]
                if name not in state:
                    state[name] = torch.zeros_like(shard.tensor, memory_format=torch.preserve_format)
            states.append([local(self.state[shard.tensor][name]) for shard in shards])
        weights = [local(shard.tensor) for shard in shards]
        grads = [_like(local_gradient(shard.tensor), w) for shard, w in zip(shards, weights, strict=True)]
        return TensorList(weights, grads, states, layout, tables)

    def _gradient_norm(self, jobs: list[_Job]) -> float:
        """The norm of all gradients together, over all ranks; 1 where it is 0."""
        known = self._attachment.gradient_norm if self._attachment else None
        if known is not None:
            return known() or 1.0
        sums = self._summed([(job, job.kernel.gradient_norms(job.batch, job.coefficients)) for job in jobs])
        total = sum((s[1].sum() for _, s in sums), torch.zeros((), dtype=torch.float64, device="cpu"))
        spread = self._attachment.spread_over if self._attachment else None
        if spread is not None:
            total = sum_over_ranks([total], spread)[0]
        return float(sqrt(total)) or 1.0

    def _norms(self, job: _Job) -> Tensor:
        norms = job.kernel.gradient_norms if self.adapts_gradient else job.kernel.advance
        return norms(job.batch, job.coefficients)

    def _summed(self, found: list[tuple[_Job, Tensor]]) -> list[tuple[_Job, Tensor]]:
        """Sums of segments [2, segments] to sums of whole parameters [2, parameters]: one all-reduce a process group."""
        sums = sum_by_process_group([(job.process_group, job.batch.layout.by_slot(s)) for job, s in found])
        return [(job, s) for (job, _), s in zip(found, sums, strict=True)]

    def _is_one_call(self, job: _Job) -> bool:
        """Whether a kernel can do both passes over the weights at once: not where the norms are of several pieces."""
        whole = job.process_group is None and not job.batch.layout.repeats
        return whole and not self.adapts_gradient and hasattr(job.kernel, "adapt")

    def _adapt(self, job: _Job) -> None:
        bounds = job.group["trust_bounds"] or (0.0, math.inf)
        ratios = job.kernel.adapt(job.batch, job.coefficients, float(job.group["lr"]), bounds)  # type: ignore[attr-defined]
        self._keep(job, job.batch.layout.by_slot(ratios[None])[0])

    def _keep(self, job: _Job, ratios: Tensor) -> None:
        names = [p.name for shard in job.shards for p in shard.parameters]
        self._ratios.update((name, (ratios, i)) for i, name in enumerate(names))

    def _descend(self, job: _Job, sums: Tensor) -> None:
        weight, other = sqrt(sums)
        ratios = torch.where((weight == 0) | (other == 0), 1.0, self._ratio(weight, other, job.group))
        self._keep(job, ratios)
        layout = job.batch.layout
        rates = (ratios * float(job.group["lr"]))[layout.slot_on(ratios.device)]
        if self.adapts_gradient:
            job.kernel.step(job.batch, job.coefficients, rates)
        else:
            job.kernel.descend(job.batch, job.coefficients, rates)

    def _ratio(self, weight: Tensor, other: Tensor, group: Group) -> Tensor:
        """The trust ratio of each parameter, float64 [parameters], from the norms of weights and update or gradient."""
        ratio = weight / other
        return ratio if group["trust_bounds"] is None else ratio.clamp(*group["trust_bounds"])

    @property
    def sums_over_all(self) -> bool:
        return self.prenormalize

    @property
    def is_part(self) -> bool:
        return self._is_part and self._attachment is None

    def _is_rehearsal(self, tensors: list[Tensor]) -> bool:
        if self._attachment is not None:
            if not all(tensor in self._known for tensor in tensors):
                raise RuntimeError(
                    f"{type(self).__name__}.step() on tensors that came after attach: call optimizers.attach(engine) again"
                )
            return False
        if all(tensor in self._names for tensor in tensors):
            return False
        # DeepSpeed's 16-bit stage-0 wrapper calls step() with zero gradients while it is built.
        if not any(tensor.grad.any() for tensor in tensors):  # type: ignore[union-attr]
            return True
        raise RuntimeError(
            f"{type(self).__name__}.step() on tensors that an engine put in place of the parameters: call "
            "bellwether.optimizers.attach(engine) once, right after deepspeed.initialize(). Without it the optimizer cannot know "
            "which parameter each element belongs to, and trust ratios and state would be wrong."
        )


def _like(grad: Tensor, weights: Tensor) -> Tensor:
    """A gradient laid out in memory as its weights."""
    if grad.stride() == weights.stride() or (grad.is_contiguous() and weights.is_contiguous()):
        return grad
    return torch.empty_like(weights, dtype=grad.dtype).copy_(grad)

"""The interface of every optimizer of this package, wrapped or not, to engines, checkpoints and logs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from bellwether.optimizers.rounding import COMPENSATION
from bellwether.optimizers.shards.layout import ShardLayout
from bellwether.optimizers.shards.verification import verify
from bellwether.optimizers.state_dicts import VERSION, VERSION_KEY

Group = dict[str, Any]
Work = list[tuple[Group, Tensor]]  # tensors with a gradient, each with its param group


@dataclass(frozen=True)
class Attachment:
    """How an engine has sharded the parameters, as `bellwether.optimizers.attach` finds it."""

    shards: Sequence[ShardLayout]  # that this rank updates, in the engine's order
    gradient_norm: Callable[[], float] | None = (
        None  # global, of the gradients that step() sees, if the engine knows it
    )
    spread_over: dist.ProcessGroup | None = None  # ranks that update different whole parameters
    publish: Callable[[], None] | None = None  # copies the shards' weights into the model; collective
    unfrozen: Callable[[], list[str]] | None = None  # parameters that require gradients only since the engine was built


class ShardedOptimizer(Optimizer):
    """A torch optimizer that knows which slice of which parameter lies where."""

    @property
    def name(self) -> str:
        """Class name with wrappers, as in ``Lookahead(Lamb)``."""
        return type(self).__name__

    @property
    def shards(self) -> Sequence[ShardLayout]:
        """The tensors that this optimizer updates on this rank, in the engine's order."""
        raise NotImplementedError

    def shard_of(self, tensor: Tensor) -> ShardLayout:
        """The shard that holds a tensor of the param groups."""
        raise NotImplementedError

    @property
    def given(self) -> Sequence[Tensor]:
        """The parameters as given, before an engine put tensors of its own in their place."""
        raise NotImplementedError

    def use(self, attachment: Attachment) -> None:
        """Update these shards from now on. `bellwether.optimizers.attach` calls it."""
        raise NotImplementedError

    @property
    def attachment(self) -> Attachment | None:
        """The last argument of `use`, if any."""
        raise NotImplementedError

    def use_shards(
        self,
        shards: Iterable[ShardLayout],
        *,
        spread_over: dist.ProcessGroup | None = None,
        publish: Callable[[], None] | None = None,
    ) -> None:
        """Attach to an engine that this package does not know.

        Args:
            shards: the tensors that the engine puts into the param groups, with their layouts.
            spread_over: ranks that update different whole parameters, if any.
            publish: copies the shards' weights into the model, if they are not the model's own. Collective.

        Collective: one all-reduce for each process group, to verify that the slices of all ranks cover each parameter once.

        Raises:
            RuntimeError: if they do not, on all ranks of the process group.
        """
        shards = list(shards)
        verify(shards if spread_over is None else (), engine="the arguments of use_shards")
        self.use(Attachment(shards, spread_over=spread_over, publish=publish))

    def trust_ratios(self) -> dict[str, float]:
        """The trust ratio of each parameter in the last step that updated it, by name. Synchronizes with the device.

        Covers the parameters that this rank updates or holds a slice of.
        """
        raise NotImplementedError

    def forget_trust_ratios(self) -> None:
        """Clear what `trust_ratios` returns, until a step computes ratios again."""
        raise NotImplementedError

    def state_tensors(self, group: Group) -> int:
        """Number of state tensors of the size of the weights that a param group needs, for memory estimates."""
        raise NotImplementedError

    def whole_state(self, shape: Sequence[int], group: Group) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the state tensors of a parameter that do not have its shape, and are not sharded."""
        return {}

    def scalars(self) -> dict[str, float]:
        """State apart from tensors, for checkpoints that store state by parameter."""
        return {}

    def load_scalars(self, scalars: dict[str, float]) -> None:
        """Restore what `scalars` returned."""

    @property
    def needs_global_sums(self) -> bool:
        """Whether an update needs sums over all parameters, and therefore over all ranks."""
        return False

    @property
    def needs_whole_parameters(self) -> bool:
        """Whether the update of an element depends on the whole parameter: on its norm, or on the matrix."""
        return False

    @property
    def max_grad_norm(self) -> float | None:
        """The upper bound of the global gradient norm, if the optimizer clips."""
        return None

    @property
    def is_partial(self) -> bool:
        """Whether this optimizer has some of the parameters, in a ZeroRedundancyOptimizer, and `attach` was not called."""
        return False

    def mark_partial(self) -> None:
        """Record that other ranks update other parameters. Called when a ZeroRedundancyOptimizer steps."""
        raise NotImplementedError

    def state_dtype(self, tensor: Tensor, name: str) -> torch.dtype:
        """The dtype of a state tensor, which may be wider than the weights' and is the same after any way of loading."""
        # 16 bits would lose most of what a moment with beta 0.999 gets in a step; what Kahan summation keeps is small.
        return tensor.dtype if name == COMPENSATION else torch.promote_types(tensor.dtype, torch.float32)

    def state_dict(self) -> dict[str, Any]:
        """As in torch; each group has the version of the state, and the options of wrappers, too."""
        saved: dict[str, Any] = super().state_dict()
        for group in saved["param_groups"]:
            group.update(self.saved_options())
        return saved

    def saved_options(self) -> dict[str, Any]:
        """What `state_dict` adds to each group."""
        return {VERSION_KEY: VERSION}

    def upgraded_state_dict(self, given: dict[str, Any]) -> dict[str, Any]:
        """A state dict in the form of this version, checked. Called by `load_state_dict`."""
        return given

    def own_state_names(self) -> set[str]:
        """State tensors that a wrapper adds to those of the rule."""
        return set()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch, of torch's, apex's and timm's optimizers too. State keeps a dtype wider than the weights'.

        Raises:
            ValueError: for the state of another optimizer or of a newer version.
        """
        loaded: list[dict[str, Any]] = []

        def upgrade(_: Optimizer, given: dict[str, Any]) -> dict[str, Any]:
            loaded.append(self.upgraded_state_dict(given))
            return loaded[0]

        # The last hook, so that it sees what the user's hooks return.
        handle = self.register_load_state_dict_pre_hook(upgrade)
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
        keys = [key for group in loaded[0]["param_groups"] for key in group["params"]]
        tensors = [tensor for group in self.param_groups for tensor in group["params"]]
        for key, tensor in zip(keys, tensors, strict=True):
            state = self.state.get(tensor, {})
            for name, value in loaded[0]["state"].get(key, {}).items():
                # torch has rounded it to the dtype of the weights.
                if name in state and name != "step" and isinstance(value, Tensor) and value.is_floating_point():
                    state[name] = value.to(device=tensor.device, dtype=self.state_dtype(tensor, name))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every tensor that has a gradient.

        Collectives: one all-reduce if a sharded parameter has a trust ratio, and one more to normalize the gradients if
        the engine does not know their norm.

        Raises:
            RuntimeError: if an engine has put its own tensors into the param groups and `bellwether.optimizers.attach`
                was not called: trust ratios would be silently wrong. Also for sparse gradients.
        """
        is_captured = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
        if is_captured and not all(group.get("capturable") for group in self.param_groups):
            raise RuntimeError(
                f"{self.name}.step() in a CUDA graph capture: step counts and rates are computed on the host, and the graph would "
                "replay this step's for ever; write capturable=True, or call step() outside of the graph"
            )
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        work = [(group, p) for group in self.param_groups for p in group["params"] if p.grad is not None]
        if self.is_partial and self.needs_global_sums:
            raise RuntimeError(
                f"{self.name} inside ZeroRedundancyOptimizer needs the sums of all ranks: call optimizers.attach(optimizer)"
            )
        if not self.is_dry_run([p for _, p in work]):
            self.update(work)
        return loss

    def update(self, work: Work) -> None:
        """Update these tensors, which all have gradients."""
        raise NotImplementedError

    def is_dry_run(self, tensors: list[Tensor]) -> bool:
        """Whether this step is an engine's dry run, to be skipped.

        Raises:
            RuntimeError: for a real step on tensors whose layout is not known.
        """
        raise NotImplementedError

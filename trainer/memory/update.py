"""Bytes that an optimizer's update takes on a rank while it runs, beside weights, gradients and state.

DeepSpeed copies the gradients of a param group and updates one group after the other; stage 0 and BF16_Optimizer update all at once.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from bellwether.optimizers import ShardedOptimizer
from bellwether.optimizers.muon import newton_schulz_cost
from bellwether.optimizers.rule import Rule
from bellwether.optimizers.shards.exchange import Key, assign_owners, chunk_count, in_chunks
from bellwether.optimizers.swats import Swats

Shape = tuple[int, ...]

# What `bellwether.optimizers.rounding` makes of the largest slice, where no compiled kernel rounds: indices and random numbers in
# int64, with the numbers of the slice before.
_RANDOM_BYTES = 48
_REFERENCE_BYTES = 8  # two temporary tensors of a rule without a compiled kernel


@dataclass(frozen=True)
class UpdateCosts:
    """The properties of an optimizer that decide the memory and traffic of its update."""

    direction_bytes: int = 0  # of an element of the directions of matrices, which ranks exchange; 0: there are none
    iterations: int = 0  # of each matrix
    compares: bool = False  # whether the weights are compared with a copy from before the update
    compiled: bool = True  # whether a compiled kernel updates what is no matrix

    @classmethod
    def of(cls, optimizer: ShardedOptimizer) -> UpdateCosts:
        rule = optimizer.base if isinstance(optimizer, Swats) else optimizer
        assert isinstance(rule, Rule)
        group = optimizer.param_groups[0]
        dtype = rule.whole_dtype(group) if rule.needs_whole else None
        other, options = rule.of_group({**group, "muon": False})
        compiled = other.coefficients(options, 1) is not None
        size, iterations = (dtype.itemsize, group["ns_steps"]) if dtype is not None else (0, 0)
        return cls(size, iterations, isinstance(optimizer, Swats), compiled)


@dataclass(frozen=True)
class GroupUpdate:
    """A param group, or several that are updated together, on the rank that holds the most."""

    costs: UpdateCosts
    shapes: Sequence[Shape]  # of the parameters
    part: int  # elements of the rank
    tensors: Sequence[int]  # elements of each tensor in which they lie; of one if they are flat
    largest_slice: int  # elements of one parameter
    world_size: int  # ranks over which they are split; 1: each rank updates all
    are_matrices: bool
    rounding: str = ""  # stochastic_rounding or kahan_sum, of 16-bit weights
    casts: bool = False  # whether gradients have 16 bits, and no copies in fp32

    @property
    def bytes(self) -> float:
        """The most at one moment."""
        is_compiled = self.costs.compiled and not self.are_matrices
        wide = 0.0 if not self.rounding else (4.0 if is_compiled else 8.0) * self.part  # weights and gradients in fp32
        if self.are_matrices:
            at_most = self._matrices()
        elif is_compiled:
            at_most = 4.0 * (self.part + max(self.tensors, default=0)) if self.costs.compares else 0.0
        else:
            at_most = float(_REFERENCE_BYTES * max(self.tensors, default=0))
        rounds = 0.0
        if self.rounding == "stochastic_rounding" and not is_compiled:
            rounds = 2.0 * self.part + _RANDOM_BYTES * float(self.largest_slice)
        return wide + max(at_most, rounds)

    def _matrices(self) -> float:
        """As `bellwether.optimizers.whole_parameters` computes directions, exchanges and applies them."""
        size, largest = self.costs.direction_bytes, max(self.tensors, default=0)
        directions = float(size * self.part)
        casts = self.casts and not self.rounding
        making = size * float(self.part - largest) + max(8 if casts else 4, 4 + size if size < 4 else 4) * largest
        if self.world_size == 1:  # the updates of two tensors exist for a moment
            largest_two = sum(sorted(self.tensors)[-2:])
            workspace = max((newton_schulz_elements(shape) for shape in self.shapes), default=0)
            return max(making, directions + max(4.0 * largest_two, size * float(workspace)))
        return max(
            making, directions + max(4.0 * largest, size * exchanged_elements(self.shapes, self.part, self.world_size))
        )


def newton_schulz_elements(shape: Shape) -> int:
    """Elements that the iteration of Newton and Schulz holds beside its input: two matrices and two squares."""
    rows, columns = sorted((shape[0], math.prod(shape[1:])))
    return 2 * rows * (columns + rows)


def exchanged_elements(shapes: Sequence[Shape], part: int, world_size: int) -> float:
    """Most elements in buffers of the rank that owns the most, as `Exchange.run` sends, computes and returns chunks."""
    costs, owners = _owners(shapes, world_size)
    numels = {key: math.prod(shapes[key[1]]) for key in costs}
    total = sum(numels.values())
    chunks = in_chunks(owners, costs, chunk_count(total, world_size))
    sent = [part * sum(numels[key] for key in chunk) / total for chunk in chunks]
    owned: dict[int, list[tuple[int, int]]] = defaultdict(lambda: [(0, 0)] * len(chunks))  # elements, workspace
    for i, chunk in enumerate(chunks):
        for key in chunk:
            elements, workspace = owned[owners[key]][i]
            more = newton_schulz_elements(shapes[key[1]])
            owned[owners[key]][i] = (elements + numels[key], max(workspace, more))
    most = 0.0
    for of_rank in owned.values():
        both = [s + elements for s, (elements, _) in zip(sent, of_rank, strict=True)]
        neighbours = zip([0.0, *both], both, [*both[1:], 0.0], of_rank, strict=False)
        for before, now, after, (elements, workspace) in neighbours:
            most = max(most, before + after + elements + max(now, workspace))
    return most


def multiplications(shapes: Sequence[Shape], world_size: int) -> float:
    """Of one iteration over the matrices of the rank that owns the most work."""
    costs, owners = _owners(shapes, world_size)
    loads: dict[int, float] = defaultdict(float)
    for key, owner in owners.items():
        loads[owner] += costs[key]
    return max(loads.values(), default=0.0)


def _owners(shapes: Sequence[Shape], world_size: int) -> tuple[dict[Key, float], dict[Key, int]]:
    """Costs and owners of matrices, as of ranks of which none holds most of one."""
    costs = {(0, i): newton_schulz_cost(shape) for i, shape in enumerate(shapes)}
    return costs, assign_owners(costs, {}, world_size)

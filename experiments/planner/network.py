"""Time of collectives: alpha + bytes / beta for each hop of a ring or a tree, in a node first, then between nodes.

Hockney's model (1994) with the algorithms of Thakur et al. 2005 and of NCCL, which reduces within a node, lets each GPU of a
node carry its share to the other nodes, and gathers within the node.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from bellwether.experiments.planner.activations import Profile
from bellwether.experiments.planner.memory import ALLREDUCE, Sharding

Kind = Literal["all-reduce", "all-gather", "reduce-scatter"]

_REUSE = 1_000_000_000  # DeepSpeed's stage3_max_reuse_distance and stage3_max_live_parameters


@dataclass(frozen=True)
class Network:
    """What links GPUs. Bandwidths are bytes a second of one GPU in one direction, as reached."""

    per_node: int
    link: float
    port: float
    hop_in: float = 3e-6  # seconds, between GPUs of a node
    hop_out: float = 10e-6  # seconds, between nodes
    start: float = 20e-6  # seconds to start a collective

    def seconds(self, kind: Kind, size: float, world_size: int) -> float:
        """Of one collective over all ranks, on ``size`` bytes: those that each rank holds before or after it."""
        inside = min(self.per_node, world_size)
        outside = math.ceil(world_size / inside)
        halves = 2 if kind == "all-reduce" else 1
        time = self.start if world_size > 1 else 0.0
        if inside > 1:
            time += halves * ((inside - 1) / inside * size / self.link + (inside - 1) * self.hop_in)
        if outside > 1:
            share = size / inside
            ring = halves * ((outside - 1) / outside * share / self.port + (outside - 1) * self.hop_out)
            tree = 2 * (share / self.port + math.log2(outside) * self.hop_out)
            time += min(ring, tree) if kind == "all-reduce" else ring
        return time


@dataclass(frozen=True)
class Collective:
    """What a step does ``count`` times: ``size`` is the sum over them, in bytes."""

    kind: Kind
    size: float
    count: int
    hidden: bool  # whether it runs beside computation

    def sent(self, world_size: int) -> float:
        """Bytes that leave a rank, by the ring's count: 2 (W - 1) / W of the size to all-reduce, half of it else."""
        return (2 if self.kind == "all-reduce" else 1) * (world_size - 1) / world_size * self.size

    def seconds(self, network: Network, world_size: int) -> float:
        return self.count * network.seconds(self.kind, self.size / self.count, world_size)


def collectives(profile: Profile, how: Sharding, accumulation: int) -> list[Collective]:
    """Those of one step. What the optimizer adds, 16 bytes a trust ratio, is left out.

    DeepSpeed's stages 1 and 2 all-reduce their buckets and take their part of the result
    (``use_multi_rank_bucket_allreduce``), stage 2 after each micro-batch. Stage 3 gathers parameters once a micro-batch as
    long as the model has less than 1e9, which stay until the backward pass has used them, and twice beyond.
    """
    size, n = float(how.weight * profile.elements), profile.elements

    def times(bucket: int) -> int:
        return math.ceil(n / max(1, bucket))

    if how.stage == 0:
        return [Collective("all-reduce", size, times(ALLREDUCE), False)]
    if how.stage == 3:
        small = sum(e for group in profile.groups for e in group if e < how.persistence)
        passes = accumulation * (2 if n > _REUSE else 1)
        fetched = how.weight * float(n - small)
        found = [
            Collective("reduce-scatter", accumulation * size, accumulation * times(how.reduce_bucket), how.overlap)
        ]
        if fetched:
            found.append(Collective("all-gather", passes * fetched, passes * times(how.prefetch), True))
        # The small ones, which are kept whole, come back after the update.
        return [*found, Collective("all-gather", how.weight * float(small), 1, False)] if small else found
    rounds = accumulation if how.stage == 2 else 1
    bucket = ALLREDUCE if how.is_bf16_optimizer else how.reduce_bucket
    return [
        Collective("all-reduce", rounds * size, rounds * times(bucket), how.overlap and not how.is_bf16_optimizer),
        Collective("all-gather", size, max(len(profile.groups), times(how.allgather_bucket)), False),
    ]

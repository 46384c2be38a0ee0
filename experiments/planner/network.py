"""The time of collectives: alpha + bytes / beta per hop of a ring or a tree, first within a node, then between nodes.

Hockney's model (1994) with the algorithms of Thakur et al. 2005 and of NCCL (from 2.23 on for the trees of all-gathers): reduce within the node, exchange each GPU's share
between the nodes, gather within the node.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from bellwether.optimizers.shards.exchange import chunk_count
from bellwether.trainer.memory.activations import Profile
from bellwether.trainer.memory.peak import ALLREDUCE_BUCKET
from bellwether.trainer.memory.sharding import Sharding

Kind = Literal["all-reduce", "all-gather", "reduce-scatter", "all-to-all"]

_MAX_LIVE = 1_000_000_000  # DeepSpeed's stage3_max_reuse_distance and stage3_max_live_parameters


@dataclass(frozen=True)
class Network:
    """The links between GPUs. Bandwidths are achieved bytes per second of one GPU in one direction."""

    per_node: int  # GPUs of a node
    link: float  # bandwidth within a node
    port: float  # bandwidth between nodes
    hop_in: float = 3e-6  # seconds, between GPUs of a node
    hop_out: float = 10e-6  # seconds, between nodes
    start: float = 20e-6  # seconds to start a collective

    def seconds(self, kind: Kind, size: float, world_size: int) -> float:
        """Time of one collective over all ranks; ``size``: the bytes that each rank holds before or after it."""
        if kind == "all-to-all":
            return self._all_to_all(size, world_size)
        node_size = min(self.per_node, world_size)
        outside = math.ceil(world_size / node_size)
        halves = 2 if kind == "all-reduce" else 1
        time = self.start if world_size > 1 else 0.0
        if node_size > 1:
            time += halves * ((node_size - 1) / node_size * size / self.link + (node_size - 1) * self.hop_in)
        if outside > 1:
            share = size / node_size
            ring = halves * ((outside - 1) / outside * share / self.port + (outside - 1) * self.hop_out)
            # NCCL: a double binary tree for an all-reduce; PAT, a tree that each rank begins elsewhere, for the others.
            sent = share if kind == "all-reduce" else (outside - 1) / outside * share
            tree = halves * (sent / self.port + math.log2(outside) * self.hop_out)
            time += min(ring, tree)
        return time

    def _all_to_all(self, size: float, world_size: int) -> float:
        """Each rank sends an equal part to each other; what goes to other nodes takes the port."""
        node_size = min(self.per_node, world_size)
        inside, outside = (node_size - 1) / world_size * size, (1 - node_size / world_size) * size
        hops = (node_size - 1) * self.hop_in + (math.ceil(world_size / node_size) - 1) * self.hop_out
        return self.start + inside / self.link + outside / self.port + hops if world_size > 1 else 0.0


@dataclass(frozen=True)
class Collective:
    """A collective that a step runs ``count`` times."""

    kind: Kind
    size: float  # bytes, the sum over all times
    count: int
    hidden: bool  # whether it overlaps with computation

    def sent(self, world_size: int) -> float:
        """Bytes that a rank sends in a ring: 2 (W - 1) / W of the size for an all-reduce, half of that otherwise."""
        return (2 if self.kind == "all-reduce" else 1) * (world_size - 1) / world_size * self.size

    def seconds(self, network: Network, world_size: int) -> float:
        return self.count * network.seconds(self.kind, self.size / self.count, world_size)


def collectives(profile: Profile, sharding: Sharding, accumulation: int, world_size: int) -> list[Collective]:
    """The collectives of one step: DeepSpeed's and those of Muon's matrices, without 16 bytes per trust ratio."""
    return [*_of_engine(profile, sharding, accumulation), *_of_matrices(profile, sharding, world_size)]


def _of_matrices(profile: Profile, sharding: Sharding, world_size: int) -> list[Collective]:
    """Two all-to-alls for each chunk: slices travel to the owner of each matrix, and directions back."""
    groups = [sum(group) for group, are_matrices in zip(profile.groups, profile.matrices, strict=True) if are_matrices]
    if not (groups and sharding.stage and sharding.costs.direction_bytes) or world_size == 1:
        return []
    if sharding.is_bf16_optimizer:  # updates all groups at once
        groups = [sum(groups)]
    size = 2.0 * sharding.costs.direction_bytes * sum(groups) / world_size
    return [Collective("all-to-all", size, 2 * sum(chunk_count(n, world_size) for n in groups), False)]


def _of_engine(profile: Profile, sharding: Sharding, accumulation: int) -> list[Collective]:
    """Those of DeepSpeed.

    DeepSpeed's stages 1 and 2 all-reduce their buckets and keep their part of the result
    (``use_multi_rank_bucket_allreduce``), stage 2 after each micro-batch. Stage 3 gathers parameters once per micro-batch if
    the model has fewer than 1e9 elements, which then stay until the backward pass has used them, and twice otherwise.
    """
    size, n = float(sharding.weight_bytes * profile.elements), profile.elements

    def times(bucket: int) -> int:
        return math.ceil(n / max(1, bucket))

    if sharding.stage == 0:
        return [Collective("all-reduce", size, times(ALLREDUCE_BUCKET), False)]
    if sharding.stage == 3:
        sizes = [*profile.frozen, *(e for group in profile.groups for e in group)]  # frozen weights are gathered too
        small = sum(e for e in sizes if e < sharding.persistence)
        passes = accumulation * (2 if sum(sizes) > _MAX_LIVE else 1)
        fetched = sharding.weight_bytes * float(sum(sizes) - small)
        zero_collectives = [
            Collective(
                "reduce-scatter", accumulation * size, accumulation * times(sharding.reduce_bucket), sharding.overlap
            )
        ]
        if fetched:
            zero_collectives.append(Collective("all-gather", passes * fetched, passes * times(sharding.prefetch), True))
        # Small parameters are not partitioned; they are gathered after the update.
        return (
            [*zero_collectives, Collective("all-gather", sharding.weight_bytes * float(small), 1, False)]
            if small
            else zero_collectives
        )
    rounds = accumulation if sharding.stage == 2 else 1
    bucket = ALLREDUCE_BUCKET if sharding.is_bf16_optimizer else sharding.reduce_bucket
    return [
        Collective(
            "all-reduce", rounds * size, rounds * times(bucket), sharding.overlap and not sharding.is_bf16_optimizer
        ),
        Collective("all-gather", size, max(len(profile.groups), times(sharding.allgather_bucket)), False),
    ]

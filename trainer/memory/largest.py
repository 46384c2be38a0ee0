"""The largest micro-batch that fits into a rank's memory, computed."""

from __future__ import annotations

import math

from bellwether.trainer.config import Config
from bellwether.trainer.data import Dataset
from bellwether.trainer.memory.activations import Profile, measure
from bellwether.trainer.memory.peak import Bytes, largest_micro, peak
from bellwether.trainer.memory.sharding import Sharding, state_tensors
from bellwether.trainer.models.vocabulary import chunks

_MEASURED = 32  # samples, if nothing else is asked for


def with_micro(config: Config, micro: int) -> Config:
    """A config with another upper bound of the micro-batch."""
    return config.model_copy(update={"batch": config.batch.model_copy(update={"micro": micro})})


def largest_for(
    config: Config, data: Dataset, world_size: int, memory: float, on_gpu: bool = True
) -> tuple[int, Bytes]:
    """The largest micro-batch with which a rank stays within ``memory`` bytes, 0 if none does, and its peak.

    Raises:
        ConfigError: if the config offloads, which is not estimated.
    """
    per_rank = math.ceil(max(config.batch.all_sizes) / world_size)
    start = min(per_rank, _MEASURED)
    profile = measure(config, data, on_gpu=on_gpu, micro=start)
    states = state_tensors(config, profile)
    sharding = Sharding.from_config(config, states, profile.elements, world_size=world_size, on_gpu=on_gpu)
    most = largest_micro(profile, sharding, world_size, per_rank, memory)
    large = profile_for(config, data, most, profile, start, on_gpu)
    if large is not profile:
        most = largest_micro(large, sharding, world_size, per_rank, memory)
    micro = max(1, most)
    return most, peak(large, sharding, world_size, micro, math.ceil(per_rank / micro))


def profile_for(
    config: Config, data: Dataset, micro: int, profile: Profile, measured: int, on_gpu: bool = True
) -> Profile:
    """A profile that holds for a larger micro-batch too: another one where its logits are computed in chunks.

    Args:
        profile: measured with ``measured`` samples.
    """
    if not _has_chunks(config, data, micro) or _has_chunks(config, data, measured):
        return profile
    return measure(config, data, on_gpu=on_gpu, micro=max(measured, micro // 2))


def _has_chunks(config: Config, data: Dataset, micro: int) -> bool:
    positions = config.data.zeros(1).get("masked_positions")
    if positions is None or data.vocabulary_size is None:
        return False
    return len(chunks(micro * positions.shape[1], data.vocabulary_size)) > 1

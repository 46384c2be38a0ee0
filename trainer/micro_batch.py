"""`batch.micro: auto`: the largest micro-batch that fits, as the planner says, then tried, and kept in the run directory."""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

from bellwether.trainer import models, run_paths
from bellwether.trainer.acceleration import accelerate
from bellwether.trainer.config import Config, ConfigError
from bellwether.trainer.config.schema.engine import Engine
from bellwether.trainer.data import Dataset
from bellwether.trainer.distributed import World, run_on_all_ranks, run_on_rank0
from bellwether.trainer.memory.largest import largest_for, with_micro
from bellwether.trainer.memory.peak import Bytes
from bellwether.trainer.param_groups import param_groups
from bellwether.trainer.phases import split

log = logging.getLogger(__name__)

FILE = "micro_batch.json"
HEADROOM = 0.1  # of a GPU's free memory, for NCCL, cuDNN and fragmentation
HOST_SHARE = 0.5  # of a machine's available memory, for all of its processes together
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolved(
    configs: Sequence[Config], datasets: Sequence[Dataset], world: World, directory: Path, nodes: int
) -> list[Config]:
    """The configs of a run's phases with a number in place of `auto`. Collective.

    What was chosen is kept in the run directory, and holds until the number of processes or batch changes, or a key of `engine` that
    changes what memory holds.

    Args:
        nodes: machines of the run.

    Raises:
        ConfigError: if not one sample fits.
    """
    if not any(config.batch.is_auto for config in configs):
        return list(configs)
    identity = [[world.size, c.batch.all_sizes, *_held(c.engine)] for c in configs]
    micros = run_on_rank0(world, lambda: _recorded(directory / FILE, identity))
    if micros is None:
        micros = [
            _choose(config, data, world, nodes) if config.batch.is_auto else config.batch.micro
            for config, data in zip(configs, datasets, strict=True)
        ]
        content = json.dumps({"micro": micros, "for": identity})
        run_on_rank0(world, lambda: run_paths.publish(directory / FILE, content + "\n"))
    if world.is_main:
        log.info("batch.micro: auto is %s", ", ".join(map(str, micros)))
    # A number that the config gives may have changed since.
    pairs = zip(configs, micros, strict=True)
    return [with_micro(config, micro) if config.batch.is_auto else config for config, micro in pairs]


def _held(engine: Engine) -> list[Any]:
    """What decides how much memory a micro-batch takes."""
    return [engine.stage, engine.precision, engine.compile, engine.activation_checkpointing, engine.deepspeed]


def _recorded(file: Path, identity: list[Any]) -> list[int] | None:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return [int(micro) for micro in found["micro"]] if found["for"] == identity else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _choose(config: Config, data: Dataset, world: World, nodes: int) -> int:
    """What the planner says for the rank with the least memory; on GPUs tried and halved until it fits. Collective."""
    memory = min(run_on_all_ranks(world, lambda: usable_memory(world.device, max(1, world.size // max(1, nodes)))))
    on_gpu = world.device.type == "cuda"
    estimated = run_on_rank0(world, lambda: _estimated(config, data, world.size, memory, on_gpu))
    most, other_bytes = int(estimated[0]), float(estimated[1])
    # Under stage 3 a pass is collective: a rank alone that runs out of memory would leave the others waiting.
    if most and on_gpu and config.engine.stage < 3:
        most = _tried(config, data, world, most, other_bytes)
    if most < config.data.unit:
        least = (
            "not one sample fits" if config.data.unit == 1 else f"not {config.data.unit} samples fit, which are mixed,"
        )
        problem = f"{least} into {memory / 2**30:.1f} GiB"
        advice = "raise engine.stage, or set engine.activation_checkpointing: true"
        raise ConfigError("batch.micro", "auto", problem, advice)
    return most


def _tried(config: Config, data: Dataset, world: World, most: int, other_bytes: float) -> int:
    """Halve a micro-batch until the passes fit on every rank; 0 if the smallest one does not. Collective."""
    unit = config.data.unit
    while most >= unit:
        micro = max(split(size, most, world.size, unit=unit).micro for size in config.batch.all_sizes)
        if all(run_on_all_ranks(world, lambda micro=micro: _fits(config, data, world.device, micro, other_bytes))):  # type: ignore[misc]
            return most
        most = micro // 2
        log.info("a micro-batch of %d does not fit: %d is next", micro, most)
    return 0


def usable_memory(device: torch.device, processes: int) -> float:
    """Bytes that this process may use: of its GPU, or its part of what the machine has available.

    Args:
        processes: of the run on this machine.
    """
    if device.type == "cuda":
        return (1 - HEADROOM) * torch.cuda.mem_get_info(device)[0]
    return HOST_SHARE * psutil.virtual_memory().available / processes


def _estimated(config: Config, data: Dataset, world_size: int, memory: float, on_gpu: bool) -> list[float]:
    """The largest micro-batch, and the bytes at its peak beside activations and what a model alone holds in a backward pass."""
    most, peak = largest_for(config, data, world_size, memory, on_gpu)
    return [most, _others(peak)]


def _others(peak: Bytes) -> float:
    own_gradients = peak.parameters - peak.frozen
    return max(0.0, peak.optimizer + peak.buffers + max(0.0, peak.gradients - own_gradients))


def _fits(config: Config, data: Dataset, device: torch.device, micro: int, other_bytes: float) -> bool:
    """Whether a model's passes fit on this rank beside all else that training holds. No collective: ranks may differ."""
    try:
        _run_passes(config, data, device, micro, other_bytes)
        return True
    except torch.OutOfMemoryError:
        return False
    finally:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _run_passes(config: Config, data: Dataset, device: torch.device, micro: int, other_bytes: float) -> None:
    others = torch.empty(int(other_bytes), dtype=torch.uint8, device=device)
    task = models.build(config.model, data, activation_checkpointing=config.engine.activation_checkpointing)
    param_groups(task, config.optimizer)  # freezes what is not trained: it has no gradients
    task.to(device, _DTYPES[config.engine.precision])
    accelerate(task, config.engine, device)
    batch = {name: tensor.to(device) for name, tensor in config.data.zeros(micro).items()}
    for _ in range(2):  # the second finds the gradients of the first
        task(**batch)[0].mean().backward()
    del others

"""What accelerate was asked for, held against the run's config and the processes that there are.

accelerate's settings are meant for its own `Accelerator`, which a run does not use: what is not refused here would be
dropped without a word.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bellwether.trainer.accelerated.launch import VARIABLES, Launch, Wish, find, processes, same, wish
from bellwether.trainer.config import Config, ConfigError, ConfigErrors, phases
from bellwether.trainer.distributed import World
from bellwether.trainer.phases import Split, splits

# What only another engine could do, unless it is turned off.
_FOREIGN = {
    "use_fsdp": "FSDP",
    "use_megatron_lm": "Megatron-LM",
    "parallelism_config_dp_shard_size": "FSDP",
    "parallelism_config_tp_size": "tensor parallelism",
    "parallelism_config_cp_size": "context parallelism",
    "parallelism_config_sp_size": "sequence parallelism",
    "dynamo_backend": "torch.compile",
}
_OFF = ("no", "false", "1")
# What a run has a key for, by its place in DeepSpeed's config.
_PLACES = {
    "mixed_precision": "mixed_precision",
    "zero_stage": "zero_optimization.stage",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "gradient_clipping": "gradient_clipping",
    "offload_optimizer_device": "zero_optimization.offload_optimizer.device",
    "offload_param_device": "zero_optimization.offload_param.device",
}
# Keys of a DeepSpeed config that change nothing in a run.
_IDLE = ("steps_per_print", "wall_clock_breakdown", "zero_allow_untested_optimizer")

# A phase's key prefix, its config, and its shares of the global batch.
_Part = tuple[str, Config, Split]


def check(config: Config, world: World) -> None:
    """Refuse what accelerate was asked for and the run does not do. Returns at once where accelerate has not started it.

    Raises:
        ConfigErrors: naming accelerate's setting and ours, a line for each pair.
    """
    # Each launcher of accelerate that can start a run sets the first; bellwether is not to stumble over a stray one.
    if VARIABLES["mixed_precision"] not in os.environ or "BELLWETHER_WORLD_SIZE" in os.environ:
        return
    errors = contradictions(config, world.size, world.device.type, os.environ, find())
    if errors:
        raise ConfigErrors(errors)


def contradictions(
    config: Config, world_size: int, device: str, environment: Mapping[str, str], launch: Launch | None
) -> list[ConfigError]:
    """What accelerate was asked for and the run does not do, an error each.

    Args:
        config: the run's.
        world_size: number of processes that there are.
        device: what they train on, ``cpu`` or ``cuda``.
        environment: the variables that accelerate has set.
        launch: None where nothing is known of it.

    Raises:
        ConfigError: if the run's own global batch cannot be shared by the processes.
    """
    errors = [] if launch is None else _count(launch, world_size, device, environment)
    wishes = {option: found for option in VARIABLES if (found := wish(option, environment, launch)) is not None}
    if "use_cpu" in wishes and same(wishes["use_cpu"].value, "true") and device != "cpu":
        problem = f"the run trains on {device}, with engine.device: {config.engine.device}"
        errors.append(wishes["use_cpu"].refused(problem, "write engine.device=cpu, or take it out"))
    for option, what in _FOREIGN.items():
        if option in wishes and str(wishes[option].value).lower() not in _OFF:
            problem = f"a run has no {what}: its engine is DeepSpeed ZeRO, with engine.stage: {config.engine.stage}"
            errors.append(wishes[option].refused(problem, "take it out, and choose among engine.stage=0 to 3"))
    compared = [(wishes[option], place) for option, place in _PLACES.items() if option in wishes]
    if compared or "deepspeed_config_file" in wishes:
        parts = _parts(config, world_size)
        errors += [error for asked, place in compared for error in _against(asked, place, parts)]
        if "deepspeed_config_file" in wishes:
            errors += _against_file(wishes["deepspeed_config_file"], parts)
    return errors


def _count(launch: Launch, world_size: int, device: str, environment: Mapping[str, str]) -> list[ConfigError]:
    asked = processes(launch)
    # More than stand in a file, or than there are machines: mpirun or srun has started several accelerates.
    if asked is None or asked.value == world_size or (asked.key != "--num_processes" and asked.value < world_size):
        return []
    machines = launch.typed.get("num_machines") or launch.file.get("num_machines") or 1
    started = f"accelerate has started {world_size} process{'es' if world_size > 1 else ''}"
    if "TORCHELASTIC_RUN_ID" in environment:
        return [asked.refused(f"{started}, as many on each of {machines} machines", f"write a multiple of {machines}")]
    if device != "cpu" or machines > 1:
        more = "" if asked.key.endswith("num_processes") else ", and --num_processes, of all machines together"
        return [asked.refused(f"{started}, as it does without --multi_gpu", f"add --multi_gpu{more}")]
    number = "" if asked.value == 2 else f" --num_processes {asked.value}"
    advice = f"write accelerate launch --config_file configs/accelerate/cpu-2.yaml{number} -m trainer ..."
    return [asked.refused(f"{started}, as it does with --cpu and MULTI_CPU, whatever number is asked for", advice)]


def _parts(config: Config, world_size: int) -> list[_Part]:
    several = phases(config)
    prefixes = [f"phases[{index}]." if len(several) > 1 else "" for index in range(len(several))]
    return list(zip(prefixes, several, splits(several, world_size), strict=True))


def _against(asked: Wish, place: str, parts: Sequence[_Part]) -> list[ConfigError]:
    """The first phase's contradiction, in a list, or none."""
    for prefix, config, shares in parts:
        key, ours = _ours(place, config, shares)
        if same(asked.value, ours):
            continue
        key = key if key.startswith("engine.") else prefix + key
        problem, change = f"the run has {key}: {ours}", f"{key}={asked.value}"
        if key == "engine.precision":
            # fp32 is accelerate's "no"; bf16.enabled and fp16.enabled are true or false.
            problem = f"the run has {key}: {config.engine.precision}"
            words = {"no": "fp32", "false": "fp32", "true": place.partition(".")[0], "fp8": None}
            wanted = words.get(str(asked.value).lower(), asked.value)
            change = f"{key}={wanted}" if wanted else ""
        elif place == "gradient_accumulation_steps":
            product = f"{shares.micro} micro x {shares.accumulation} accumulation x {shares.world_size} processes"
            problem = f"the run has {prefix}batch.global: {shares.global_batch} = {product}"
            share = shares.micro * shares.accumulation
            change = next((f"{key}={micro}" for micro in range(1, share + 1) if same(asked.value, share / micro)), "")
        return [asked.refused(problem, f"write {' or '.join(filter(None, [change, asked.instead(ours)]))}")]
    return []


def _ours(place: str, config: Config, shares: Split) -> tuple[str, Any]:
    """Our key for a place in DeepSpeed's config, and what the run has there, in accelerate's words."""
    precision = config.engine.precision
    known: dict[str, tuple[str, Any]] = {
        "mixed_precision": ("engine.precision", "no" if precision == "fp32" else precision),
        "bf16.enabled": ("engine.precision", precision == "bf16"),
        "fp16.enabled": ("engine.precision", precision == "fp16"),
        "zero_optimization.stage": ("engine.stage", config.engine.stage),
        "gradient_accumulation_steps": ("batch.micro", shares.accumulation),
        "gradient_clipping": ("optimizer.clip", config.optimizer.clip),
        "train_batch_size": ("batch.global", shares.global_batch),
        "train_micro_batch_size_per_gpu": ("batch.micro", shares.micro),
    }
    if place in known:
        return known[place]
    found: Any = config.engine.deepspeed
    for key in place.split("."):
        found = found.get(key) if isinstance(found, dict) else None
    return f"engine.deepspeed.{place}", "none" if found is None and place.endswith(".device") else found


def _against_file(file: Wish, parts: Sequence[_Part]) -> list[ConfigError]:
    """A DeepSpeed config that accelerate was handed. A run writes its own, which must say all that this one says."""
    path, config = str(file.value), parts[0][1]
    try:
        content = dict(_leaves(json.loads(Path(path).read_text())))
    except (OSError, ValueError, AttributeError) as error:
        return [file.refused(f"cannot be read as DeepSpeed's JSON ({error})", "mend the path, or take it out")]
    errors, absent = [], []
    for place, value in content.items():
        section, _, key = place.partition(".")
        unused = section in ("bf16", "fp16") and section != config.engine.precision and key != "enabled"
        if value == "auto" or place in _IDLE or unused:
            continue
        asked = Wish(place, value, path)
        if section in ("optimizer", "scheduler"):
            ours = "optimizer" if section == "optimizer" else "schedule"
            errors.append(
                asked.refused(f"the run has its own {ours}", f"take it out there, and set {ours} in the run's config")
            )
        elif not _ours(place, *parts[0][1:])[0].startswith("engine.deepspeed."):
            errors += _against(asked, place, parts)
        elif _against(asked, place, parts):
            absent.append(place)
    if absent:
        problem = f"the run's engine.deepspeed does not say the same of {', '.join(absent)}"
        example = f"engine.deepspeed.{absent[0]}={json.dumps(content[absent[0]])}"
        errors.append(file.refused(problem, f"write {example} and the like, or take them out there"))
    return errors


def _leaves(section: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value

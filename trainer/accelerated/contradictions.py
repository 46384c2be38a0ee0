"""Compares accelerate's settings with the run's config and the number of its processes.

accelerate's settings are meant for its `Accelerator`, which a run does not use: a contradiction that is not refused here would be
ignored silently.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bellwether.trainer.accelerated.launch import (
    VARIABLES,
    AccelerateLaunch,
    AccelerateSetting,
    find,
    find_setting,
    processes,
    same,
)
from bellwether.trainer.config import Config, ConfigError, ConfigErrors, phases
from bellwether.trainer.distributed import World
from bellwether.trainer.phases import Split, splits

# Settings that only another engine could follow, and what they turn on.
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
# Settings that have a key in the run's config, and their key path in DeepSpeed's config.
_COMPARED = {
    "mixed_precision": "mixed_precision",
    "zero_stage": "zero_optimization.stage",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "gradient_clipping": "gradient_clipping",
    "offload_optimizer_device": "zero_optimization.offload_optimizer.device",
    "offload_param_device": "zero_optimization.offload_param.device",
}
# Keys of a DeepSpeed config that have no effect in a run.
_WITHOUT_EFFECT = ("steps_per_print", "wall_clock_breakdown", "zero_allow_untested_optimizer")

# Key prefix, config and batch split of a phase.
_PhaseSettings = tuple[str, Config, Split]


def check(config: Config, world: World) -> None:
    """Refuse settings of accelerate that the run does not follow. Does nothing where accelerate has not started the process.

    Raises:
        ConfigErrors: naming accelerate's setting and the run's, one line for each pair.
    """
    # Every launcher of accelerate exports the first variable. Ranks of bellwether may inherit it from an outer accelerate.
    if VARIABLES["mixed_precision"] not in os.environ or "BELLWETHER_WORLD_SIZE" in os.environ:
        return
    errors = contradictions(config, world.size, world.device.type, os.environ, find())
    if errors:
        raise ConfigErrors(errors)


def contradictions(
    config: Config, world_size: int, device: str, environment: Mapping[str, str], launch: AccelerateLaunch | None
) -> list[ConfigError]:
    """One error for each setting of accelerate that the run does not follow.

    Args:
        config: the run's.
        world_size: number of processes in the process group.
        device: what they train on, ``cpu`` or ``cuda``.
        environment: the variables that accelerate has set.
        launch: the command; None where it is not known.

    Raises:
        ConfigError: if the run's own global batch cannot be divided among the processes.
    """
    errors = [] if launch is None else _process_count(launch, world_size, device, environment)
    accelerate_settings = {
        option: found for option in VARIABLES if (found := find_setting(option, environment, launch)) is not None
    }
    if "use_cpu" in accelerate_settings and same(accelerate_settings["use_cpu"].value, "true") and device != "cpu":
        problem = f"the run trains on {device}, with engine.device: {config.engine.device}"
        errors.append(accelerate_settings["use_cpu"].refused(problem, "write engine.device=cpu, or remove it"))
    for option, feature in _FOREIGN.items():
        if option in accelerate_settings and str(accelerate_settings[option].value).lower() not in _OFF:
            problem = f"a run has no {feature}: its engine is DeepSpeed ZeRO, with engine.stage: {config.engine.stage}"
            errors.append(
                accelerate_settings[option].refused(problem, "remove it, and choose among engine.stage=0 to 3")
            )
    compared = [
        (accelerate_settings[option], path) for option, path in _COMPARED.items() if option in accelerate_settings
    ]
    if compared or "deepspeed_config_file" in accelerate_settings:
        settings = _phase_settings(config, world_size)
        errors += [error for setting, path in compared for error in _compare(setting, path, settings)]
        if "deepspeed_config_file" in accelerate_settings:
            errors += _compare_file(accelerate_settings["deepspeed_config_file"], settings)
    return errors


def _process_count(
    launch: AccelerateLaunch, world_size: int, device: str, environment: Mapping[str, str]
) -> list[ConfigError]:
    requested = processes(launch)
    # There may be more than a file's number, or than there are machines, where mpirun or srun has started several accelerates.
    if (
        requested is None
        or requested.value == world_size
        or (requested.key != "--num_processes" and requested.value < world_size)
    ):
        return []
    machines = launch.typed.get("num_machines") or launch.file.get("num_machines") or 1
    started = f"accelerate has started {world_size} process{'es' if world_size > 1 else ''}"
    if "TORCHELASTIC_RUN_ID" in environment:
        return [
            requested.refused(f"{started}, as many on each of {machines} machines", f"write a multiple of {machines}")
        ]
    if device != "cpu" or machines > 1:
        more = "" if requested.key.endswith("num_processes") else ", and --num_processes, of all machines together"
        return [requested.refused(f"{started}, as it does without --multi_gpu", f"add --multi_gpu{more}")]
    number = "" if requested.value == 2 else f" --num_processes {requested.value}"
    advice = f"write accelerate launch --config_file configs/accelerate/cpu-2.yaml{number} -m trainer ..."
    return [requested.refused(f"{started}, as it does with --cpu and MULTI_CPU, whatever number is requested", advice)]


def _phase_settings(config: Config, world_size: int) -> list[_PhaseSettings]:
    configs = phases(config)
    prefixes = [f"phases[{index}]." if len(configs) > 1 else "" for index in range(len(configs))]
    of_phases = zip(prefixes, configs, splits(configs, world_size), strict=True)
    return [(prefix, phase, split) for prefix, phase, of_sizes in of_phases for split in of_sizes]


def _compare(setting: AccelerateSetting, path: str, settings: Sequence[_PhaseSettings]) -> list[ConfigError]:
    """The error of the first phase that contradicts a setting, in a list; an empty list where none does."""
    for prefix, config, split in settings:
        key, own = _own_setting(path, config, split)
        if same(setting.value, own):
            continue
        key = key if key.startswith("engine.") else prefix + key
        problem, change = f"the run has {key}: {own}", f"{key}={setting.value}"
        if key == "engine.precision":
            # accelerate calls fp32 "no"; bf16.enabled and fp16.enabled are true or false.
            problem = f"the run has {key}: {config.engine.precision}"
            names = {"no": "fp32", "false": "fp32", "true": path.partition(".")[0], "fp8": None}
            precision = names.get(str(setting.value).lower(), setting.value)
            change = f"{key}={precision}" if precision else ""
        elif path == "gradient_accumulation_steps":
            product = f"{split.micro} micro x {split.accumulation} accumulation x {split.world_size} processes"
            problem = f"the run has {prefix}batch.global: {split.global_batch} = {product}"
            per_rank = split.micro * split.accumulation
            change = next((f"{key}={m}" for m in range(1, per_rank + 1) if same(setting.value, per_rank / m)), "")
        return [setting.refused(problem, f"write {' or '.join(filter(None, [change, setting.instead(own)]))}")]
    return []


def _own_setting(path: str, config: Config, split: Split) -> tuple[str, Any]:
    """The run's key for a key path of DeepSpeed's config, and its value in accelerate's terms."""
    precision = config.engine.precision
    own_settings: dict[str, tuple[str, Any]] = {
        "mixed_precision": ("engine.precision", "no" if precision == "fp32" else precision),
        "bf16.enabled": ("engine.precision", precision == "bf16"),
        "fp16.enabled": ("engine.precision", precision == "fp16"),
        "zero_optimization.stage": ("engine.stage", config.engine.stage),
        "gradient_accumulation_steps": ("batch.micro", split.accumulation),
        "gradient_clipping": ("optimizer.clip", config.optimizer.clip),
        "train_batch_size": ("batch.global", split.global_batch),
        "train_micro_batch_size_per_gpu": ("batch.micro", split.micro),
    }
    if path in own_settings:
        return own_settings[path]
    found: Any = config.engine.deepspeed
    for key in path.split("."):
        found = found.get(key) if isinstance(found, dict) else None
    return f"engine.deepspeed.{path}", "none" if found is None and path.endswith(".device") else found


def _compare_file(file: AccelerateSetting, settings: Sequence[_PhaseSettings]) -> list[ConfigError]:
    """Compare accelerate's DeepSpeed config file: the config that the run gives to DeepSpeed must contain all its settings."""
    name, config = str(file.value), settings[0][1]
    try:
        content = dict(_leaves(json.loads(Path(name).read_text())))
    except (OSError, ValueError, AttributeError) as error:
        return [file.refused(f"cannot be read as DeepSpeed's JSON ({error})", "correct the path, or remove it")]
    errors, absent = [], []
    for path, value in content.items():
        section, _, key = path.partition(".")
        unused = section in ("bf16", "fp16") and section != config.engine.precision and key != "enabled"
        if value == "auto" or path in _WITHOUT_EFFECT or unused:
            continue
        setting = AccelerateSetting(path, value, name)
        if section in ("optimizer", "scheduler"):
            own = "optimizer" if section == "optimizer" else "schedule"
            errors.append(
                setting.refused(f"the run has its own {own}", f"remove it there, and set {own} in the run's config")
            )
        elif not _own_setting(path, *settings[0][1:])[0].startswith("engine.deepspeed."):
            errors += _compare(setting, path, settings)
        elif _compare(setting, path, settings):
            absent.append(path)
    if absent:
        problem = f"the run's engine.deepspeed differs in {', '.join(absent)}"
        example = f"engine.deepspeed.{absent[0]}={json.dumps(content[absent[0]])}"
        errors.append(file.refused(problem, f"write {example} and the like, or remove them there"))
    return errors


def _leaves(section: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Key path and value of everything in a nested mapping."""
    for key, value in section.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value

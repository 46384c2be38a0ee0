"""The settings of an `accelerate launch`, and where each was set.

accelerate passes its settings to the processes in environment variables, but not all of them. With --cpu, and with NO or MULTI_CPU in
its config file, version 1.15 starts one process whatever number is requested, and does not export that number; use_cpu of a file is
not exported to several processes. Only accelerate's command line has them, so it is looked up among the parent processes and parsed
with accelerate's own parser.

accelerate's defaults look like settings: `accelerate config` writes mixed_precision: 'no', gradient_accumulation_steps: 1 and offload
devices of none when the user presses Enter, and the launcher exports mixed_precision no by default. Such a value counts only if it is
on the command line or in a file that the command names. It does not count from the machine's default file, as a plain
`accelerate launch -m trainer` would then refuse every bf16 recipe. Any other value, and any explicit ZeRO stage, counts wherever it
is set. The default stage 2 of --use_deepspeed is never exported.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bellwether.trainer.config import ConfigError

# accelerate's name of a setting -> the variable in which it is exported.
VARIABLES = {
    "use_cpu": "ACCELERATE_USE_CPU",
    "mixed_precision": "ACCELERATE_MIXED_PRECISION",
    "dynamo_backend": "ACCELERATE_DYNAMO_BACKEND",
    "use_fsdp": "ACCELERATE_USE_FSDP",
    "use_megatron_lm": "ACCELERATE_USE_MEGATRON_LM",
    "zero_stage": "ACCELERATE_DEEPSPEED_ZERO_STAGE",
    "gradient_accumulation_steps": "ACCELERATE_GRADIENT_ACCUMULATION_STEPS",
    "gradient_clipping": "ACCELERATE_GRADIENT_CLIPPING",
    "offload_optimizer_device": "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE",
    "offload_param_device": "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE",
    "deepspeed_config_file": "ACCELERATE_DEEPSPEED_CONFIG_FILE",
    "parallelism_config_dp_shard_size": "PARALLELISM_CONFIG_DP_SHARD_SIZE",
    "parallelism_config_tp_size": "PARALLELISM_CONFIG_TP_SIZE",
    "parallelism_config_cp_size": "PARALLELISM_CONFIG_CP_SIZE",
    "parallelism_config_sp_size": "PARALLELISM_CONFIG_SP_SIZE",
}
# Settings with another name on the command line, or in accelerate's config file.
_TYPED_AS = {"use_cpu": "cpu"}
_FILED_AS = {"use_fsdp": ("distributed_type", "FSDP"), "use_megatron_lm": ("distributed_type", "MEGATRON_LM")}
_DEFAULTS = {
    "mixed_precision": "no",
    "gradient_accumulation_steps": "1",
    "offload_optimizer_device": "none",
    "offload_param_device": "none",
}


@dataclass(frozen=True)
class AccelerateSetting:
    """A setting of accelerate: its key, its value, and the command or file that sets it."""

    key: str
    value: Any
    source: str

    def refused(self, problem: str, allowed: str) -> ConfigError:
        """The error that refuses this setting."""
        return ConfigError(self.key, self.value, problem, allowed, self.source)

    def instead(self, value: Any) -> str:
        """How to set another value in the same place."""
        if self.key.startswith("--"):
            return f"{self.key} {value}"
        if self.source == "environment":
            return f"{self.key}={value}"
        # In quotes: YAML reads a bare no as false, on which accelerate fails.
        text = repr(value) if isinstance(value, str) else json.dumps(value)
        return f"{self.key}: {text} there"


@dataclass(frozen=True)
class AccelerateLaunch:
    """The command line of an `accelerate launch`, with its config file."""

    typed: Mapping[str, Any]  # options on the command line
    file: Mapping[str, Any]  # keys of the config file, with those of its sections
    path: str  # of the config file; empty where there is none
    named: bool  # whether the command line names the file


def find() -> AccelerateLaunch | None:
    """The `accelerate launch` that started this process; None where it is not found."""
    try:
        import psutil

        # torchrun runs inside accelerate's process; mpirun and wrappers may stand between it and this one.
        for parent in psutil.Process().parents():
            launch = read(parent.cmdline(), sys.orig_argv)
            if launch is not None:
                return launch
    except (Exception, SystemExit):
        # A parent that has ended or may not be read, or another version of accelerate, must not end the run.
        return None
    return None


def read(words: Sequence[str], own: Sequence[str]) -> AccelerateLaunch | None:
    """Parse the command line ``words``; None unless it is an `accelerate launch` of the command line ``own``."""
    rest = _arguments(words)
    if rest is None:
        return None
    from accelerate.commands.config import default_config_file, load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    with contextlib.redirect_stderr(io.StringIO()):
        parsed = launch_command_parser().parse_args(rest)
    command = [parsed.training_script, *parsed.training_script_args]
    if list(own[-len(command) :]) != command:
        return None  # it started another program, which started this one: its settings are for that program
    path = parsed.config_file or ""
    if not path and not parsed.cpu and os.path.isfile(default_config_file):
        path = default_config_file
    file: dict[str, Any] = {}
    for key, value in vars(load_config_from_file(path)).items() if path else ():
        file.update(value if isinstance(value, dict) else {key: getattr(value, "value", value)})
    return AccelerateLaunch(
        {key: getattr(parsed, key) for key in parsed.nondefault}, file, path, parsed.config_file is not None
    )


def _arguments(words: Sequence[str]) -> list[str] | None:
    """The arguments of `accelerate launch` in a command line, in any of its spellings; None where it is another command."""
    for index, word in enumerate(words):
        name = word.rpartition("/")[2]
        if name in ("accelerate-launch", "accelerate.commands.launch"):
            return list(words[index + 1 :])
        if name in ("accelerate", "accelerate.commands.accelerate_cli") and [*words[index + 1 :], ""][0] == "launch":
            return list(words[index + 2 :])
    return None


def find_setting(
    option: str, environment: Mapping[str, str], launch: AccelerateLaunch | None
) -> AccelerateSetting | None:
    """Where a setting is set; None where it is not. The command line overrides the file, as in accelerate."""
    typed = _TYPED_AS.get(option, option)
    if launch is not None and typed in launch.typed:
        # Also where accelerate itself ignores it, such as --zero_stage without --use_deepspeed.
        return AccelerateSetting(f"--{typed}", launch.typed[typed], "accelerate launch")
    if option == "use_cpu" and launch is not None and launch.file.get(option) and "multi_gpu" not in launch.typed:
        return AccelerateSetting(option, True, launch.path)  # not exported to several processes
    value = environment.get(VARIABLES[option], "auto")
    if value == "auto" or (option, value) == ("deepspeed_config_file", "none"):
        return None
    is_default = same(value, _DEFAULTS.get(option))
    key, filed = _FILED_AS.get(option, (option, value))
    if launch is not None and same(launch.file.get(key), filed):
        return None if is_default and not launch.named else AccelerateSetting(key, launch.file[key], launch.path)
    return None if is_default else AccelerateSetting(VARIABLES[option], value, "environment")


def processes(launch: AccelerateLaunch) -> AccelerateSetting | None:
    """The requested number of processes, over all machines together."""
    for key in ("num_processes", "num_machines"):
        typed, filed = (launch.typed, f"--{key}", "accelerate launch"), (launch.file, key, launch.path)
        for settings, name, source in (typed, filed):
            # -1 means none, and accelerate accepts a number in quotes.
            if str(settings.get(key)).isdigit() and int(settings[key]) > 0:
                return AccelerateSetting(name, int(settings[key]), source)
    return None


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal, where one may be the text of an environment variable."""
    try:
        return float(one) == float(other)
    except (TypeError, ValueError):
        return str(one).lower() == str(other).lower()

"""What accelerate passes to the processes of a launch, by its own code, and the settings that a run then refuses."""

from __future__ import annotations

from pathlib import Path

from accelerate.commands import launch as accelerate_launch
from accelerate.utils import prepare_deepspeed_cmd_env, prepare_multi_gpu_env, prepare_simple_launcher_cmd_env

from bellwether.trainer import config as c
from bellwether.trainer.accelerated.contradictions import contradictions
from bellwether.trainer.accelerated.launch import AccelerateLaunch, read

# 16 samples a step; on 2 processes 2 micro-batches of 4 each.
QUICK = """
name: quick
duration: 4 steps
model: {kind: cifar-resnet, depth: 8}
data: {kind: images, size: 8, mean: [0.3], std: [0.3], workers: 0}
batch: {global: 16, micro: 4}
optimizer: {lr: 1e-2}
log: {every: 1 steps, trackers: [], report: false}
evaluate: {limit: 16}
"""

DEEPSPEED = ("--use_deepspeed", "--num_processes", "2")
MULTI = ("--multi_gpu", "--num_processes", "2")
OFFLOAD = "engine.deepspeed.zero_optimization.offload_optimizer.device"


def launched_by_accelerate(*words: str, script: str = "quick.yaml") -> tuple[dict[str, str], AccelerateLaunch, int]:
    """Accelerate's variables and number of processes for a command line, by its own code, and what we parse from it."""
    words = ("--main_process_port", "0", *words)
    command = ["-m", "trainer", script]
    parsed = accelerate_launch.launch_command_parser().parse_args([*words, *command])
    arguments, _, _ = accelerate_launch._validate_launch_command(parsed)
    several = arguments.use_fsdp or arguments.use_megatron_lm or arguments.multi_gpu
    count = 1
    if (arguments.use_deepspeed or several) and not arguments.cpu:
        arguments.deepspeed_fields_from_accelerate_config = ""
        prepare = prepare_multi_gpu_env if several else lambda given: prepare_deepspeed_cmd_env(given)[1]
        environment = {**prepare(arguments), "TORCHELASTIC_RUN_ID": "none"}
        count = int(arguments.nproc_per_node) * arguments.num_machines
    else:
        environment = prepare_simple_launcher_cmd_env(arguments)[1]
    found = read(["/usr/bin/python3", "/usr/bin/accelerate", "launch", *words, *command], ["python3", "-u", *command])
    assert found is not None
    return environment, found, count


def refusals(config: c.Config, *words: str, world_size: int = 2, device: str = "cpu") -> list[str]:
    environment, found, _ = launched_by_accelerate(*words)
    return [str(error) for error in contradictions(config, world_size, device, environment, found)]


def quick(tmp_path: Path, *overrides: str, more: str = "") -> c.Config:
    file = tmp_path / "quick.yaml"
    file.write_text(QUICK + more)
    return c.load(file, overrides)

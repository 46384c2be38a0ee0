"""Settings of accelerate that contradict the run's config: each is refused, with both names and a fix."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands import config as accelerate_config
from accelerate.commands import launch as accelerate_launch

from bellwether.trainer.accelerated.contradictions import contradictions
from tests.launcher.accelerated import DEEPSPEED, MULTI, OFFLOAD, launched_by_accelerate, quick, refusals
from tests.launcher.processes import ROOT

# What `accelerate config` writes for the answers multi-GPU, 2 GPUs, DeepSpeed, and Enter for every other question.
ENTER = """
compute_environment: LOCAL_MACHINE
debug: false
deepspeed_config:
  gradient_accumulation_steps: 1
  offload_optimizer_device: none
  offload_param_device: none
  zero3_init_flag: false
  zero_stage: 2
distributed_type: DEEPSPEED
downcast_bf16: 'no'
enable_cpu_affinity: false
machine_rank: 0
main_training_function: main
mixed_precision: 'no'
num_machines: 1
num_processes: 2
rdzv_backend: static
same_network: true
tpu_env: []
tpu_use_cluster: false
tpu_use_sudo: false
use_cpu: false
"""


@pytest.mark.parametrize(
    ("words", "overrides", "theirs", "ours", "advice"),
    [
        ((*DEEPSPEED, "--zero_stage", "3"), (), "--zero_stage: 3", "engine.stage: 2", "engine.stage=3"),
        ((*DEEPSPEED, "--zero_stage", "2"), ("engine.stage=3",), "--zero_stage: 2", "engine.stage: 3", "engine.stage=2"),
        # accelerate ignores this option without --use_deepspeed.
        ((*MULTI, "--zero_stage", "1"), (), "--zero_stage: 1", "engine.stage: 2", "engine.stage=1"),
        ((*MULTI, "--mixed_precision", "bf16"), (), "--mixed_precision: 'bf16'", "engine.precision: fp32",
         "engine.precision=bf16"),
        ((*DEEPSPEED, "--mixed-precision=fp16"), ("engine.precision=bf16",), "--mixed_precision: 'fp16'",
         "engine.precision: bf16", "engine.precision=fp16"),
        ((*MULTI, "--mixed_precision", "no"), ("engine.precision=bf16",), "--mixed_precision: 'no'",
         "engine.precision: bf16", "engine.precision=fp32"),
        ((*DEEPSPEED, "--gradient_accumulation_steps", "8"), (), "--gradient_accumulation_steps: 8",
         "4 micro x 2 accumulation x 2 processes", "batch.micro=1"),
        ((*DEEPSPEED, "--gradient_accumulation_steps", "1"), (), "--gradient_accumulation_steps: 1",
         "4 micro x 2 accumulation x 2 processes", "batch.micro=8"),
        ((*DEEPSPEED, "--gradient_clipping", "0.5"), (), "--gradient_clipping: 0.5", "optimizer.clip: 1.0",
         "optimizer.clip=0.5"),
        ((*DEEPSPEED, "--offload_optimizer_device", "cpu"), (), "--offload_optimizer_device: 'cpu'", f"{OFFLOAD}: none",
         f"{OFFLOAD}=cpu"),
        ((*DEEPSPEED, "--offload_optimizer_device", "none"), (f"{OFFLOAD}=cpu",), "--offload_optimizer_device: 'none'",
         f"{OFFLOAD}: cpu", f"{OFFLOAD}=none"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)  # fmt: skip
def test_contradiction_names_both_settings_and_its_fix_resolves_it(
    tmp_path: Path, words: tuple[str, ...], overrides: tuple[str, ...], theirs: str, ours: str, advice: str
) -> None:
    found = refusals(quick(tmp_path, *overrides), *words)
    assert len(found) == 1
    assert found[0].startswith(f"accelerate launch: {theirs}: the run has "), found
    assert f"{ours}; write {advice} or --" in found[0], found
    assert refusals(quick(tmp_path, *overrides, advice), *words) == []


@pytest.mark.parametrize(
    ("words", "overrides"),
    [
        ((), ()),
        (("--cpu",), ("engine.precision=bf16",)),
        (("--num_processes", "1"), ("engine.precision=fp16",)),
        (MULTI, ("engine.precision=bf16", "engine.stage=0")),
        (DEEPSPEED, ("engine.stage=3", "batch.micro=1", "optimizer.clip=0", f"{OFFLOAD}=cpu")),
        ((*DEEPSPEED, "--zero_stage", "3", "--mixed_precision", "bf16", "--gradient_accumulation_steps", "4",
          "--gradient_clipping", "1", "--offload_optimizer_device", "cpu", "--offload_param_device", "none"),
         ("engine.stage=3", "engine.precision=bf16", "batch.micro=2", f"{OFFLOAD}=cpu")),
    ],
    ids=lambda value: " ".join(value),
)  # fmt: skip
def test_defaults_of_accelerate_and_equal_settings_are_accepted(
    tmp_path: Path, words: tuple[str, ...], overrides: tuple[str, ...]
) -> None:
    world_size = launched_by_accelerate(*words)[2]
    assert refusals(quick(tmp_path, *overrides), *words, world_size=world_size) == []


@pytest.mark.parametrize(
    ("words", "theirs", "ours"),
    [
        (("--use_fsdp", "--num_processes", "2"), "--use_fsdp: True", "engine.stage: 2"),
        (("--use_megatron_lm", "--num_processes", "2"), "--use_megatron_lm: True", "engine.stage: 2"),
        ((*MULTI, "--dynamo_backend", "inductor"), "--dynamo_backend: 'inductor'", "no torch.compile"),
        ((*MULTI, "--parallelism_config_tp_size", "2"), "--parallelism_config_tp_size: 2", "no tensor parallelism"),
        ((*MULTI, "--mixed_precision", "fp8"), "--mixed_precision: 'fp8'", "engine.precision: fp32; write --mixed"),
        ((*DEEPSPEED, "--gradient_accumulation_steps", "3"), "--gradient_accumulation_steps: 3",
         "; write --gradient_accumulation_steps 2"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)  # fmt: skip
def test_unsupported_features_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], theirs: str, ours: str
) -> None:
    monkeypatch.setattr("accelerate.utils.launch.is_fp8_available", lambda: True)
    found = refusals(quick(tmp_path), *words)
    assert len(found) == 1
    assert theirs in found[0]
    assert ours in found[0]


def test_fsdp_and_parallelism_in_a_file_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "fsdp.yaml"
    file.write_text(
        "{distributed_type: FSDP, num_processes: 2, fsdp_config: {fsdp_version: 2}, "
        "parallelism_config: {parallelism_config_dp_shard_size: 1, parallelism_config_cp_size: 2}}"
    )
    found = refusals(quick(tmp_path), "--config_file", str(file))
    assert [line.partition(": a run has no ")[0] for line in found] == [
        f"{file}: distributed_type: 'FSDP'",
        f"{file}: parallelism_config_cp_size: 2",
    ]


def test_cpu_in_accelerate_contradicts_a_run_on_gpus(tmp_path: Path) -> None:
    cpu2 = str(ROOT / "configs/accelerate/cpu-2.yaml")
    assert refusals(quick(tmp_path), "--cpu", world_size=1, device="cuda") == [
        "accelerate launch: --cpu: True: the run trains on cuda, with engine.device: auto; "
        "write engine.device=cpu, or remove it"
    ]
    assert refusals(quick(tmp_path), "--config_file", cpu2, device="cuda") == [
        f"{cpu2}: use_cpu: True: the run trains on cuda, with engine.device: auto; write engine.device=cpu, or remove it"
    ]
    # --multi_gpu overrides use_cpu of a file, as in accelerate.
    assert refusals(quick(tmp_path), "--config_file", cpu2, *MULTI, device="cuda") == []


def test_default_answers_count_only_in_a_file_named_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "enter.yaml"
    file.write_text(ENTER)
    for module in (accelerate_config, accelerate_config.config_args, accelerate_launch):
        monkeypatch.setattr(module, "default_config_file", str(file))
    config = quick(tmp_path, "engine.precision=bf16", f"{OFFLOAD}=cpu")
    assert refusals(config) == []
    named = refusals(config, "--config_file", str(file))
    assert [line.partition(": the run has")[0].removeprefix(f"{file}: ") for line in named] == [
        "mixed_precision: 'no'",
        "gradient_accumulation_steps: 1",
        "offload_optimizer_device: 'none'",
    ]
    # The ZeRO stage and the number of processes count in the default file too: they have no default answer.
    assert refusals(quick(tmp_path, "engine.stage=3")) == [
        f"{file}: zero_stage: 2: the run has engine.stage: 3; write engine.stage=2 or zero_stage: 3 there"
    ]
    assert f"{file}: num_processes: 2: " in refusals(quick(tmp_path), world_size=1)[0]
    # With --cpu, accelerate does not read the default file.
    assert refusals(quick(tmp_path, "engine.stage=3"), "--cpu", world_size=1) == []


def test_variables_are_checked_where_the_launch_command_is_unknown(tmp_path: Path) -> None:
    exported = launched_by_accelerate(*DEEPSPEED)[0]
    assert contradictions(quick(tmp_path, "engine.precision=bf16"), 1, "cpu", exported, None) == []
    environment = {**exported, "ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "1"}
    assert [str(error) for error in contradictions(quick(tmp_path), 2, "cpu", environment, None)] == [
        "environment: ACCELERATE_MIXED_PRECISION: 'bf16': the run has engine.precision: fp32; "
        "write engine.precision=bf16 or ACCELERATE_MIXED_PRECISION=no",
        "environment: ACCELERATE_DEEPSPEED_ZERO_STAGE: '1': the run has engine.stage: 2; "
        "write engine.stage=1 or ACCELERATE_DEEPSPEED_ZERO_STAGE=2",
    ]


def test_contradicting_phase_is_named(tmp_path: Path) -> None:
    more = "phases: [{duration: 2 steps}, {duration: 2 steps, batch: {micro: 2}}]\n"
    words = (*DEEPSPEED, "--gradient_accumulation_steps", "2")
    found = refusals(quick(tmp_path, more=more), *words)
    assert len(found) == 1
    assert "the run has phases[1].batch.global: 16 = 2 micro x 4 accumulation x 2 processes" in found[0]
    assert "write phases[1].batch.micro=4 or" in found[0]
    assert refusals(quick(tmp_path, "phases[1].batch.micro=4", more=more), *words) == []


def test_deepspeed_config_is_compared_key_by_key(tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    words = ("--use_deepspeed", "--num_processes", "2", "--deepspeed_config_file", str(file))
    deepspeed: dict[str, Any] = {
        "train_batch_size": "auto", "gradient_clipping": 1, "steps_per_print": 10,
        "bf16": {"enabled": False}, "fp16": {"enabled": "auto", "loss_scale_window": 1000},
        "zero_optimization": {"stage": 2, "overlap_comm": True, "offload_param": {"device": "none"}},
    }  # fmt: skip
    file.write_text(json.dumps(deepspeed))
    overlap = "engine.deepspeed.zero_optimization.overlap_comm=true"
    assert refusals(quick(tmp_path, overlap), *words) == []
    assert refusals(quick(tmp_path), *words) == [
        f"accelerate launch: --deepspeed_config_file: '{file}': the run's engine.deepspeed differs in "
        f"zero_optimization.overlap_comm; write {overlap} and the like, or remove them there"
    ]
    file.write_text(
        json.dumps(
            {
                "train_micro_batch_size_per_gpu": 2, "bf16": {"enabled": True}, "zero_optimization": {"stage": 3},
                "optimizer": {"type": "AdamW", "params": {"lr": "auto"}},
            }
        )
    )  # fmt: skip
    assert refusals(quick(tmp_path), *words) == [
        f"{file}: train_micro_batch_size_per_gpu: 2: the run has batch.micro: 4; "
        "write batch.micro=2 or train_micro_batch_size_per_gpu: 4 there",
        f"{file}: bf16.enabled: True: the run has engine.precision: fp32; write engine.precision=bf16 or bf16.enabled: false there",
        f"{file}: zero_optimization.stage: 3: the run has engine.stage: 2; write engine.stage=3 or zero_optimization.stage: 2 there",
        f"{file}: optimizer.type: 'AdamW': the run has its own optimizer; remove it there, and set optimizer in the run's config",
    ]
    file.unlink()
    assert "cannot be read" in refusals(quick(tmp_path), *words)[0]

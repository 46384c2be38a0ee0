"""accelerate launch -m trainer: real launches, and the refusal of settings that contradict the run's config."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from accelerate.commands import config as accelerate_config
from accelerate.commands import launch as accelerate_launch
from accelerate.utils import prepare_deepspeed_cmd_env, prepare_multi_gpu_env, prepare_simple_launcher_cmd_env

from bellwether.trainer import config as c
from bellwether.trainer.accelerated.contradictions import check, contradictions
from bellwether.trainer.accelerated.launch import Launch, Wish, find, processes, read
from bellwether.trainer.distributed import World
from tests.launcher.processes import ROOT, finish, start, steps
from tests.precision import skip_without

FILES = sorted((ROOT / "configs/accelerate").glob("*.yaml"))

# 16 samples a step; on 2 processes 2 micro-batches of 4 each.
QUICK = """
name: quick
duration: 4 steps
model: {kind: cifar-resnet, depth: 8}
data: {kind: images, size: 8, mean: [0.3], std: [0.3], workers: 0}
batch: {global: 16, micro: 4}
optimizer: {lr: 1e-2}
log: {every: 1 steps, trackers: []}
evaluate: {limit: 16}
"""

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


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory, also used as HF_HOME, so that a user's default config of accelerate has no effect."""
    folder = tmp_path_factory.mktemp("space")
    (folder / "quick.yaml").write_text(QUICK.replace("workers: 0", f"workers: 0, cache: {folder}/cache"))
    return folder


def launch(space: Path, *arguments: str, name: str) -> tuple[int, str]:
    """Run accelerate launch; returns its exit status and standard error."""
    words = ("accelerate.commands.accelerate_cli", "launch", *arguments, "-m", "trainer", "quick.yaml", f"name={name}")
    status, _, error = finish(start(space, *words, HF_HOME=str(space)))
    return status, error


def messages(error: str) -> list[str]:
    """The lines of standard error that Bellwether has written."""
    return [line for line in error.splitlines() if line.startswith("bellwether: ")]


@pytest.mark.process
def test_two_cpu_processes_train_together(space: Path) -> None:
    status, error = launch(space, "--config_file", f"{ROOT}/configs/accelerate/cpu-2.yaml", name="two")
    assert status == 0, error
    assert "16 = 4 micro x 2 accumulation x 2 processes" in error
    assert steps(space, "two") == [1, 2, 3, 4]


@pytest.mark.process
def test_one_process_started_instead_of_two_is_refused_once(space: Path) -> None:
    # Port 0 selects a free one: with the default port, another accelerate on this machine would make the launch fail.
    status, error = launch(space, "--cpu", "--num_processes", "2", "--main_process_port", "0", name="one-of-two")
    assert status != 0
    assert len(messages(error)) == 1, error
    for words in ("--num_processes: 2", "started 1 process", "--config_file configs/accelerate/cpu-2.yaml -m trainer"):
        assert words in messages(error)[0]
    assert not (space / "runs/one-of-two").exists()


@pytest.mark.process
def test_default_mixed_precision_does_not_contradict_bf16(space: Path, tmp_path: Path) -> None:
    skip_without("bf16")
    default = tmp_path / "accelerate/default_config.yaml"
    default.parent.mkdir()
    default.write_text("{distributed_type: 'NO', mixed_precision: 'no', num_processes: 1, use_cpu: false}")
    words = ("accelerate.commands.launch", "-m", "trainer", "quick.yaml", "name=one", "engine.precision=bf16")
    status, _, error = finish(start(space, *words, HF_HOME=str(tmp_path)))
    assert status == 0, error
    assert "ZeRO 2, bf16" in error
    assert steps(space, "one") == [1, 2, 3, 4]


@pytest.mark.process
def test_contradictions_of_a_real_launch_are_reported_once_with_both_names(space: Path) -> None:
    file = space / "other.yaml"
    file.write_text(
        "distributed_type: DEEPSPEED\nnum_processes: 2\nmixed_precision: bf16\n"
        "deepspeed_config: {zero_stage: 3, gradient_accumulation_steps: 4}\n"
    )
    status, error = launch(space, "--config_file", str(file), "--main_process_port", "0", name="other")
    assert status != 0
    assert messages(error) == [
        f"bellwether: {file}: mixed_precision: 'bf16': the run has engine.precision: fp32; "
        "write engine.precision=bf16 or mixed_precision: 'no' there",
        f"bellwether: {file}: zero_stage: 3: the run has engine.stage: 2; write engine.stage=3 or zero_stage: 2 there",
        f"bellwether: {file}: gradient_accumulation_steps: 4: the run has batch.global: 16 = 4 micro x 2 accumulation "
        "x 2 processes; write batch.micro=2 or gradient_accumulation_steps: 2 there",
    ]
    assert not (space / "runs/other").exists()


def launched_by_accelerate(*words: str, script: str = "quick.yaml") -> tuple[dict[str, str], Launch, int]:
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


DEEPSPEED = ("--use_deepspeed", "--num_processes", "2")
MULTI = ("--multi_gpu", "--num_processes", "2")
OFFLOAD = "engine.deepspeed.zero_optimization.offload_optimizer.device"


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


@pytest.mark.parametrize(
    ("words", "file", "world_size", "device", "expected"),
    [
        (("--cpu", "--num_processes", "4"), "", 1, "cpu", "--num_processes: 4: accelerate has started 1 process,"),
        (("--cpu", "--num_processes", "4"), "", 1, "cpu", "cpu-2.yaml --num_processes 4 -m trainer"),
        ((), "{distributed_type: MULTI_CPU, use_cpu: true, num_processes: 2}", 1, "cpu", "FILE: num_processes: 2: "),
        ((), "{distributed_type: MULTI_GPU, num_processes: '2'}", 1, "cuda", "FILE: num_processes: 2: "),
        (("--num_processes", "4"), "{distributed_type: 'NO'}", 1, "cuda", "add --multi_gpu"),
        (("--cpu", "--num_machines", "2", "--main_process_ip", "10.0.0.1"), "", 1, "cpu",
         "--num_machines: 2: accelerate has started 1 process, as it does without --multi_gpu; "
         "add --multi_gpu, and --num_processes"),
        (("--multi_gpu", "--num_processes", "9", "--num_machines", "2", "--machine_rank", "1"), "", 8, "cuda",
         "accelerate has started 8 processes, as many on each of 2 machines; write a multiple of 2"),
        # mpirun started several accelerate commands, each of which starts one process.
        (("--cpu", "--num_processes", "2"), "", 4, "cpu", "--num_processes: 2: accelerate has started 4 processes"),
        (("--cpu", "--num_processes", "2"), "", 2, "cpu", None),
        ((), "{distributed_type: 'NO'}", 2, "cpu", None),
        (("--cpu",), "", 2, "cpu", None),
    ],
)  # fmt: skip
def test_unexpected_number_of_processes_is_refused(
    tmp_path: Path, words: tuple[str, ...], file: str, world_size: int, device: str, expected: str | None
) -> None:
    path = tmp_path / "accelerate.yaml"
    path.write_text(file)
    named = ("--config_file", str(path)) if file else ()
    found = refusals(quick(tmp_path), *named, *words, world_size=world_size, device=device)
    if expected is None:
        assert found == []
    else:
        assert len([line for line in found if "accelerate has started" in line]) == 1
        assert expected.replace("FILE", str(path)) in found[0]


def test_every_spelling_of_accelerate_launch_is_parsed_and_other_programs_are_not() -> None:
    given = ["--num-processes=2", "-m", "trainer", "c.yaml", "name=x"]
    own = ["python3", "-u", "-m", "trainer", "c.yaml", "name=x"]
    for words in (
        ["python3", "/venv/bin/accelerate", "launch"],
        ["accelerate-launch"],
        ["python3", "-m", "accelerate.commands.launch"],
        ["python3", "-X", "dev", "-m", "accelerate.commands.accelerate_cli", "launch"],
    ):
        found = read([*words, *given], own)
        assert found is not None, words
        assert found.typed["num_processes"] == 2
    assert read(["accelerate", "config"], own) is None
    assert read(["torchrun", *given], own) is None
    # accelerate launched another program here, and that one started this process.
    assert read(["accelerate", "launch", "--num_processes", "2", "-m", "sweep", "c.yaml"], own) is None


def test_unreadable_parent_processes_and_files_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    class Parent:
        def __init__(self, *words: str) -> None:
            self.words = words

        def cmdline(self) -> tuple[str, ...]:
            if not self.words:
                raise psutil.AccessDenied
            return self.words

    def parents(*found: Parent) -> None:
        monkeypatch.setattr(psutil.Process, "parents", lambda _: found)

    monkeypatch.setattr(sys, "orig_argv", ["python3", "-m", "trainer", "c.yaml"])
    launched = ("accelerate", "launch", "--cpu", "--num_processes", "2", "-m", "trainer", "c.yaml")
    parents(Parent("bash"), Parent(*launched))
    found = find()
    assert found is not None
    assert processes(found) == Wish("--num_processes", 2, "accelerate launch")
    parents(Parent(), Parent(*launched))
    assert find() is None
    parents(Parent("accelerate", "launch", "--config_file", "nothing.yaml", *launched[-3:]))
    assert find() is None
    parents(Parent("accelerate", "launch", "--an_option_of_the_future", "2", *launched[-3:]))
    assert find() is None


def test_parent_processes_are_read_only_under_accelerate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    monkeypatch.setattr("bellwether.trainer.accelerated.contradictions.find", lambda: reads.append("here"))
    world, config = World(0, 1, 0, torch.device("cpu")), quick(tmp_path)
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    check(config, world)
    assert reads == []
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(c.ConfigErrors, match=r"engine\.precision: fp32"):
        check(config, world)
    assert reads == ["here"]
    monkeypatch.setenv("BELLWETHER_WORLD_SIZE", "1")
    check(config, world)
    assert reads == ["here"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_shipped_files_start_their_processes_and_agree_with_their_recipe(path: Path) -> None:
    found = re.search(r"#   command   accelerate launch --config_file (\S+)(.*) -m trainer (\S+)\n", path.read_text())
    assert found, "the header has no command"
    assert ROOT / found[1] == path
    recipe = c.load(ROOT / found[3])
    # The second of two machines: accelerate opens no port there.
    words = ("--config_file", str(path), *found[2].replace("--machine_rank 0", "--machine_rank 1").split())
    environment, launched, count = launched_by_accelerate(*words, script=found[3])
    requested = processes(launched)
    assert requested is not None
    assert requested.value == count == accelerate_config.load_config_from_file(str(path)).num_processes
    assert launched.path == str(path)
    device = "cpu" if launched.file["use_cpu"] else "cuda"
    assert contradictions(recipe, count, device, environment, launched) == []
    assert [error.key for error in contradictions(recipe, count - 1, device, {}, launched)] == ["num_processes"]

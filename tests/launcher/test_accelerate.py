"""accelerate launch -m trainer: real launches."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.launcher.accelerated import QUICK
from tests.launcher.processes import ROOT, finish, start, steps
from tests.precision import skip_without


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


@pytest.mark.full
@pytest.mark.process
def test_one_process_started_instead_of_two_is_refused_once(space: Path) -> None:
    # Port 0 selects a free one: with the default port, another accelerate on this machine would make the launch fail.
    status, error = launch(space, "--cpu", "--num_processes", "2", "--main_process_port", "0", name="one-of-two")
    assert status != 0
    assert len(messages(error)) == 1, error
    for words in ("--num_processes: 2", "started 1 process", "--config_file configs/accelerate/cpu-2.yaml -m trainer"):
        assert words in messages(error)[0]
    assert not (space / "runs/one-of-two").exists()


@pytest.mark.full
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


@pytest.mark.full
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

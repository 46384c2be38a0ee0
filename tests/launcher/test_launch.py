"""bellwether launch without starting a run: the commands and scripts that it builds, and what it refuses."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from bellwether import cli
from bellwether.launcher import console, ssh
from bellwether.launcher.logs import logs
from bellwether.launcher.status import status
from bellwether.trainer import config, metrics, rundir

CONFIG = str(Path(__file__).parents[2] / "configs/resnet-digits.yaml")


def dry_run(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[list[str]]:
    assert cli.main(["launch", CONFIG, *arguments, "--dry-run"]) == 0, capsys.readouterr().err
    return [shlex.split(line) for line in capsys.readouterr().out.splitlines()]


@pytest.fixture
def hosts(tmp_path: Path) -> str:
    file = tmp_path / "hosts"
    file.write_text("me@node1 slots=4\nnode2 slots=4\n")
    return str(file)


def test_mpirun_command(capsys: pytest.CaptureFixture[str], hosts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    monkeypatch.setenv("HF_TOKEN", "secret")
    (command,) = dry_run(capsys, "data.source=a b", "--on", "mpi", "--hostfile", hosts)
    assert command[:3] == ["mpirun", "-np", "8"]
    assert command[command.index("--host") + 1] == "me@node1:4,node2:4"
    assert command[command.index("NCCL_DEBUG") - 1] == "-x"
    assert "HF_TOKEN" not in command
    assert command[-4:] == ["-m", "bellwether.trainer", CONFIG, "data.source=a b"]
    (command,) = dry_run(capsys, "--on", "mpi", "--nodes", "2", "--tasks-per-node", "3", "batch.global=240")
    assert command[:3] == ["mpirun", "-np", "6"]
    assert command[command.index("--map-by") + 1] == "ppr:3:node"


def test_ssh_commands(capsys: pytest.CaptureFixture[str], hosts: str) -> None:
    first, second = dry_run(capsys, "data.source=a b", "--on", "ssh", "--hostfile", hosts)
    assert first[0] == second[0] == "ssh"
    assert (first[-2], second[-2]) == ("me@node1", "node2")
    for index, command in enumerate((first, second)):
        remote = shlex.split(command[-1])
        assert f"--node={index}" in remote
        assert "--nodes=2" in remote
        assert "--nproc=4" in remote
        assert "--address=node1" in remote  # not me@node1
        assert remote[-3:] == ["--", CONFIG, "data.source=a b"]


def test_local_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert dry_run(capsys, "--tasks-per-node", "2") == [["bellwether", "train", CONFIG, "--nproc", "2"]]


@pytest.fixture(autouse=True)
def outside_any_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "PE_HOSTFILE"):
        monkeypatch.delenv(name, raising=False)


def test_command_line_overrides_the_variables_of_sbatch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "sbatch").write_text("#!/bin/sh\nenv > given.env\ncat > given.sh\necho 7\n")
    for tool in ("srun", "scontrol", "squeue"):
        (tmp_path / tool).write_text("#!/bin/sh\nexit 1\n")
    for tool in tmp_path.iterdir():
        tool.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("SBATCH_TIMELIMIT", "5")
    monkeypatch.setenv("SBATCH_PARTITION", "slow")
    assert cli.main(["launch", CONFIG, "--on", "slurm", "--time", "1:00:00", "--sbatch=--exclude=node3"]) == 0
    environment = (tmp_path / "given.env").read_text()
    assert "SBATCH_TIMELIMIT" not in environment
    assert "SBATCH_PARTITION=slow" in environment
    script = (tmp_path / "given.sh").read_text()
    assert "#SBATCH --time=1:00:00\n" in script
    assert "#SBATCH --exclude=node3\n" in script


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--on", "ssh"], "--hostfile: 'none': is required with --on ssh"),
        (["--on", "mpi"], "--hostfile: 'none': is required with --on mpi, outside of an allocation"),
        (
            ["--on", "mpi", "--sbatch=--exclude=a", "--nodes", "2"],
            "--sbatch: ['--exclude=a']: does not apply to --on mpi",
        ),
        (["--on", "local", "--nodes", "2"], "--nodes: 2: does not apply to --on local"),
        (["--on", "mpi", "--time", "1:00"], "--time: '1:00': does not apply to --on mpi"),
        (["--on", "mpi", "--hostfile", "nowhere"], "--hostfile: 'nowhere': cannot be read"),
        (["--on", "slurm", "--nodes", "3"], "batch.global: 256: cannot be divided equally among 24 processes"),
        (["--on", "slurm", "engine.world_size=7"], "engine.world_size: 7: 8 processes would be started"),
        (["--on", "slurm", "--site", "nowhere.yaml"], "--site: 'nowhere.yaml': cannot be read"),
        (["batch.globl=3"], "batch.globl"),
    ],
)
def test_invalid_options_and_configs_are_refused(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert cli.main(["launch", CONFIG, *arguments, "--dry-run"]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert words in error
    assert "Traceback" not in error


@pytest.mark.parametrize("command", ["train", "lr-find"])
def test_number_of_processes_is_compared_before_any_is_started(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [CONFIG, f"runs={tmp_path}/runs", "engine.world_size=4", "engine.device=cpu", "--nproc", "2"]
    assert cli.main([command, *arguments]) == 2
    assert (
        "engine.world_size: 4: 2 processes would be started; correct it, or write --nproc 4" in capsys.readouterr().err
    )
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("where", ["local", "slurm", "mpi"])
def test_run_directory_of_another_config_is_refused_before_anything_is_submitted(
    where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, lock = rundir.prepare(config.load(CONFIG, [f"runs={tmp_path}"]))
    lock.close()
    (run / "metrics.jsonl").touch()
    arguments = ["launch", CONFIG, f"runs={tmp_path}", "seed=7", "--on", where, "--nodes", "1", "--tasks-per-node", "1"]
    assert cli.main([*arguments[: None if where != "local" else -4], "--dry-run"]) == 2
    assert f"seed: 7: {run} was made with 1" in capsys.readouterr().err


def test_ssh_refuses_hosts_with_different_slots(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text("a slots=2\nb slots=4\n")
    assert cli.main(["launch", CONFIG, "--on", "ssh", "--hostfile", str(file)]) == 2
    assert "different slots: [2, 4]" in capsys.readouterr().err


def test_dry_run_prints_only_the_script(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["launch", CONFIG, "--on", "slurm", "--nodes", "2", "--dry-run"]) == 0
    out, error = capsys.readouterr()
    assert out.startswith("#!/usr/bin/env bash\n")
    assert out.endswith('exit "$code"\n')
    assert error == ""
    assert list(tmp_path.iterdir()) == []


def test_failed_quick_check_prevents_the_launch(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cli.main(["launch", CONFIG, "--on", "slurm", "--nodes", "2"]) == 1
    out, error = capsys.readouterr()
    assert out == ""
    assert "sbatch" in error
    assert "not launched; bellwether doctor shows all checks" in error


@pytest.mark.process
def test_remote_supervisor_ends_its_command_when_the_connection_closes(tmp_path: Path) -> None:
    import subprocess
    import sys

    mark = tmp_path / "terminated"
    program = f"import signal, sys, time\nsignal.signal(15, lambda *_: (open({str(mark)!r}, 'w').close(), sys.exit(9)))\nprint('up', flush=True)\ntime.sleep(60)"
    command = [
        sys.executable,
        "-c",
        f"import sys; from bellwether.launcher.ssh import supervise; sys.exit(supervise([sys.executable, '-c', {program!r}]))",
    ]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=Path(CONFIG).parents[1]
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == b"up\n"
        process.stdin.close()
        assert process.wait(20) == 9
    assert mark.exists()
    assert ssh.commands(["a"], 1, ["x"], 1)[0][0] == "ssh"


def test_status_and_logs_of_a_run_without_a_scheduler(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text("# bellwether\nname: x\n")
    writer = metrics.Metrics(tmp_path)
    writer.write("start", step=0, samples=0, resumed_from=None)
    writer.write("train", step=10, samples=100, loss=1.5, lr=0.1, samples_per_s=20.0, step_time=0.5, data_wait=0.125)
    writer.close()
    assert status(tmp_path) == 0
    out = capsys.readouterr().out
    for words in ("not running, not finished", "1.5000 at step 10", "20 samples/s, 0.5 s a step", "12.5% of the time"):
        assert words in out, out
    assert re.search(r"^ *step +10$", out, re.MULTILINE), out
    assert cli.main(["logs", str(tmp_path)]) == 2
    assert "logs/rank0.log does not exist yet" in capsys.readouterr().err
    assert cli.main(["status", str(tmp_path / "none")]) == 2
    assert "no run directory" in capsys.readouterr().err
    with pytest.raises(ValueError, match="does not exist yet"):
        logs(tmp_path, follow=False)


@pytest.mark.process
@pytest.mark.parametrize("failed", [0, 1])
def test_failed_host_ends_the_others_and_is_named(capfd: pytest.CaptureFixture[str], failed: int) -> None:
    import signal
    import subprocess
    import sys

    console.setup()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)}
    supervised = "from bellwether.launcher.ssh import supervise; import sys; sys.exit(supervise([sys.executable, '-c', 'import time; time.sleep(60)']))"
    programs = [supervised, supervised]
    programs[failed] = "import sys; sys.exit(3)"
    processes = [
        subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, cwd=Path(CONFIG).parents[1])
        for program in programs
    ]
    try:
        assert ssh._wait(["a", "b"], processes) == 3
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert processes[1 - failed].wait(20) == 128 + signal.SIGTERM
    assert f"{'ab'[failed]} exited with status 3" in capfd.readouterr().err

"""bellwether train as a subprocess: its output, its errors, signals, and resuming."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from torch.distributed import TCPStore
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from bellwether.launcher import console
from bellwether.launcher.local import _report_failure
from tests.precision import subprocess_path

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with one config that trains in a second and one that never ends."""
    folder = tmp_path_factory.mktemp("space")
    (folder / "quick.yaml").write_text(
        f"""
name: quick
duration: 4 steps
model: {{kind: cifar-resnet, depth: 8}}
data: {{kind: images, size: 8, mean: [0.3], std: [0.3], workers: 0, cache: {folder}/cache}}
batch: {{global: 16, micro: 4}}
optimizer: {{lr: 1e-2}}
log: {{every: 1 steps, trackers: []}}
evaluate: {{limit: 16}}
"""
    )
    (folder / "long.yaml").write_text(
        "extends: quick.yaml\nname: long\nduration: 100000 steps\ncheckpoint: {every: 5 steps}\n"
    )
    return folder


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", *arguments]


def start(space: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    path = subprocess_path(*filter(None, [environment.pop("PYTHONPATH", "")]), ROOT)
    return subprocess.Popen(
        command(*arguments), cwd=space, env={**os.environ, **environment, "PYTHONPATH": path},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str], seconds: float = 240) -> tuple[int, str, str]:
    out, error = process.communicate(timeout=seconds)
    return process.returncode, out, error


def steps(space: Path, name: str) -> list[int]:
    file = space / "runs" / name / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [line["step"] for line in lines if line["event"] == "train"]


def wait_for_step(process: subprocess.Popen[str], space: Path, name: str, step: int) -> None:
    deadline = time.monotonic() + 240
    while max(steps(space, name), default=0) < step:
        assert process.poll() is None, finish(process)
        assert time.monotonic() < deadline, "no progress"
        time.sleep(0.2)


def ranks_of(process: subprocess.Popen[str]) -> dict[int, psutil.Process]:
    found = {}
    for child in psutil.Process(process.pid).children(recursive=True):
        environment = child.environ()
        if "bellwether.trainer" in child.cmdline() and "RANK" in environment:
            found[int(environment["RANK"])] = child
    return found


@pytest.mark.process
def test_train_prints_a_summary_and_writes_report_and_export(space: Path) -> None:
    arguments = ("bellwether", "train", "quick.yaml", "--nproc", "2", "name=done", "seed=3")
    status, out, error = finish(start(space, *arguments, SLURM_STEP_NUM_TASKS="1"))
    assert status == 0, error
    assert re.search(r"held-out loss +\d", out)
    assert (space / "runs/done/report.html").is_file()
    assert (space / "runs/done/export/model.safetensors").is_file()
    assert steps(space, "done") == [1, 2, 3, 4]
    assert "2 processes" in error
    # The same command on a finished run changes nothing.
    status, out, error = finish(
        start(space, "bellwether", "train", "quick.yaml", "--nproc", "2", "name=done", "seed=3")
    )
    assert status == 0, error
    assert steps(space, "done") == [1, 2, 3, 4]
    # A different config for the same run directory is refused, with one message.
    status, out, error = finish(
        start(space, "bellwether", "train", "quick.yaml", "--nproc", "2", "name=done", "seed=4")
    )
    assert status == 2, error
    assert error.count("seed: 4") == 1
    assert "Traceback" not in error


@pytest.mark.process
@pytest.mark.parametrize("recipe", ["bert-tiny", "resnet-digits"])
def test_small_recipes_run(space: Path, recipe: str) -> None:
    arguments = (f"data.cache={space}/cache", "stop_after=3 steps", "evaluate.limit=64")
    status, out, error = finish(
        start(space, "bellwether", "train", f"{ROOT}/configs/{recipe}.yaml", "--nproc", "2", *arguments)
    )
    assert status == 0, error
    assert steps(space, recipe) == [1, 3]
    assert f"{recipe}: stopped" in out


@pytest.mark.process
def test_ranks_exit_when_the_launcher_is_killed_and_a_running_run_is_locked(space: Path) -> None:
    process = start(space, "bellwether", "train", "long.yaml", "--nproc", "2", "name=orphans")
    wait_for_step(process, space, "orphans", 3)
    status, _, error = finish(start(space, "bellwether.trainer", "long.yaml", "name=orphans"))
    assert status == 2
    assert "another process trains in" in error
    children = ranks_of(process)
    process.kill()
    process.communicate()
    gone, alive = psutil.wait_procs(children.values(), timeout=20)
    assert len(gone) == 2, alive


@pytest.mark.process
def test_torchrun_by_hand_inside_a_step_of_srun(space: Path) -> None:
    status, _, error = finish(
        start(space, "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint",
              "127.0.0.1:0", "-m", "bellwether.trainer", "quick.yaml", "name=torchrun", "engine.world_size=2", SLURM_STEP_NUM_TASKS="1")
    )  # fmt: skip
    assert status == 0, error
    assert steps(space, "torchrun") == [1, 2, 3, 4]


@pytest.mark.process
def test_unexpected_world_size_is_refused(space: Path) -> None:
    for arguments, environment, who in (
        (["engine.world_size=2"], {}, "engine.world_size asked for 2"),
        ([], {"BELLWETHER_WORLD_SIZE": "2"}, "bellwether --nproc"),
        ([], {"SLURM_STEP_NUM_TASKS": "4"}, "srun"),
        ([], {"RANK": "one"}, "RANK: 'one'"),
    ):
        status, _, error = finish(
            start(space, "bellwether.trainer", "quick.yaml", "name=alone", *arguments, **environment)
        )
        assert status == 2
        assert error.count(who) == 1, error
        assert "Traceback" not in error
    assert not (space / "runs/alone").exists()


@pytest.mark.process
@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["batch.globl=3"], ["batch.globl", "'global'"]),
        (["batch.global=15"], ["batch.global: 15", "14 and 16"]),
        (["nothing.yaml"], ["nothing.yaml"]),
    ],
)
def test_invalid_config_is_refused_once_before_any_process_starts(
    space: Path, overrides: list[str], words: list[str]
) -> None:
    status, out, error = finish(start(space, "bellwether", "train", "quick.yaml", "--nproc", "2", *overrides), 30)
    assert status == 2
    assert out == ""
    assert len(error.splitlines()) == 1, error
    for word in words:
        assert word in error


FAILING = """
import os
if os.environ.get("RANK") == "1":
    from bellwether.trainer.engine import Engine
    original = Engine.train_step
    def train_step(self, batches, taken=[]):
        taken.append(1)
        if len(taken) == 3:
            raise RuntimeError("the disk of rank 1 is on fire")
        return original(self, batches)
    Engine.train_step = train_step
"""


@pytest.mark.process
def test_failed_rank_ends_the_run_and_its_error_comes_first(space: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(FAILING)
    status, _, error = finish(
        start(space, "bellwether", "train", "long.yaml", "--nproc", "2", "name=failing", PYTHONPATH=str(tmp_path))
    )
    assert status == 1
    assert "rank 1 failed" in error
    report = error[error.index("bellwether: rank 1") :]
    assert "the disk of rank 1 is on fire" in report
    assert error.count("Traceback") == 1, error


UNREADABLE = """
import os
if os.environ.get("RANK") == "1":
    import bellwether.trainer.data.image_samples
    from bellwether.trainer.config import ConfigError
    def batch(self, indices, keys):
        raise ConfigError("data.source", "cat.png", "cannot be decoded", "mend it or take it out")
    bellwether.trainer.data.image_samples.ImageSamples.batch = batch
"""


@pytest.mark.process
def test_config_error_of_a_single_rank_is_reported(space: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(UNREADABLE)
    status, _, error = finish(
        start(space, "bellwether", "train", "long.yaml", "--nproc", "2", "name=unreadable", PYTHONPATH=str(tmp_path))
    )
    assert status == 2
    assert error.count("rank 1: data.source: 'cat.png': cannot be decoded; mend it") == 1, error
    assert "Traceback" not in error


def test_first_of_two_failures_within_a_second_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failures = {}
    for rank, status, text in (0, 1, "connection reset"), (1, 2, "ConfigError: no such file"):
        file = tmp_path / f"{rank}.json"
        file.write_text(json.dumps({"message": {"message": text, "extraInfo": {"timestamp": "1700000000"}}}))
        os.utime(file, (1.7e9, 1.7e9 - rank / 100))
        failures[rank] = ProcessFailure(rank, 1, status, str(file))
    console.setup()
    assert _report_failure(ChildFailedError("trainer", failures), tmp_path) == 2
    assert capsys.readouterr().err == "bellwether: rank 1: no such file\n"


@pytest.mark.process
def test_killed_rank_ends_the_run(space: Path) -> None:
    process = start(space, "bellwether", "train", "long.yaml", "--nproc", "2", "name=killed")
    wait_for_step(process, space, "killed", 3)
    children = ranks_of(process)
    children[1].send_signal(signal.SIGKILL)
    status, _, error = finish(process, 180)
    assert status == 1
    assert "rank 1 was killed by SIGKILL" in error
    assert not any(child.is_running() for child in children.values())


@pytest.mark.process
def test_ctrl_c_ends_all_ranks_and_the_same_command_resumes(space: Path) -> None:
    process = start(space, "bellwether", "train", "long.yaml", "--nproc", "2", "name=interrupted")
    wait_for_step(process, space, "interrupted", 7)
    children = ranks_of(process)
    os.killpg(process.pid, signal.SIGINT)
    status, _, error = finish(process, 180)
    assert status == 130
    assert "resumes from the newest checkpoint" in error
    assert "Traceback" not in error, error
    assert not any(child.is_running() for child in children.values())
    before = max(steps(space, "interrupted"))
    status, _, error = finish(
        start(
            space,
            "bellwether",
            "train",
            "long.yaml",
            "--nproc",
            "2",
            "name=interrupted",
            f"stop_after={before + 3} steps",
        )
    )
    assert status == 0, error
    assert "going on at step 5" in error or re.search(r"going on at step \d*[05] ", error)
    assert max(steps(space, "interrupted")) == before + 3


@pytest.mark.process
@pytest.mark.parametrize("to", ["launcher", "rank"])
def test_signal_saves_at_the_next_step_and_the_resumed_run_ends_bit_identical(space: Path, to: str) -> None:
    config = ("bellwether", "train", "quick.yaml", "--nproc", "2", "duration=60 steps", "log.every=1000 steps")
    status, _, error = finish(start(space, *config, "name=whole"))
    assert status == 0, error
    process = start(space, *config, f"name=signalled-{to}", "log.every=1 steps")
    wait_for_step(process, space, f"signalled-{to}", 5)
    if to == "rank":
        ranks_of(process)[1].send_signal(signal.SIGUSR2)
    else:
        process.send_signal(signal.SIGTERM)
    status, _, error = finish(process, 180)
    assert status == 75, error
    name = "SIGUSR2" if to == "rank" else "SIGTERM"
    stopped = re.search(rf"stopped by {name} at step (\d+)", error)
    assert stopped, error
    assert int(stopped[1]) < 60
    assert (space / f"runs/signalled-{to}/checkpoints/step-{int(stopped[1]):08d}").is_dir()
    assert not (space / f"runs/signalled-{to}/finished.json").exists()
    status, _, error = finish(start(space, *config, f"name=signalled-{to}"))
    assert status == 0, error
    assert (space / f"runs/signalled-{to}/finished.json").is_file()
    exports = [space / "runs" / run / "export/model.safetensors" for run in ("whole", f"signalled-{to}")]
    assert exports[0].read_bytes() == exports[1].read_bytes()


@pytest.mark.process
def test_limit_of_open_files_is_raised_to_the_hard_limit() -> None:
    program = (
        "import resource\n"
        "from bellwether.trainer.__main__ import _allow_open_files\n"
        "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))\n"
        "_allow_open_files()\n"
        "assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, capture_output=True)


HANGING = """
import os, sys
if os.environ.get("RANK") == os.environ.get("TEST_SILENT", "") and "bellwether.trainer" in sys.orig_argv:
    from bellwether.trainer.engine import Engine
    original = Engine.train_step
    def train_step(self, batches, taken=[]):
        taken.append(1)
        if len(taken) == 3:
            os.kill(os.getpid(), 19)  # SIGSTOP: the process exists, but does not respond
        return original(self, batches)
    Engine.train_step = train_step
"""


@pytest.mark.process
@pytest.mark.parametrize("silent", [0, 1])
def test_silent_rank_ends_the_run_and_is_named(space: Path, tmp_path: Path, silent: int) -> None:
    (tmp_path / "sitecustomize.py").write_text(HANGING)
    # The store is outside of the ranks, as torchrun's is, but no agent sends signals to the other rank.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ranks = [
        start(
            space, "bellwether.trainer", "long.yaml", f"name=silent{silent}", "engine.heartbeat=5", RANK=str(rank),
            LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(store.port),
            TORCHELASTIC_USE_AGENT_STORE="True", TORCHELASTIC_RESTART_COUNT="0", TEST_SILENT=str(silent),
            PYTHONPATH=str(tmp_path),
        ) for rank in range(2)
    ]  # fmt: skip
    wait_for_step(ranks[0], space, f"silent{silent}", 2)
    status, _, error = finish(ranks[1 - silent], 90)
    ranks[silent].kill()
    ranks[silent].communicate()
    assert status == 76, error
    assert re.search(rf"rank {silent} on \S+ has been silent for \d+ s; last heard at step [0-2], ", error), error
    beat = json.loads((space / f"runs/silent{silent}/logs/heartbeat.json").read_text())
    assert {row["rank"] for row in beat["furthest_behind"]} == {0, 1}
    if silent == 1:
        assert beat["ended"] == "lost"
        assert max(beat["furthest_behind"], key=lambda row: row["silent_s"])["rank"] == 1


@pytest.mark.process
def test_logs_follows_a_local_run_to_its_end_and_keeps_restarts(space: Path) -> None:
    command_line = ("bellwether", "train", "long.yaml", "--nproc", "2", "name=logged")
    process = start(space, *command_line, "stop_after=60 steps")
    wait_for_step(process, space, "logged", 2)
    status, followed, error = finish(start(space, "bellwether", "logs", "runs/logged", "-f"))
    assert status == 0, error
    status, out, error = finish(process)
    assert status == 0, error
    assert "plan of logged" in followed
    assert re.search(r"^step +2/100000 .* loss ", followed, re.M), followed
    assert out in followed  # the summary
    status, _, error = finish(start(space, *command_line, "stop_after=61 steps"))
    assert status == 0, error
    status, out, error = finish(start(space, "bellwether", "logs", "runs/logged"))
    assert status == 0, error
    assert out.startswith(followed)
    assert len(re.findall(r"^--- .* process \d+ on ", out, re.M)) == 2


@pytest.mark.process
def test_log_of_a_run_in_a_terminal_has_lines_instead_of_the_progress_bar(space: Path) -> None:
    terminal, end = pty.openpty()
    with subprocess.Popen(
        command("bellwether", "train", "quick.yaml", "name=in-terminal"), cwd=space, stdin=end, stdout=end, stderr=end,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"}, start_new_session=True,
    ) as process:  # fmt: skip
        os.close(end)
        shown = b""
        with contextlib.suppress(OSError):  # raised at the end of a terminal's output
            while data := os.read(terminal, 4096):
                shown += data
    os.close(terminal)
    assert process.returncode == 0, shown
    assert b"\r" in shown.replace(b"\r\n", b"")
    assert b"100% |" in shown
    log = (space / "runs/in-terminal/logs/rank0.log").read_text()
    assert "\r" not in log
    assert "%|" not in log.replace(" ", "")
    assert [int(step) for step in re.findall(r"^step (\d)/4 .* loss ", log, re.M)] == [1, 2, 3, 4]
    assert "step 4: held-out loss" in log
    assert "in-terminal: finished" in log


@pytest.mark.process
def test_report_is_rebuilt_for_a_run_and_refused_elsewhere(space: Path) -> None:
    finish(start(space, "bellwether", "train", "quick.yaml", "name=reported"))
    (space / "runs/reported/report.html").unlink()
    status, out, _ = finish(start(space, "bellwether", "report", "runs/reported"))
    assert status == 0
    assert "report.html" in out
    assert (space / "runs/reported/report.html").is_file()
    status, _, error = finish(start(space, "bellwether", "report", "runs"))
    assert status == 2
    assert "config.yaml" in error

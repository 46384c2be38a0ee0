"""The decision whether a job is requeued, from the record of its attempts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bellwether.launcher import attempts, requeue
from bellwether.launcher.attempts import Attempt
from bellwether.launcher.requeue import decide

RUNNING = "JobId=7 JobState=RUNNING Reason=None RunTime=00:10:00 TimeLimit=01:00:00"
CANCELLED = "JobId=7 JobState=COMPLETING Reason=None RunTime=00:10:00 TimeLimit=1-00:00:00"
OVER = "JobId=7 JobState=COMPLETING Reason=None RunTime=1-00:00:03 TimeLimit=1-00:00:00"


def attempt(status: int | None, reached: int = 0, saved: int = 0, job: str = "7", slack: int = 0) -> Attempt:
    return Attempt(
        job=job, restart=0, time=0.0, nodes="n[1-2]", tasks=2, log="", step=0, status=status, reached=reached,
        saved=saved, slack=slack,
    )  # fmt: skip


CASES = {
    "finished": ([attempt(0, 9, 9)], 0, RUNNING, 0, "stopped where"),
    "a user's error": ([attempt(2)], 2, RUNNING, 2, "config"),
    "saved": ([attempt(75, 50, 50)], 75, RUNNING, 75, "saved at step 50"),
    "saved, then cancelled": ([attempt(75, 50, 50)], 75, CANCELLED, 75, "cancelled"),
    "killed, then cancelled": ([attempt(137, 50, 40)], 137, CANCELLED, 137, "cancelled"),
    "killed at the time limit": ([attempt(137, 50, 40)], 137, OVER, 75, "retries from step 40"),
    "requeued by SLURM": ([attempt(1, 50, 40)], 1, f"{CANCELLED} Restarts=1", 1, "SLURM itself has requeued the job"),
    "one failure": ([attempt(1, 50, 40)], 1, RUNNING, 75, "status 1 at step 50"),
    "twice at one step": ([attempt(1, 50, 40), attempt(1, 50, 40)], 1, RUNNING, 1, "failed twice at step 50"),
    "within the slack": ([attempt(137, 48, 40, slack=3), attempt(137, 50, 40)], 137, RUNNING, 137, "failed twice"),
    "beyond the slack": ([attempt(137, 46, 40, slack=3), attempt(137, 50, 40)], 137, RUNNING, 75, "retries from"),
    "a newer checkpoint": ([attempt(1, 50, 40), attempt(1, 50, 50)], 1, RUNNING, 75, "retries from step 50"),
    "a signal between": ([attempt(1, 50, 40), attempt(75, 50, 50), attempt(1, 50, 50)], 1, RUNNING, 75, "retries"),
    "another job's": ([attempt(1, 50, 40, job="6"), attempt(1, 50, 40)], 1, RUNNING, 75, "retries from"),
    "a lost node, twice": ([attempt(76, 50, 40), attempt(76, 50, 40)], 76, RUNNING, 75, "lost a rank at step 50"),
    "no progress": ([attempt(76, 50, 0)] * 5, 76, RUNNING, 76, "5 attempts without a newer checkpoint"),
    "late progress": ([attempt(76, 50, 0)] * 4 + [attempt(76, 60, 60)], 76, RUNNING, 75, "resumes from step 60"),
    "after an end without record": ([attempt(None, 50, 40), attempt(1, 50, 40)], 1, RUNNING, 75, "retries from"),
    "no restarts left": ([attempt(75, n, n) for n in range(4)], 75, RUNNING, 75, "started 4 times"),
}


@pytest.mark.parametrize("name", CASES)
def test_decision_after_an_attempt(name: str) -> None:
    history, status, job, expected, words = CASES[name]
    exit_code, reason = decide(
        history, status, finished=False, restarts=50 if name != "no restarts left" else 3, job=job
    )
    assert words in reason
    # A job that is not requeued must not exit with the status that requests a requeue.
    assert exit_code == (1 if name in ("saved, then cancelled", "no restarts left") else expected)


def test_begin_and_end_record_the_attempts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs/x"
    assert requeue.begin(run, 1) == 0
    (run / "checkpoints/step-00000040").mkdir(parents=True)
    (run / "checkpoints/step-00000050.partial").mkdir()
    beat = {"time": 4e9, "step": 44, "steps": 2, "ended": "failed"}
    (run / "logs/heartbeat.json").write_text(json.dumps(beat))
    assert requeue.end(run, 1, RUNNING, 1) == 75
    assert requeue.begin(run, 1) == 0
    assert requeue.end(run, 1, RUNNING, 1) == 1
    assert requeue.begin(run, 1) == 1
    first, second = attempts.read(run)
    assert (first.step, first.reached, first.slack, first.saved, first.status) == (0, 44, 2, 40, 1)
    assert (second.step, second.tasks) == (40, 4)
    assert first.log == str(tmp_path / "logs/7/rank0.log")
    assert "allows 1 restarts" in capsys.readouterr().out
    # The trainer's own outcome overrides srun's exit status, which may be that of a rank that srun killed.
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    assert requeue.begin(run, 1) == 0
    (run / "logs/heartbeat.json").write_text(json.dumps({**beat, "ended": "saved"}))
    assert requeue.end(run, 137, RUNNING, 1) == 75
    # The heartbeat of an earlier attempt is ignored.
    monkeypatch.setenv("SLURM_JOB_ID", "9")
    assert requeue.begin(run, 1) == 0
    (run / "logs/heartbeat.json").write_text(json.dumps({**beat, "time": 1.0, "ended": "saved"}))
    assert requeue.end(run, 137, RUNNING, 1) == 75
    assert attempts.read(run)[-1].status == 137
    # A signal while Python was starting is not a failure.
    monkeypatch.setenv("SLURM_JOB_ID", "10")
    assert requeue.begin(run, 1) == 0
    assert requeue.end(run, 140, RUNNING, 1) == 75
    assert attempts.read(run)[-1].status == 75
    (run / "finished.json").write_text("{}")
    assert requeue.begin(run, 1) == requeue.NOTHING_TO_DO


def test_attempts_of_two_jobs_on_one_run_are_kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    requeue.begin(tmp_path, 9)
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
    requeue.begin(tmp_path, 9)
    assert requeue.end(tmp_path, 2, RUNNING, 9) == 2
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert requeue.end(tmp_path, 75, f"{RUNNING} Restarts=1", 9) == 75
    assert [(a.job, a.status) for a in attempts.read(tmp_path)] == [("7", 75), ("8", 2)]


def test_failure_in_the_heartbeat_overrides_the_status_of_other_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    requeue.begin(tmp_path, 9)
    beat = {"time": 4e9, "step": 44, "steps": 0, "ended": "failed"}
    (tmp_path / "logs/heartbeat.json").write_text(json.dumps(beat))
    assert requeue.end(tmp_path, 76, RUNNING, 9) == 75
    assert attempts.read(tmp_path)[-1].status == 1


def test_attempt_whose_first_node_was_lost_counts_as_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert requeue.begin(tmp_path, 1) == 0
    assert requeue.begin(tmp_path, 1) == 0
    assert "the previous attempt recorded no end" in capsys.readouterr().out
    assert requeue.begin(tmp_path, 1) == 1


def test_truncated_record_is_read_as_far_as_possible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    requeue.begin(tmp_path, 1)
    with open(tmp_path / attempts.FILE, "a") as file:
        file.write('{"event": "end", "sta\n\n{"event": "begin"}\n[]\n')
    assert [a.job for a in attempts.read(tmp_path)] == ["7"]


def test_submission_is_waiting_until_its_attempt_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert attempts.waiting(tmp_path) is None
    attempts.submitted(tmp_path, "7", "x.log")
    waiting = attempts.waiting(tmp_path)
    assert waiting is not None
    assert (waiting["job"], waiting["log"]) == ("7", "x.log")
    assert attempts.read(tmp_path) == []
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    requeue.begin(tmp_path, 1)
    assert attempts.waiting(tmp_path) is None
    assert len(attempts.read(tmp_path)) == 1


def test_invalid_number_of_restarts_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BELLWETHER_RESTARTS", "many")
    assert requeue.main(["begin", "configs/bert-tiny.yaml"]) == 2
    assert "BELLWETHER_RESTARTS: 'many'" in capsys.readouterr().err


@pytest.mark.process
def test_modules_that_a_batch_script_runs_import_nothing_heavy() -> None:
    program = (
        "import sys, bellwether.launcher.requeue, bellwether.launcher.status, bellwether.trainer.rendezvous\n"
        "bellwether.launcher.requeue.load('configs/bert-tiny.yaml')\n"
        "heavy = {'torch', 'numpy', 'deepspeed', 'transformers', 'datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])


@pytest.mark.process
def test_errors_in_a_batch_script_have_the_prefix() -> None:
    command = [sys.executable, "-m", "bellwether.launcher.requeue", "begin", "nowhere.yaml"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("bellwether: CONFIG: 'nowhere.yaml'")

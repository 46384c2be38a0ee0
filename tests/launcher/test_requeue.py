"""Whether a job starts again, decided from what is known of its attempts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bellwether.launcher import requeue
from bellwether.launcher.requeue import Attempt, decide

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
    "killed at the time limit": ([attempt(137, 50, 40)], 137, OVER, 75, "tries from step 40"),
    "requeued by SLURM": ([attempt(1, 50, 40)], 1, f"{CANCELLED} Restarts=1", 1, "SLURM itself has put the job back"),
    "one failure": ([attempt(1, 50, 40)], 1, RUNNING, 75, "status 1 at step 50"),
    "twice in one place": ([attempt(1, 50, 40), attempt(1, 50, 40)], 1, RUNNING, 1, "failed twice at step 50"),
    "within the lag": ([attempt(137, 48, 40, slack=3), attempt(137, 50, 40)], 137, RUNNING, 137, "failed twice"),
    "beyond the lag": ([attempt(137, 46, 40, slack=3), attempt(137, 50, 40)], 137, RUNNING, 75, "tries from"),
    "a newer checkpoint": ([attempt(1, 50, 40), attempt(1, 50, 50)], 1, RUNNING, 75, "tries from step 50"),
    "a signal between": ([attempt(1, 50, 40), attempt(75, 50, 50), attempt(1, 50, 50)], 1, RUNNING, 75, "tries"),
    "another job's": ([attempt(1, 50, 40, job="6"), attempt(1, 50, 40)], 1, RUNNING, 75, "tries from"),
    "a lost node, twice": ([attempt(76, 50, 40), attempt(76, 50, 40)], 76, RUNNING, 75, "lost a rank at step 50"),
    "no progress": ([attempt(76, 50, 0)] * 5, 76, RUNNING, 76, "5 attempts have brought no newer checkpoint"),
    "late progress": ([attempt(76, 50, 0)] * 4 + [attempt(76, 60, 60)], 76, RUNNING, 75, "goes on from step 60"),
    "after a silent end": ([attempt(None, 50, 40), attempt(1, 50, 40)], 1, RUNNING, 75, "tries from"),
    "spent": ([attempt(75, n, n) for n in range(4)], 75, RUNNING, 75, "has started 4 times"),
}


@pytest.mark.parametrize("name", CASES)
def test_what_follows(name: str) -> None:
    attempts, status, job, verdict, words = CASES[name]
    found, reason = decide(attempts, status, finished=False, restarts=50 if name != "spent" else 3, job=job)
    assert words in reason
    # Cancelled and spent jobs end with the status of their last attempt, which may be that of a saved one.
    assert found == (1 if name in ("saved, then cancelled", "spent") else verdict)


def test_begin_and_end_leave_a_record(
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
    first, second = requeue.attempts(run)
    assert (first.step, first.reached, first.slack, first.saved, first.status) == (0, 44, 2, 40, 1)
    assert (second.step, second.tasks) == (40, 4)
    assert first.log == str(tmp_path / "logs/7-rank0.log")
    assert "allows 1 restarts" in capsys.readouterr().out
    # What the trainer says of its end counts more than srun's status, which is that of whom srun has killed.
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    assert requeue.begin(run, 1) == 0
    (run / "logs/heartbeat.json").write_text(json.dumps({**beat, "ended": "saved"}))
    assert requeue.end(run, 137, RUNNING, 1) == 75
    # A beat of another attempt tells nothing.
    monkeypatch.setenv("SLURM_JOB_ID", "9")
    assert requeue.begin(run, 1) == 0
    (run / "logs/heartbeat.json").write_text(json.dumps({**beat, "time": 1.0, "ended": "saved"}))
    assert requeue.end(run, 137, RUNNING, 1) == 75
    assert requeue.attempts(run)[-1].status == 137
    # Told to stop while Python was starting: no failure.
    monkeypatch.setenv("SLURM_JOB_ID", "10")
    assert requeue.begin(run, 1) == 0
    assert requeue.end(run, 140, RUNNING, 1) == 75
    assert requeue.attempts(run)[-1].status == 75
    (run / "finished.json").write_text("{}")
    assert requeue.begin(run, 1) == requeue.NOTHING_TO_DO


def test_another_job_on_the_same_run_does_not_confuse_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    assert [(a.job, a.status) for a in requeue.attempts(tmp_path)] == [("7", 75), ("8", 2)]


def test_a_rank_that_failed_is_believed_and_not_the_status_of_those_that_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    requeue.begin(tmp_path, 9)
    beat = {"time": 4e9, "step": 44, "steps": 0, "ended": "failed"}
    (tmp_path / "logs/heartbeat.json").write_text(json.dumps(beat))
    assert requeue.end(tmp_path, 76, RUNNING, 9) == 75
    assert requeue.attempts(tmp_path)[-1].status == 1


def test_a_first_node_that_was_lost_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert requeue.begin(tmp_path, 1) == 0
    assert requeue.begin(tmp_path, 1) == 0
    assert "ended without a word" in capsys.readouterr().out
    assert requeue.begin(tmp_path, 1) == 1


def test_a_torn_record_is_read_as_far_as_it_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    requeue.begin(tmp_path, 1)
    with open(tmp_path / requeue.FILE, "a") as file:
        file.write('{"event": "end", "sta\n\n{"event": "begin"}\n[]\n')
    assert [a.job for a in requeue.attempts(tmp_path)] == ["7"]


def test_a_submission_waits_until_it_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert requeue.waiting(tmp_path) is None
    requeue.submitted(tmp_path, "7", "x.log")
    waiting = requeue.waiting(tmp_path)
    assert waiting is not None
    assert (waiting["job"], waiting["log"]) == ("7", "x.log")
    assert requeue.attempts(tmp_path) == []
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    requeue.begin(tmp_path, 1)
    assert requeue.waiting(tmp_path) is None
    assert len(requeue.attempts(tmp_path)) == 1


def test_a_wrong_budget_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("BELLWETHER_RESTARTS", "many")
    assert requeue.main(["begin", "configs/bert-tiny.yaml"]) == 2
    assert "BELLWETHER_RESTARTS: 'many'" in capsys.readouterr().err


@pytest.mark.process
def test_nothing_heavy_is_imported_by_what_a_batch_script_asks_twice_an_attempt() -> None:
    program = (
        "import sys, bellwether.launcher.requeue, bellwether.launcher.status, bellwether.trainer.rendezvous\n"
        "bellwether.launcher.requeue.load('configs/bert-tiny.yaml')\n"
        "heavy = {'torch', 'numpy', 'deepspeed', 'transformers', 'datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])

"""What the time of a run went to, on chains of jobs with a known answer; and the checkpoint interval that follows."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from bellwether.trainer.checkpoint_interval import DEFAULT_MTBF, suggest
from bellwether.trainer.goodput import Goodput, account
from bellwether.trainer.metrics import read
from bellwether.trainer.report import summary, write


def lines(file: Path, *rows: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "a") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)


def event(kind: str, time: float, step: int, **values: Any) -> dict[str, Any]:
    return {"event": kind, "time": time, "step": step, "samples": 8 * step, **values}


def chain(run: Path) -> None:
    """Two jobs. The first is killed after step 30 of which 20 were saved, and is requeued; the second job finishes."""
    train = {"phase": 0, "loss": 1.0, "step_time": 1.0, "data_time": 0.1, "samples_per_s": 8.0}
    lines(
        run / "logs/attempts.jsonl",
        {"event": "submitted", "job": "1", "time": 1000, "log": "a"},
        {"event": "begin", "job": "1", "restart": 0, "time": 1100, "nodes": "n[1-2]", "tasks": 2, "log": "a", "step": 0},
        {"event": "end", "job": "1", "ended": 1165, "status": 76, "reached": 33, "saved": 20, "reason": "lost", "new": 1},
        {"event": "unheard of", "job": "1", "time": 1166},
        {"event": "begin", "job": "1", "restart": 1, "time": 1215, "nodes": "n[1-2]", "tasks": 2, "log": "a", "step": 20},
        {"event": "submitted", "job": "2", "time": 1220, "log": "b"},
        {"event": "end", "job": "1", "ended": 1255, "status": 75, "reached": 40, "saved": 40, "reason": "saved"},
        {"event": "begin", "job": "2", "restart": 0, "time": 1300, "nodes": "n[1-2]", "tasks": 2, "log": "b", "step": 40},
        {"event": "end", "job": "2", "ended": 1330, "status": 0, "reached": 50, "saved": 50, "reason": "finished"},
    )  # fmt: skip
    lines(
        run / "metrics.jsonl",
        event("start", 1110, 0, nodes=2),
        event("train", 1125, 10, **train),  # 5 s to build the engine
        event("train", 1135, 20, **train),
        event("checkpoint", 1139, 20, path="x", seconds=4),
        event("start", 1220, 20, nodes=2),
        event("train", 1235, 30, **train),
        event("train", 1245, 40, **train),  # 3 of 10 steps for the second time
        event("checkpoint", 1249, 40, path="x", seconds=4),
        event("start", 1305, 40, nodes=2),
        event("train", 1318, 50, **train),
        event("checkpoint", 1322, 50, path="x", seconds=4),
        event("eval", 1328, 50, phase=0, loss=1.0, accuracy=0.5, examples=8, seconds=6),
        event("end", 1330, 50, seconds=1, reason="finished"),
    )
    lines(run / "logs/abandoned.jsonl", {**event("train", 1149, 30, **train), "launch": 0})


EXPECTED = {
    "training": (30 + 7 + 10) * 0.9,
    "waiting for data": (30 + 7 + 10) * 0.1,
    "redoing lost steps": 13.0,
    "saving": 12.0,
    "evaluating": 6.0,
    "starting": 15 + 10 + 8,
    "waiting in the queue": 100 + 50 + 45,
    "not running": 0.0,
    # Steps 31 to 33, which no line has, and the ends of the processes.
    "unknown": 16 + 6 + 2,
}


def test_parts_of_a_chain_of_jobs_add_up_to_its_time(tmp_path: Path) -> None:
    chain(tmp_path)
    found = account(tmp_path)
    assert found.seconds == pytest.approx(EXPECTED)
    assert found.total == pytest.approx(330)
    assert sum(found.shares.values()) == pytest.approx(1)
    assert found.failures == 1
    assert str(found).startswith("59.1% waiting in the queue, 12.8% training, 10.0% starting")


def test_job_that_waits_has_waited_until_now(tmp_path: Path) -> None:
    lines(tmp_path / "logs/attempts.jsonl", {"event": "submitted", "job": "1", "time": 1000, "log": "a"})
    found = account(tmp_path, now=1060)
    assert found.shares == {"waiting in the queue": 1.0}
    assert found.total == 60
    run = tmp_path / "chain"
    chain(run)
    for job, time in ("3", 1350), ("4", 1400):  # job 3 was cancelled while it waited
        lines(run / "logs/attempts.jsonl", {"event": "submitted", "job": job, "time": time, "log": "a"})
    found = account(run, now=1450)
    assert (found.seconds["not running"], found.seconds["waiting in the queue"]) == pytest.approx((70, 245))


def test_local_run_that_was_stopped_was_not_running(tmp_path: Path) -> None:
    train = {"phase": 0, "loss": 1.0, "step_time": 1.0}
    lines(
        tmp_path / "metrics.jsonl",
        event("start", 1010, 0, startup=10),
        event("train", 1015, 3, **train),
        event("end", 1015, 3, seconds=1, reason="stopped"),
        event("start", 1110, 3, startup=10),
        event("train", 1112, 5, **train),
        event("start", 1160, 5, startup=10),  # killed: when is not known
        event("train", 1161, 6, **train),
    )
    found = account(tmp_path)
    assert {part: seconds for part, seconds in found.seconds.items() if seconds} == {
        "training": 6, "starting": 32, "not running": 85, "unknown": 38
    }  # fmt: skip
    assert found.failures == 1


def test_clock_that_was_set_back_keeps_the_parts_consistent(tmp_path: Path) -> None:
    train = {"phase": 0, "loss": 1.0, "step_time": 1.0}
    lines(
        tmp_path / "metrics.jsonl",
        event("start", 5000, 0), event("train", 5002, 2, **train),
        event("start", 1000, 2), event("train", 1002, 4, **train),
    )  # fmt: skip
    found = account(tmp_path)
    assert all(seconds >= 0 for seconds in found.seconds.values())
    assert sum(found.shares.values()) == pytest.approx(1)


def test_empty_run_has_no_parts(tmp_path: Path) -> None:
    assert account(tmp_path).total == 0
    assert account(tmp_path).shares == {}
    assert str(Goodput()) == ""


def test_interval_follows_from_the_cost_of_a_checkpoint_and_the_failures(tmp_path: Path) -> None:
    assert suggest(read(tmp_path), account(tmp_path)) is None
    chain(tmp_path)
    found = suggest(read(tmp_path), account(tmp_path))
    assert found is not None
    assert found.mtbf == pytest.approx(330 - 195)
    assert found.seconds == pytest.approx(math.sqrt(2 * 4 * 135))
    assert found.steps == 33
    assert (
        str(found)
        == "every 33 steps (0:00:33): a checkpoint stops training for 4 s, a failure comes every 0:02:15 (1 seen)"
    )
    without = suggest(read(tmp_path), Goodput({**account(tmp_path).seconds}))
    assert without is not None
    assert without.mtbf == DEFAULT_MTBF / 2
    assert str(without).endswith("(assumed for 2 nodes)")


def beside(run: Path) -> None:
    """Checkpoints that were written while training went on: the copy takes 0.5 s, the writing 6 s. The end waits for the last one."""
    train = {"phase": 0, "loss": 1.0, "step_time": 0.9}
    cost = {"path": "x", "seconds": 6.5, "blocked_seconds": 0.5, "waited_seconds": 0.0}
    lines(
        run / "metrics.jsonl",
        event("start", 1000, 0),
        event("train", 1011, 10, **train),  # 2 s to build the engine
        event("eval", 1013.5, 10, phase=0, loss=1.0, accuracy=0.5, examples=8, seconds=2),  # after the copy
        event("train", 1022.5, 20, **train),
        event("checkpoint", 1023, 10, **cost),  # a second copy, of 0.5 s, was before this
        event("train", 1032, 30, **train),
        event("checkpoint", 1033, 20, **cost),
        event("checkpoint", 1038.5, 30, path="x", seconds=6.5, blocked_seconds=6.5, waited_seconds=6.0),
        event("end", 1038.5, 30, seconds=1, reason="finished"),
    )


def test_checkpoints_that_are_written_beside_training_cost_what_it_stood_still_for(tmp_path: Path) -> None:
    beside(tmp_path)
    found = account(tmp_path)
    assert {part: seconds for part, seconds in found.seconds.items() if seconds > 1e-9} == pytest.approx(
        {"training": 27.0, "saving": 0.5 + 0.5 + 6.5, "evaluating": 2.0, "starting": 2.0}
    )
    assert found.total == pytest.approx(38.5)


def test_interval_counts_the_copy_and_is_no_shorter_than_the_writing(tmp_path: Path) -> None:
    beside(tmp_path)
    often = suggest(read(tmp_path), Goodput({**account(tmp_path).seconds}, failures=1))
    assert often is not None
    assert often.cost == pytest.approx(0.5)
    assert often.seconds == pytest.approx(6.5)  # sqrt(2 * 0.5 * 38.5) is 6.2
    seldom = suggest(read(tmp_path), Goodput({**account(tmp_path).seconds}))
    assert seldom is not None
    assert seldom.seconds == pytest.approx(math.sqrt(2 * 0.5 * DEFAULT_MTBF))
    assert "stops training for 0.5 s" in str(seldom)
    page = write(tmp_path).read_text()
    assert "of them training stood still" in page


def test_report_and_summary_show_what_the_time_went_to(tmp_path: Path) -> None:
    chain(tmp_path)
    page = write(tmp_path).read_text()
    assert 'aria-label="59.1% waiting in the queue' in page
    assert page.count('<i class="training"') == 2
    assert "every 33 steps" in page
    assert "59.1% waiting in the queue" in summary(tmp_path)


def test_record_of_attempts_that_cannot_be_read_is_as_none(tmp_path: Path) -> None:
    (tmp_path / "logs/attempts.jsonl").mkdir(parents=True)
    assert account(tmp_path).total == 0

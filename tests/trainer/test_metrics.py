"""metrics.jsonl after kills and resumes, and with numbers that are not finite."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from bellwether.trainer import abandoned_lines
from bellwether.trainer.metrics import FILE, History, Metrics, read
from bellwether.trainer.trackers import TENSORBOARD


def lines(run: Path) -> list[Any]:
    """The file as a strict JSON reader parses it: NaN and Infinity are not JSON."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    return [json.loads(line, parse_constant=refuse) for line in (run / FILE).read_text().splitlines()]


def launch(run: Path, begin: int, end: int, loss: float, *, every: int = 1, trackers: Sequence[str] = ()) -> None:
    """One process: steps begin+1..end with a loss that identifies the process."""
    metrics = Metrics(run, trackers)
    metrics.write("start", step=begin, samples=8 * begin, resumed_from=None)
    for step in range(begin + 1, end + 1):
        if step % every == 0:
            metrics.write("train", step=step, samples=8 * step, phase=0, loss=loss, lr=1e-3)
    metrics.close()


def steps(history: History, event: str = "train") -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in getattr(history, event)]


def test_each_event_is_one_json_line_written_immediately(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "runs" / "a")
    metrics.write("start", step=0, samples=0, version="1", world_size=2, device="cpu", resumed_from=None)
    metrics.write("checkpoint", step=3, samples=24, path=tmp_path, seconds=torch.tensor(0.5))
    first, second = lines(tmp_path / "runs" / "a")  # not closed yet
    assert first["event"] == "start"
    assert first["resumed_from"] is None
    assert first["time"] > 1.7e9
    assert (second["path"], second["seconds"]) == (str(tmp_path), 0.5)


def test_unknown_event_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"trian.*train"):
        Metrics(tmp_path).write("trian", step=1)


def test_metrics_without_a_directory_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    metrics = Metrics(None, ["tensorboard"])
    metrics.write("start", step=0)
    metrics.close()
    assert not list(tmp_path.iterdir())


def test_numbers_that_are_not_finite_are_restored(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path)
    metrics.write("start", step=0, samples=0, version="nan")
    ratios = {"min": math.nan, "median": 1.0, "max": math.inf}
    metrics.write(
        "train", step=1, samples=8, phase="inf", loss=torch.tensor(math.nan), grad_norm=-math.inf, trust_ratio=ratios
    )
    metrics.write("layers", step=1, samples=8, trust_ratio={"a": math.nan, "b": 1.23456789})
    assert lines(tmp_path)[1]["loss"] == "nan"
    history = read(tmp_path)
    (train,), (layers,) = history.train, history.layers
    assert math.isnan(train["loss"])
    assert train["grad_norm"] == -math.inf
    assert math.isnan(train["trust_ratio"]["min"])
    assert train["trust_ratio"]["max"] == math.inf
    assert math.isnan(layers["trust_ratio"]["a"])
    assert layers["trust_ratio"]["b"] == 1.23457
    # Text that looks like a number stays text.
    assert (history.start[0]["version"], train["phase"]) == ("nan", "inf")


@pytest.mark.parametrize("resumed", [0, 3], ids=["before the first checkpoint", "after one"])
def test_file_holds_each_step_once_and_the_abandoned_lines_are_kept(tmp_path: Path, resumed: int) -> None:
    launch(tmp_path, 0, 5, loss=1.0)
    before = (tmp_path / FILE).read_bytes().splitlines()
    launch(tmp_path, resumed, 6, loss=2.0)
    found = lines(tmp_path)
    assert [line["step"] for line in found if line["event"] == "train"] == [1, 2, 3, 4, 5, 6]
    lost = [json.loads(line) for line in before[1 + resumed :]]
    assert abandoned_lines.read(tmp_path) == [{**line, "launch": 0} for line in lost]


def test_file_of_an_older_version_holds_each_step_once_after_a_resume(tmp_path: Path) -> None:
    """Versions before 2026-11-30 appended only."""
    with open(tmp_path / FILE, "w") as file:
        for begin, end in (0, 4), (0, 3), (2, 5):
            file.write(json.dumps({"event": "start", "time": 1.0, "step": begin, "samples": 0}) + "\n")
            for step in range(begin + 1, end + 1):
                file.write(json.dumps({"event": "train", "step": step, "samples": 0, "loss": begin}) + "\n")
    launch(tmp_path, 5, 6, loss=9.0)
    assert [(line["step"], line["loss"]) for line in lines(tmp_path) if line["event"] == "train"] == [
        (1, 0), (2, 0), (3, 2), (4, 2), (5, 2), (6, 9.0)
    ]  # fmt: skip
    assert [line["step"] for line in abandoned_lines.read(tmp_path)] == [1, 2, 3, 4, 3]


def test_lines_are_on_the_disk_when_the_file_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power failure after a run was marked as finished must not lose its last evaluation."""
    synced: list[int] = []
    metrics = Metrics(tmp_path)
    metrics.write("start", step=0, samples=0)
    monkeypatch.setattr("os.fsync", synced.append)
    metrics.close()
    assert len(synced) == 1


def test_line_is_whole_after_the_disk_was_full(tmp_path: Path) -> None:
    """The system writes a part of a line without an error when space runs out within it."""

    class Disk:
        def __init__(self) -> None:
            self.data = b""

        def write(self, data: bytes) -> int:
            written = data[: max(1, len(data) // 2)]
            self.data += written
            return len(written)

    metrics, disk = Metrics(tmp_path), Disk()
    metrics.close()
    metrics._file = disk  # type: ignore[assignment]
    metrics.write("train", step=1, samples=8, loss=1.0)
    assert json.loads(disk.data)["loss"] == 1.0


# Launches as (first step, last step); the loss is the launch's number.
RESUMES = [
    ("one launch", [(0, 4)], {1: 0, 2: 0, 3: 0, 4: 0}, []),
    ("resumes where it ended", [(0, 2), (2, 4)], {1: 0, 2: 0, 3: 1, 4: 1}, [2]),
    ("repeats steps", [(0, 4), (2, 5)], {1: 0, 2: 0, 3: 1, 4: 1, 5: 1}, [2]),
    ("ends before its furthest step", [(0, 9), (2, 4)], {1: 0, 2: 0, 3: 1, 4: 1}, [2]),
    ("killed before its first step", [(0, 4), (2, 2)], {1: 0, 2: 0}, [2]),
    ("twice from one step", [(0, 4), (2, 2), (2, 3)], {1: 0, 2: 0, 3: 2}, [2]),
    ("resumes before an earlier resume", [(0, 4), (3, 6), (1, 3)], {1: 0, 2: 2, 3: 2}, [1]),
    ("two resumes", [(0, 4), (2, 6), (5, 7)], {1: 0, 2: 0, 3: 1, 4: 1, 5: 1, 6: 2, 7: 2}, [2, 5]),
    ("starts again", [(0, 4), (0, 2)], {1: 1, 2: 1}, []),
]


@pytest.mark.parametrize(
    ("launches", "expected", "restarts"), [case[1:] for case in RESUMES], ids=[case[0] for case in RESUMES]
)
def test_repeated_steps_replace_the_earlier_ones(
    tmp_path: Path, launches: list[tuple[int, int]], expected: dict[int, int], restarts: list[int]
) -> None:
    for number, (begin, end) in enumerate(launches):
        launch(tmp_path, begin, end, loss=number)
    history = read(tmp_path)
    assert dict(steps(history)) == expected
    assert [step for step, _ in steps(history)] == sorted(expected)
    assert [start["step"] for start in history.restarts] == restarts
    assert len(history.start) == len(launches)


def test_every_event_with_steps_is_rewound(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path)
    for loss, begin in ((1.0, 0), (2.0, 4)):
        metrics.write("start", step=begin, samples=begin)
        metrics.write("plan", phases=[[{"label": "launch", "value": str(loss)}]])
        for step in (begin + 2, begin + 4, begin + 7):
            metrics.write("layers", step=step, samples=step, trust_ratio={"a": loss})
            metrics.write("eval", step=step, samples=step, phase=0, loss=loss, accuracy=0.5, examples=10)
            metrics.write("checkpoint", step=step, samples=step, path="x", seconds=1.0, loss=loss)
    metrics.write("end", step=11, samples=11, seconds=1.0, reason="stopped")
    history = read(tmp_path)
    for event in ("eval", "checkpoint"):
        assert steps(history, event) == [(2, 1.0), (4, 1.0), (6, 2.0), (8, 2.0), (11, 2.0)]
    assert [line["step"] for line in history.layers] == [2, 4, 6, 8, 11]
    assert len(history.plan) == 2
    assert history.state == "stopped"


def test_later_line_for_a_step_replaces_the_earlier_one_of_the_same_phase(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path)
    metrics.write("start", step=0, samples=0)
    for phase, loss in ((0, 1.0), (0, 2.0), (1, 3.0)):
        metrics.write("eval", step=5, samples=40, phase=phase, loss=loss, accuracy=0.5, examples=10)
    assert steps(read(tmp_path), "eval") == [(5, 2.0), (5, 3.0)]


UNREADABLE = [
    '{"event": "train", "step": 5, "lo',
    "{",
    '{"event": "train"}',
    '"text"',
    "\xff\xfe",
    '{"event": "plan", "phases": 5}',
    '{"event": "train", "step": 5}',
    '{"event": "train", "step": "5", "samples": 40}',
    '{"event": "eval", "step": 5, "samples": 40, "loss": [1.0]}',
    '{"event": "layers", "step": 5, "samples": 40, "trust_ratio": 1.0}',
    '{"event": "end", "step": 5, "samples": 40, "time": "noon"}',
    "[" * 100_000,
]


@pytest.mark.parametrize("cut", UNREADABLE, ids=lambda cut: cut[:60])
def test_truncated_or_invalid_line_is_skipped(tmp_path: Path, cut: str) -> None:
    launch(tmp_path, 0, 2, loss=1.0)
    with open(tmp_path / FILE, "ab") as file:
        file.write(cut.encode("latin-1"))
    assert dict(steps(read(tmp_path))) == {1: 1.0, 2: 1.0}
    launch(tmp_path, 2, 3, loss=2.0)
    history = read(tmp_path)
    assert dict(steps(history)) == {1: 1.0, 2: 1.0, 3: 2.0}
    assert history.skipped == 1
    assert len(history.start) == 2


def test_state_and_wall_time_without_the_time_between_launches(tmp_path: Path) -> None:
    assert read(tmp_path).state == "empty"

    def log(*entries: tuple[float, str, int]) -> None:
        with open(tmp_path / FILE, "a") as file:
            for time, event, step in entries:
                reason = {"reason": "finished"} if event == "end" else {}
                file.write(json.dumps({"event": event, "time": time, "step": step, "samples": step, **reason}) + "\n")

    log((1000, "start", 0), (1010, "train", 1), (1020, "train", 2))
    assert (read(tmp_path).state, read(tmp_path).seconds) == ("unfinished", 20)
    log((9000, "start", 1), (9005, "train", 2), (9007, "end", 2))
    assert (read(tmp_path).state, read(tmp_path).seconds) == ("finished", 27)
    log((9900, "start", 2))
    assert (read(tmp_path).state, read(tmp_path).seconds) == ("unfinished", 27)
    Metrics(tmp_path).write("start", step=0, samples=0)  # sets the steps aside, not their time
    assert read(tmp_path).seconds == 27
    log((8000, "train", 1))  # the clock was set back
    assert read(tmp_path).seconds == 27


def test_tensorboard_is_resumed_and_hides_repeated_steps(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    launch(tmp_path, 0, 6, loss=1.0, trackers=["tensorboard"])
    launch(tmp_path, 3, 5, loss=2.0, trackers=["tensorboard"])
    metrics = Metrics(tmp_path, ["tensorboard"])
    metrics.write("start", step=5, samples=40)
    ratios = {"min": 0.25, "median": 0.5, "max": math.nan}
    metrics.write("train", step=6, samples=48, phase=0, epoch=0.5, loss=3.0, trust_ratio=ratios)
    metrics.write("eval", step=6, samples=48, phase=0, loss=4.0, accuracy=0.75, examples=10)
    metrics.close()
    events = EventAccumulator(str(tmp_path / TENSORBOARD)).Reload()
    scalars = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert scalars == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0), (5, 2.0), (6, 3.0)]
    tags = {"train/loss", "train/lr", "train/epoch", "eval/loss", "eval/accuracy"}
    tags |= {f"train/trust_ratio_{name}" for name in ratios}
    assert set(events.Tags()["scalars"]) == tags
    assert math.isnan(events.Scalars("train/trust_ratio_max")[0].value)


def test_tensorboard_holds_no_steps_of_a_run_that_starts_again(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    launch(tmp_path, 0, 4, loss=1.0, trackers=["tensorboard"])
    launch(tmp_path, 0, 2, loss=2.0, trackers=["tensorboard"])
    events = [event for file in (tmp_path / TENSORBOARD).iterdir() for event in LegacyEventFileLoader(str(file)).Load()]
    assert [event.step for event in events for value in event.summary.value if value.tag == "train/loss"] == [1, 2]


def test_tensorboard_is_neither_imported_nor_written_when_disabled(tmp_path: Path) -> None:
    launch(tmp_path, 0, 2, loss=1.0)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]

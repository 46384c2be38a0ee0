"""From the beats of all ranks: whether the run hangs, and which rank the others wait for."""

from __future__ import annotations

from typing import Any

import pytest

from bellwether.trainer import arrival
from bellwether.trainer.arrival import ActivityLog, HangDetector, Limits, SaveLog, behind, describe


def beats(*places: tuple[int, int, str]) -> dict[int, dict[str, Any]]:
    return {
        rank: {
            "step": 7, "entered": entered, "begun": begun, "doing": doing, "host": f"node{rank}", "saving": SaveLog().beat(),
        }
        for rank, (entered, begun, doing) in enumerate(places)
    }  # fmt: skip


def saving(*places: tuple[int, int, float]) -> dict[int, dict[str, Any]]:
    """Ranks that wait for checkpoint 3, of step 5, which their threads write: collectives begun, blocks written, seconds at this."""
    all_beats = beats(*[(9, 0, SAVE)] * len(places))
    for beat, (begun, moved, seconds) in zip(all_beats.values(), places, strict=True):
        beat["saving"] = {
            "writing": True, "step": 5, "entered": 3, "begun": begun, "moved": moved, "for_s": seconds,
        }  # fmt: skip
    return all_beats


DATA, UPDATE, SAVE = arrival.DATA, arrival.UPDATE, arrival.CHECKPOINT


@pytest.mark.parametrize(
    ("places", "lowest", "words"),
    [
        ([(5, 1, UPDATE), (4, 0, DATA), (5, 1, UPDATE)], [1], "rank 1 on node1 does not arrive: waiting for data after step 7 for 40 s; 2 other ranks wait in forward"),
        ([(5, 3, UPDATE), (5, 0, UPDATE)], [1], "1 other rank waits in collective 3 of it, where it has begun 0"),
        ([(9, 2, SAVE), (9, 2, SAVE), (9, 1, SAVE)], [2], "rank 2 on node2 does not arrive: checkpoint"),
        ([(5, 0, DATA), (6, 2, UPDATE), (5, 0, DATA)], [0, 2], "rank 0 on node0 does not arrive: waiting for data after step 7 for 40 s; rank 2"),
        ([(6, 2, UPDATE), (6, 2, UPDATE)], [], "no rank is behind: all 2 ranks"),
        ([(6, 2, UPDATE)], [0], "rank 0 on node0 does not arrive"),
        ([(4, 0, DATA)] * 6 + [(5, 1, UPDATE)], [0, 1, 2, 3, 4, 5], "and 2 more ranks; 1 other rank waits"),
    ],
)  # fmt: skip
def test_ranks_at_the_lowest_place_are_named(places: list[tuple[int, int, str]], lowest: list[int], words: str) -> None:
    assert behind(beats(*places)) == lowest
    assert words in describe(beats(*places), 40.0, {})


def test_where_no_rank_is_behind_the_few_whose_code_is_elsewhere_are_shown() -> None:
    places = beats(*[(6, 2, UPDATE)] * 4)
    frames = {0: "engine.py:1 in step", 1: "user.py:5 in read", 2: "engine.py:1 in step", 3: "engine.py:1 in step"}
    assert "Most are at engine.py:1 in step, but rank 1 on node1 at user.py:5 in read" in describe(places, 40.0, frames)
    assert "Most" not in describe(places, 40.0, {0: "a", 1: "b"})


@pytest.mark.parametrize(
    ("activity", "durations", "limit"),
    [
        (UPDATE, [], None),
        (UPDATE, [0.1, 0.1, 0.1], 30),
        (UPDATE, [20, 20, 20], 100),
        (UPDATE, [1, 1, 1, 40], 80),  # now and then much longer
        (DATA, [0.01], 120),
        (arrival.EVALUATION_DATA, [0.01], 120),
        (SAVE, [20], 600),
        (arrival.WRITING, [0.01], 600),
        (arrival.REPLICAS, [0.01], 30),
        (SAVE, [200, 200], 1000),
    ],
)
def test_limit_follows_earlier_durations_of_the_activity(
    activity: str, durations: list[float], limit: float | None
) -> None:
    assert Limits().of(activity, durations) == limit
    assert Limits(factor=0).of(activity, durations) is None


def test_hang_is_no_progress_of_the_rank_furthest_behind() -> None:
    detector = HangDetector(lambda activity: 30.0)
    assert detector.look(beats((5, 1, UPDATE), (4, 0, DATA)), 0.0) is None
    assert detector.look(beats((9, 1, UPDATE), (4, 0, DATA)), 30.0) is None
    hang = detector.look(beats((9, 1, UPDATE), (4, 0, DATA)), 31.0)
    assert hang is not None
    assert (hang.place, hang.seconds) == ((4, 0, 0, 0), 31.0)
    assert detector.look(beats((9, 1, UPDATE), (4, 1, DATA)), 32.0) is None  # one more collective is progress
    assert detector.look(beats((9, 1, UPDATE), (4, 1, DATA)), 62.0) is None
    detector.forget()  # the process itself was suspended
    assert detector.look(beats((9, 1, UPDATE), (4, 1, DATA)), 600.0) is None


def test_rank_whose_thread_does_not_write_its_checkpoint_is_named() -> None:
    stuck = saving((2, 40, 20.0), (1, 6, 40.0), (2, 44, 21.0))
    assert behind(stuck) == [1]
    assert describe(stuck, 40.0, {1: "snapshot.py:5 in write"}) == (
        "rank 1 on node1 does not arrive: writing the checkpoint of step 5 for 40 s, at snapshot.py:5 in write; "
        "2 other ranks wait in collective 2 of it, where it has begun 1"
    )
    # While training goes on, it is the place of the training that counts.
    for beat in stuck.values():
        beat["doing"] = UPDATE
    assert behind(stuck) == []
    stuck[2]["begun"] = 1
    assert behind(stuck) == [0, 1]


def test_checkpoint_that_is_slowly_written_is_no_hang() -> None:
    detector = HangDetector(lambda activity: 30.0)
    for second in range(200):
        assert detector.look(saving((2, 9, float(second)), (1, second // 20, second % 20)), float(second)) is None
    hang = detector.look(saving((2, 9, 250.0), (1, 9, 70.0)), 250.0)
    assert hang is not None
    assert (hang.seconds, hang.activity) == (70.0, SAVE)


def test_thread_that_hung_before_training_waits_for_it_is_known_at_once() -> None:
    detector = HangDetector(lambda activity: 30.0)
    training = beats((8, 0, UPDATE), (8, 0, UPDATE))
    assert detector.look(training, 900.0) is None
    hang = detector.look(saving((2, 9, 880.0), (1, 5, 885.0)), 901.0)
    assert hang is not None
    assert hang.seconds == 885.0


def test_first_steps_of_a_phase_are_no_history(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(float(second) for second in range(1000))
    monkeypatch.setattr(arrival.time, "monotonic", lambda: next(clock))
    log = ActivityLog()
    for phase in range(2):
        log.enter(10 * phase, arrival.START_OF_PHASE)
        for step in range(10 * phase, 10 * phase + 5):
            log.enter(step, DATA)
            log.enter(step, UPDATE)
        log.enter(10 * phase + 5, SAVE)
        log.saved(7.0)
        log.enter(10 * phase + 5, arrival.METRICS)
        assert log.durations(UPDATE) == [1.0, 1.0]
        assert log.durations(SAVE) == [7.0] * (phase + 1)  # also of one that a thread wrote
    assert log.beat()["entered"] == 26
    assert log.durations(arrival.START) == []

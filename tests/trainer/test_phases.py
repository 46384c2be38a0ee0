from __future__ import annotations

import pytest

from bellwether.trainer import config as c
from bellwether.trainer.config import Config, ConfigError, Duration, Span
from bellwether.trainer.phase_rows import rows, wasteful
from bellwether.trainer.phases import Split, plan, split, stop_step


def config(**changes: object) -> Config:
    raw = {
        "name": "x",
        "duration": "2 epochs",
        "model": {"kind": "bert", "size": "tiny"},
        "data": {"kind": "text"},
        "batch": {"global": 512, "micro": 32},
        "optimizer": {"lr": 1e-3},
        **changes,
    }
    return c.validate(raw)


@pytest.mark.parametrize(
    ("batch", "most", "world", "micro", "accumulation"),
    [
        (512, 32, 1, 32, 16),
        (512, 32, 4, 32, 4),
        (96, 32, 4, 24, 1),
        (65536, 48, 128, 32, 16),
        (8, 32, 8, 1, 1),
        (1000, 32, 8, 25, 5),
    ],
)
def test_split_reaches_the_global_batch_exactly(
    batch: int, most: int, world: int, micro: int, accumulation: int
) -> None:
    s = split(batch, most, world)
    assert (s.micro, s.accumulation) == (micro, accumulation)
    assert s.micro * s.accumulation * world == batch


@pytest.mark.parametrize(
    ("batch", "world", "near"), [(510, 4, "508 and 512"), (3, 8, "8"), (1001, 128, "896 and 1024")]
)
def test_batch_that_cannot_be_split_is_refused_naming_the_nearest(batch: int, world: int, near: str) -> None:
    with pytest.raises(ConfigError, match=near) as caught:
        split(batch, 32, world)
    assert "batch.global" in str(caught.value)


def test_samples_that_are_mixed_stay_in_one_micro_batch() -> None:
    assert split(240, 25, 8, unit=2) == Split(240, 10, 3, 8)
    assert split(60, 5, 6, unit=2) == Split(60, 2, 5, 6)
    with pytest.raises(ConfigError, match=r"batch.global: 24: .* in multiples of 2 samples.*: 16 and 32"):
        split(24, 8, 8, unit=2)
    with pytest.raises(ConfigError, match=r"batch.micro: 1: is less than the 2 samples.*; write at least 2"):
        split(24, 1, 4, unit=2)


def test_small_micro_batch_gets_advice() -> None:
    assert wasteful(split(509 * 4, 32, 4), 32) == (
        "batch.global: 2036 needs micro-batches of 1 where batch.micro allows 32; 1920 or 2048 would run at 32"
    )
    assert wasteful(split(512, 32, 4), 32) is None


@pytest.mark.parametrize(
    ("duration", "steps"),
    [
        ("2 epochs", 8),
        ("7 steps", 7),
        ("1000 samples", 2),
        ("1_024 samples", 2),
        ("0.5 epochs", 2),
        ("1e3 steps", 1000),
    ],
)
def test_durations(duration: str, steps: int) -> None:
    (phase,) = plan([config(duration=duration)], 2, [2000])
    assert phase.steps == steps
    assert phase.samples == steps * 512


@pytest.mark.parametrize(
    "text", ["3", "epochs", "-1 steps", "3 weeks", "1 step extra", None, [], "1e steps", "__ steps", "1_ steps", True]
)
def test_invalid_duration_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="a number and a unit"):
        Duration.parse(text)


@pytest.mark.parametrize("text", ["1e30 steps", "1e400 samples"])
def test_infinite_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="too long"):
        Duration.parse(text)


def test_spans() -> None:
    assert Span.parse(0.25).samples(1000, 10, 100) == 250
    assert Span.parse("3 steps").samples(1000, 10, 100) == 30
    assert Span.parse("2 epochs").samples(1000, 10, 100) == 200
    for text in ("1.5", "-0.1", "x"):
        with pytest.raises(ValueError, match="share"):
            Span.parse(text)


@pytest.mark.parametrize("batch", [512, 1024, 32768])
def test_scaling_follows_the_lamb_table(batch: int) -> None:
    """BERT-large: 5e-3 / 8 and 1/320 at 512 give the published values at every batch."""
    run = config(
        duration="3276800 samples",
        batch={"global": batch},
        optimizer={"lr": 5e-3 / 8},
        schedule={"warmup": 1 / 320},
        scaling={"rule": "sqrt", "base_batch": 512},
    )
    (phase,) = plan([run], 1, [10_000])
    assert phase.lr == pytest.approx({512: 5e-3 / 8, 1024: 5e-3 / 2**2.5, 32768: 5e-3}[batch])
    assert phase.warmup / phase.samples == pytest.approx({512: 1 / 320, 1024: 1 / 160, 32768: 1 / 5}[batch])
    assert any("at batch 512, rule sqrt" in value for _, value in rows(phase))


def test_warm_up_longer_than_the_phase_is_refused() -> None:
    run = config(batch={"global": 65536}, schedule={"warmup": 0.1}, scaling={"rule": "sqrt", "base_batch": 512})
    with pytest.raises(ConfigError, match=r"schedule\.warmup"):
        plan([run], 1, [10**6])


def test_phases_start_where_the_previous_one_ends() -> None:
    run = config(phases=[{"duration": "9 steps"}, {"duration": "4 steps", "batch": {"global": 256}}])
    first, second = plan(c.phases(run), 2, [2000, 900])
    assert (first.first_step, first.last_step, first.samples) == (0, 9, 9 * 512)
    assert (second.first_step, second.last_step, second.first_sample) == (9, 13, 9 * 512)
    with pytest.raises(ConfigError, match=r"phases\[1\]\.batch\.global"):
        plan(c.phases(run), 512, [2000, 900])


@pytest.mark.parametrize(
    ("stop", "step"),
    [
        (None, 13), ("5 steps", 5), ("9 steps", 9), ("11 steps", 11), ("99 steps", 13), ("4608 samples", 9),
        ("4609 samples", 10), ("5120 samples", 11), ("1 epochs", 4), ("2.304 epochs", 9), ("2.5 epochs", 10), ("99 epochs", 13),
    ],
)  # fmt: skip
def test_stop_step(stop: str | None, step: int) -> None:
    """Two phases: 9 steps of 512 over 2,000 rows, then 4 steps of 256 over 900."""
    run = config(phases=[{"duration": "9 steps"}, {"duration": "4 steps", "batch": {"global": 256}}], stop_after=stop)
    assert stop_step(run, plan(c.phases(run), 2, [2000, 900])) == step

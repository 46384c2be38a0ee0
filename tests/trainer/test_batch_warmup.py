"""A batch that grows during a run: its plan, exact resume, any world size, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bellwether.optimizers import WarmupLinear
from bellwether.optimizers.batch_schedule import BatchSchedule
from bellwether.optimizers.noise_scale import NoiseEstimate
from bellwether.trainer import config as c
from bellwether.trainer.checkpoint import Manifest
from bellwether.trainer.checkpoint_interval import suggest
from bellwether.trainer.config import Config, ConfigError, ConfigErrors
from bellwether.trainer.goodput import Goodput
from bellwether.trainer.metrics import Metrics
from bellwether.trainer.phase_rows import notes, rows
from bellwether.trainer.phases import plan, split, stop_step
from bellwether.trainer.report.facts import Facts
from tests.ranks import Ranks
from tests.tiers import covering
from tests.trainer.runs import last, losses, run_config, tensors, text, train_lines, weights

GROWING = [[0, 4], [10, 8], [40, 24]]  # of 9 steps: 3 of 4, 4 of 8, 2 of 24


def config(**changes: Any) -> Config:
    raw = {
        "name": "x", "duration": "92 samples", "model": {"kind": "bert", "size": "tiny"}, "data": {"kind": "text"},
        "batch": {"global": GROWING, "micro": 2}, "optimizer": {"lr": 1e-3},
        "scaling": {"rule": "sqrt", "base_batch": 4, "warmup": False},
    }  # fmt: skip
    return c.validate({**raw, **changes})


def test_each_batch_size_begins_with_the_first_step_after_its_samples() -> None:
    (phase,) = plan([config()], 2, [1000])
    assert (phase.steps, phase.samples) == (9, 92)
    assert [phase.split_at(step).global_batch for step in range(1, 10)] == [4] * 3 + [8] * 4 + [24] * 2
    assert [phase.samples_at(step) for step in range(10)] == [0, 4, 8, 12, 20, 28, 36, 44, 68, 92]
    assert list(phase.segments(2, 8)) == [(2, 1, split(4, 2, 2)), (3, 4, split(8, 2, 2)), (7, 1, split(24, 2, 2))]
    table = dict(rows(phase))
    assert table["global batch"].endswith("from 44 samples, step 8: 24 = 2 micro x 6 accumulation x 2 processes")
    assert table["peak lr"].startswith("1.000e-03, 1.414e-03, 2.449e-03")
    assert not notes(phase)
    (constant,) = plan([config(scaling={})], 2, [1000])
    assert any("does not follow: set scaling.rule" in note for note in notes(constant))


def test_batch_that_the_phase_ends_before_is_not_planned() -> None:
    """Neither memory nor time is that of a batch which is never trained, as where the duration was shortened."""
    (phase,) = plan([config(duration="36 samples", batch={"global": GROWING, "micro": 8})], 1, [1000])
    assert [s.global_batch for s in phase.splits] == [4, 8]
    assert phase.split.global_batch == 8
    assert list(phase.segments(0, phase.last_step)) == [(0, 3, split(4, 8, 1)), (3, 3, split(8, 8, 1))]
    table = dict(rows(phase))
    assert table["global batch"].endswith("step 4: 8 = 8 micro x 1 accumulation x 1 processes")
    assert table["peak lr"].startswith("1.000e-03, 1.414e-03  (")
    assert notes(phase) == ["batch.global: 24 is never reached: it begins at 44 samples, and the phase has 36"]
    (first, _) = plan(c.phases(config(phases=[{"duration": "1 steps"}, {}])), 1, [1000, 1000])
    assert [s.global_batch for s in first.splits] == [4]


@pytest.mark.parametrize(
    ("duration", "steps"), [("9 steps", 9), ("45 samples", 8), ("0.05 epochs", 8), ("4.5 steps", 5), ("1 samples", 1)]
)
def test_durations_count_steps_of_their_own_batch(duration: str, steps: int) -> None:
    (phase,) = plan([config(duration=duration)], 1, [1000])
    assert phase.steps == steps


@pytest.mark.parametrize(
    ("every", "steps"),
    [("3 steps", [3, 6, 9]), ("20 samples", [4, 7, 8, 9]), ("0.05 epochs", [8]), ("2.5 steps", [3, 5, 8])],
)
def test_intervals_are_due_at_their_steps_or_samples(every: str, steps: list[int]) -> None:
    (phase,) = plan([config()], 1, [1000])
    interval = c.Duration.parse(every)
    assert [step for step in range(1, 10) if phase.due(step, interval)] == steps
    assert phase.passed(0, steps[0], interval)
    assert not phase.passed(0, steps[0] - 1, interval)


@pytest.mark.parametrize(
    ("stop", "step"), [("4 steps", 4), ("21 samples", 5), ("9 steps", 9), ("10 steps", 10), ("93 samples", 10), ("0.05 epochs", 8)]
)  # fmt: skip
def test_stop_step_within_and_after_a_growing_phase(stop: str, step: int) -> None:
    run = config(phases=[{}, {"duration": "2 steps", "batch": {"global": 4}}], stop_after=stop)
    assert stop_step(run, plan(c.phases(run), 1, [1000, 1000])) == step


def test_spans_in_steps_count_those_of_their_place() -> None:
    schedule = {"kind": "trapezoid", "warmup": "5 steps", "cooldown": "3 steps"}
    (phase,) = plan([config(schedule=schedule)], 1, [1000])
    assert (phase.warmup, phase.cooldown) == (28, 92 - 36)
    with pytest.raises(ConfigError, match=r"schedule\.warmup"):
        plan([config(schedule={**schedule, "warmup": "8 steps"})], 1, [1000])
    averaging = {"kind": "ema", "start": "4 steps", "every": "2 steps"}
    (phase,) = plan([config(averaging=averaging)], 1, [1000])
    assert (phase.average_from, phase.average_every) == (5, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": {"global": [[0, 4], [10, 7]]}}, r"batch\.global: 7: cannot be divided equally among 2 processes"),
        ({"averaging": {"kind": "ema", "every": "8 samples"}}, r"averaging\.every.*write it in steps"),
        (
            {"schedule": {"kind": "warmup-exponential", "interval": "2 steps"}},
            r"schedule\.interval.*write it in samples or epochs",
        ),
    ],
)
def test_what_a_growing_batch_makes_ambiguous_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan([config(**changes)], 2, [1000])


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ([], r"batch\.global.*write \[\[0, batch\], \.\.\.\]"),
        ([[5, 4]], r"from 0 samples on"),
        ([[0, 4], [9, 8], [9, 16]], r"\[9, 16\] does not begin after"),
        ([[0, 4], 8], r"8 is no pair of whole numbers"),
        ([[0, 4], [8, True]], r"no pair of whole numbers"),
        ([[0, 0]], r"out of range"),
        (0, r"batch\.global: 0: must be greater than 0"),
        ("many", r"batch\.global: 'many': not a whole number"),
    ],
)
def test_invalid_growth_is_refused(written: Any, message: str) -> None:
    with pytest.raises(ConfigErrors, match=message):
        config(batch={"global": written})


def test_growing_batch_with_a_recipe_is_refused() -> None:
    with pytest.raises(ConfigErrors, match=r"batch\.global.*is for one batch size.*write a whole number"):
        config(schedule="lamb-bert", scaling={})


def test_config_with_a_growing_batch_is_written_and_read_again() -> None:
    assert c.dump(config())["batch"]["global"] == GROWING
    assert c.validate(c.dump(config())) == config()


def test_rates_follow_samples_and_batch() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = WarmupLinear(optimizer, batch=GROWING, batch_rule="linear", total=92, warmup=12)  # type: ignore[arg-type]
    found = []
    for _ in range(9):
        found.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    middles, batches = [2, 6, 10, 16, 24, 32, 40, 56, 80], [4] * 3 + [8] * 4 + [24] * 2
    wanted = [min(at / 12, (92 - at) / 80) * batch / 4 for at, batch in zip(middles, batches, strict=True)]
    assert found == pytest.approx(wanted)
    schedule.seek(44)
    assert schedule.get_last_lr()[0] == pytest.approx(wanted[7])


def test_a_size_without_a_step_of_its_own_is_left_out() -> None:
    assert [s.batch for s in BatchSchedule([(0, 64), (10, 128), (20, 256)]).segments] == [64, 256]


def test_noise_estimate_goes_on_where_the_batch_grows() -> None:
    """tr(Sigma) 100 and |G|^2 1: the scale is 100 at any batch."""
    estimate = NoiseEstimate(4, 16)
    for _ in range(60):
        estimate.add(1 + 100 / 4, 1 + 100 / 16)
    estimate.set_batch(8, 64)
    for _ in range(60):
        estimate.add(1 + 100 / 8, 1 + 100 / 64)
    assert estimate.values()["noise_scale"] == pytest.approx(100)
    assert estimate.long.steps == 120


def test_report_shows_where_the_batch_grows(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path)
    metrics.write("start", step=0, samples=0, resumed_from=None)
    (phase,) = plan([config()], 1, [1000])
    for step in range(1, 10):
        batch = phase.split_at(step).global_batch
        metrics.write(
            "train", step=step, samples=phase.samples_at(step), phase=0, batch=batch, loss=5.0, step_time=batch / 8
        )
    metrics.write("checkpoint", step=9, samples=92, path="x", seconds=2.0)
    metrics.close()
    (tmp_path / "config.yaml").write_text(c.to_yaml(config()))
    facts = Facts.load(tmp_path)
    assert (facts.batches, facts.batch_sizes) == (["4 to 24"], [4, 8, 24])
    assert facts.batch_changes == [(12.0, "batch 8"), (44.0, "batch 24")]
    found = suggest(facts.history, Goodput())
    assert found is not None
    assert found.steps == round(found.seconds / 3)  # at the present batch


def raw(workspace: Path, name: str, **changes: Any) -> dict[str, Any]:
    base = {
        "duration": "92 samples", "batch": {"global": GROWING, "micro": 2},
        "scaling": {"rule": "sqrt", "base_batch": 4, "warmup": False}, "evaluate": {"every": "20 samples", "limit": 6},
    }  # fmt: skip
    return text(workspace, name, **{**base, **changes})


# Stages 1 and 2 accumulate gradients in the same way, stages 0 and 3 in ways of their own.
@covering(lambda stage: stage == 2)
@pytest.mark.parametrize("ranks", [2], indirect=True)
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_growing_batch_resumes_bit_exact(ranks: Ranks, workspace: Path, stage: int) -> None:
    """Stopped before, at and after a step at which the batch grows; a new process builds the engine for the new batch."""
    whole = raw(workspace, f"growing-{stage}", engine={"stage": stage})
    halves = raw(workspace, f"growing-halves-{stage}", engine={"stage": stage})
    ranks.run(run_config, whole)
    for stop in ("3 steps", "8 steps", None):
        ranks.run(run_config, {**halves, "stop_after": stop})
    lines = train_lines(whole)
    assert [line["batch"] for line in lines] == [4] * 3 + [8] * 4 + [24] * 2
    assert [line["samples"] for line in lines] == [4, 8, 12, 20, 28, 36, 44, 68, 92]
    assert lines[7]["lr"] == pytest.approx(1e-2 * 6**0.5 * (92 - 56) / (92 - 23))
    wanted, found = tensors(last(whole)), tensors(last(halves))
    assert wanted.keys() == found.keys()
    for key, value in wanted.items():
        assert torch.equal(value, found[key]), key
    assert losses(halves) == losses(whole)
    manifest = Manifest.read(last(whole))
    assert Manifest.read(last(halves)) == manifest
    assert manifest.noise["steps"] > 5, "of all parts"


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_growing_batch_trains_alike_at_any_world_size(ranks: Ranks, workspace: Path) -> None:
    """One process without accumulation at first: its micro-batch is the batch."""
    alone = raw(workspace, "growing-alone", model={"dropout": 0.0}, batch={"global": GROWING, "micro": 4})
    both = raw(workspace, "growing-both", model={"dropout": 0.0})
    one = Ranks(1)
    one.run(run_config, alone)
    one.close()
    ranks.run(run_config, both)
    assert losses(both) == pytest.approx(losses(alone), rel=1e-5)
    wanted = weights(last(alone))
    for name, found in weights(last(both)).items():
        # As in test_loop.py: rounding of a tiny gradient can change an early update of Adam by lr.
        assert np.linalg.norm(found - wanted[name]) < 1e-3 * np.linalg.norm(wanted[name]) + 1e-6, name

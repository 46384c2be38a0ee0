"""The fit where it is hard: typing errors, misses, coarse evaluations, other knees, curves that do not fit."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from bellwether.experiments.analysis.critical_batch import Fit, fit
from bellwether.experiments.analysis.fit_checks import check
from bellwether.experiments.analysis.growth import log_growth
from bellwether.experiments.analysis.points import spacing
from scripts.simulate_fit import CASES, PLAIN, cover

SIZES = [2.0**n for n in range(4, 13)]


def runs(knee: float = 1.0, seeds: int = 5, noise: float = 0.05, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    batches = np.repeat(SIZES, seeds)
    curve = 1e6 * np.exp(log_growth(np.log(batches / 512), math.log(knee)))
    return batches, curve * np.exp(noise * random.standard_normal(len(batches)))


def covers(found: Fit) -> bool:
    return found.b_crit_low <= 512 <= found.b_crit_high


@pytest.mark.parametrize("knee", [0.4, 0.6, 1.0, 2.0, 3.0])
def test_growth_doubles_at_the_critical_batch_and_costs_a_constant_number_of_steps_beyond(knee: float) -> None:
    far = np.exp(log_growth(np.log([1e-7, 1.0, 1e8, 2e8]), math.log(knee)))
    assert far[0] == pytest.approx(1, abs=1e-2)
    assert far[1] == pytest.approx(2)
    assert far[3] / far[2] == pytest.approx(2, rel=1e-2)


@pytest.mark.parametrize("knee", [0.6, 2.0])
def test_another_knee_is_recovered(knee: float) -> None:
    found = fit(*runs(knee, noise=0.01))
    assert covers(found)
    assert found.shape == pytest.approx(knee, rel=0.15)


@pytest.mark.parametrize("factor", [10, 1 / 10, 11.4])
def test_run_ten_times_off_is_left_out_and_named(factor: float) -> None:
    batches, samples = runs()
    plain = fit(batches, samples)
    samples[12] *= factor
    found = fit(batches, samples)
    assert "a run at batch 64 with" in found.warnings[0]
    assert found.runs == 44
    assert found.b_crit == pytest.approx(plain.b_crit, rel=0.02)


def test_single_seed_ten_times_off_is_left_out_and_named() -> None:
    batches, samples = runs(seeds=1)
    samples[4] *= 10
    found = fit(batches, samples)
    assert "batch 256 is 9.4 times off" in found.warnings[0]
    assert covers(found)


def test_honest_data_lose_no_run() -> None:
    for seed in range(20):
        assert fit(*runs(noise=0.2, seed=seed)).runs == 45
        assert fit(*runs(seeds=1, noise=0.3, seed=seed)).runs == 9


def test_misses_are_censored_and_not_dropped() -> None:
    censored, dropped = [], []
    for seed in range(10):
        batches, samples = runs(noise=0.2, seed=seed)
        reached = samples < 2.5e6
        found = fit(batches, np.minimum(samples, 2.5e6), reached.tolist())
        assert found.missed == (~reached).sum() > 10
        assert covers(found)
        censored.append(found.b_crit)
        dropped.append(fit(batches[reached], samples[reached]).b_crit)
    assert np.median(censored) == pytest.approx(512, rel=0.15)
    assert np.median(dropped) > 1.2 * np.median(censored)  # the slow runs are missing there


def test_batch_size_at_which_no_run_reached_the_target_bounds_the_critical_batch() -> None:
    batches, samples = runs(noise=0.02)
    reached = (batches <= 256).tolist()
    without = fit(batches[batches <= 256], samples[batches <= 256])
    found = fit(batches, np.where(batches <= 256, samples, 2.2e6), reached)
    assert found.missed == 20
    assert found.b_crit_high < without.b_crit_high


def test_target_was_reached_between_two_evaluations() -> None:
    batches, samples = runs(noise=0.02)
    width = np.full(len(samples), 4e5)
    late = np.ceil(samples / width) * width
    found = fit(batches, late, width=width.tolist())
    assert covers(found)
    assert found.s_min == pytest.approx(1e6, rel=0.1)
    assert fit(batches, late).s_min > 1.1e6


def test_curve_that_does_not_fit_is_named_with_the_batches_beyond_the_noise() -> None:
    batches, samples = runs(noise=0.02)
    assert check(fit(batches, samples)).warnings == []
    samples[batches == 128] *= 1.39
    checks = check(fit(batches, samples))
    assert checks.lack_of_fit is not None
    assert checks.lack_of_fit.p < 1e-3
    assert [each.batch for each in checks.deviations if each.beyond] == [128]
    (deviation,) = [each for each in checks.deviations if each.batch == 128]
    assert deviation.factor == pytest.approx(1.39, rel=0.1)
    assert "beyond the noise, against the curve of all others: batch 128 (+" in " ".join(checks.warnings)


def test_larger_half_that_the_smaller_one_does_not_predict_is_named() -> None:
    batches, samples = runs(noise=0.01)
    assert check(fit(batches, samples)).halves is not None
    assert check(fit(batches, samples)).halves.holds  # type: ignore[union-attr]
    samples = 1e6 * (1 + 0.02 * np.log(batches / 16))  # hardly growing, and then ten times as much
    samples[batches >= 1024] *= (batches[batches >= 1024] / 512) ** 1.5
    checks = check(fit(batches, samples))
    assert "the smaller half of the batch sizes predicts" in " ".join(checks.warnings)


def test_left_out_range_and_extrapolation_are_told() -> None:
    batches, samples = runs()
    low, high = check(fit(batches, samples)).left_out or (0.0, 0.0)
    assert 400 < low < 512 < high < 620
    small = batches <= 128
    found = fit(batches[small], samples[small])
    assert found.extrapolated
    assert any("is an extrapolation" in warning for warning in found.warnings)
    assert not fit(batches, samples).extrapolated


def test_few_batch_sizes_and_single_seeds_widen_the_interval() -> None:
    def width(found: Fit) -> float:
        return math.log(found.b_crit_high / found.b_crit_low)

    batches, samples = runs()
    every = np.isin(batches, SIZES[::2])
    assert width(fit(batches[every], samples[every])) > 1.5 * width(fit(batches, samples))
    assert width(fit(batches[::5], samples[::5])) > 1.3 * width(fit(batches, samples))


def test_spacing_of_values_on_a_grid() -> None:
    assert spacing([10, 30, 25, 30]) == 5
    assert spacing([10, 30, 25, 31.7]) == 0
    assert spacing([10, 10]) == 0


def test_simulation_counts_what_an_interval_covers() -> None:
    found = cover(replace(PLAIN, seeds=3), draws=30)
    assert found.covered >= 0.8
    assert found.estimate == pytest.approx(512, rel=0.1)
    assert len({case.name for case in CASES}) == len(CASES) > 25

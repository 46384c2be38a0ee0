"""The statistics of branches, on losses whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bellwether.experiments.branch.excess import growth, limit

FACTORS = (1, 2, 4, 8, 16)


def losses(
    slope: float, noise: float, seeds: int, rng: np.random.Generator, common: float = 0.0
) -> dict[int, list[float]]:
    """The excess grows in proportion to the batch: 1 + tolerance / slope is the truth. ``common`` is noise that all batches share."""
    shared = rng.normal(0, common, seeds)
    return {f: list(2.0 + slope * (f - 1) + shared + rng.normal(0, noise, seeds)) for f in FACTORS}


def test_limit_is_exact_without_noise() -> None:
    found = limit(losses(0.002, 0.0, 3, np.random.default_rng(0), common=0.5), tolerance=0.01)
    assert found.factor == pytest.approx(6.0)
    assert (found.low, found.high) == (pytest.approx(6.0), pytest.approx(6.0))
    assert (found.measured, found.is_beyond) == (4, False)
    assert found.excess == {f: pytest.approx(0.002 * (f - 1)) for f in FACTORS[1:]}


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("noise", [0.001, 0.004])
def test_interval_covers_the_truth(seeds: int, noise: float) -> None:
    """90 % intervals; noise that is common to all batches of a seed does not widen them."""
    rng = np.random.default_rng(seeds)
    found = [limit(losses(0.002, noise, seeds, rng, common=0.1), tolerance=0.01) for _ in range(600)]
    covered = [each.low <= 6.0 and (each.high is None or each.high >= 6.0) for each in found]
    assert 0.85 <= np.mean(covered) <= 0.985
    # At the smaller noise the interval is of use.
    if noise == 0.001 and seeds >= 3:
        assert np.median([(each.high or math.inf) / each.low for each in found]) < 2


def test_limit_beyond_the_largest_batch_is_a_lower_bound() -> None:
    found = limit(losses(0.0001, 0.0, 2, np.random.default_rng(0)), tolerance=0.01)
    assert (found.factor, found.measured, found.is_beyond, found.high) == (16.0, 16, True, None)


def test_a_batch_counts_only_if_all_smaller_ones_do() -> None:
    found = limit({1: [1.0, 1.0], 2: [1.05, 1.05], 4: [1.0, 1.0]}, tolerance=0.01)
    assert (found.measured, found.factor) == (1, pytest.approx(1.2))


def test_diverged_branch_is_beyond_any_tolerance() -> None:
    found = limit({1: [1.0, 1.1], 2: [1.0, 1.1], 4: [math.inf, 1.1], 8: [math.nan, 1.1]}, tolerance=0.01)
    assert (found.measured, found.factor, found.high) == (2, 2.0, 2.0)
    assert found.excess[4] == found.excess[8] == math.inf


def test_one_seed_has_no_interval() -> None:
    found = limit({1: [1.0], 2: [1.005], 4: [1.1]}, tolerance=0.01)
    assert found.low == 1.0
    assert found.high is None
    assert 2 < found.factor < 4


@pytest.mark.parametrize("given", [{2: [1.0]}, {1: [1.0]}, {1: [1.0], 2: [1.0, 2.0]}])
def test_losses_without_a_base_are_refused(given: dict[int, list[float]]) -> None:
    with pytest.raises(ValueError, match="needs factor 1 and another"):
        limit(given, 0.01)


def test_batch_doubles_where_the_critical_batch_has_doubled() -> None:
    assert growth(64, [(0, 64), (500, 127), (900, 128)]) == [(0, 64), (900, 128)]
    assert growth(64, [(0, 200), (900, 100)]) == [(0, 128)]
    assert growth(64, [(500, 300), (900, 280)]) == [(0, 64), (500, 256)]

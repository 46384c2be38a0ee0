from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from bellwether.trainer.data import sampling
from bellwether.trainer.data.sampling import SampleOrder, fold_in, permutation, random_bits, sample_keys, uniform


@pytest.mark.parametrize("length", [1, 2, 7, 1000])
def test_each_row_appears_once_per_epoch(length: int) -> None:
    order = SampleOrder(3, length)
    for epoch in range(3):
        rows = order(np.arange(epoch * length, (epoch + 1) * length))
        assert sorted(rows.tolist()) == list(range(length))


def test_epochs_and_seeds_differ() -> None:
    first, second, other = (
        SampleOrder(1, 1000)(np.arange(1000)),
        SampleOrder(1, 1000)(np.arange(1000, 2000)),
        SampleOrder(2, 1000)(np.arange(1000)),
    )
    for a, b in ((first, second), (first, other), (second, other)):
        assert (a == b).mean() < 0.02


def test_row_is_a_function_of_the_position() -> None:
    length = 100
    whole = SampleOrder(5, length)(np.arange(10 * length))
    jumping = SampleOrder(5, length)
    for position in (999, 0, 543, 99, 100, 543):  # back and forth over more epochs than are kept
        assert jumping(position) == whole[position]
        assert len(jumping._epochs) <= 2, "an epoch of a large corpus takes hundreds of MB"
    straddling = np.arange(950, 1000)[::-1].reshape(5, 10)
    assert (jumping(straddling) == whole[straddling]).all()


def test_pinned_values() -> None:
    # These values determine every run, so they must not change between versions or machines.
    assert [fold_in(s, p) for s, p in ((0, 0), (1, 0), (1, 1), (2**63, 10**12))] == [
        6_017_775_124_710_473_527,
        3_395_948_882_924_712_079,
        8_702_843_941_935_282_423,
        4_955_153_491_916_627_219,
    ]
    assert permutation(42, 10).tolist() == [3, 5, 8, 6, 0, 2, 4, 9, 7, 1]


def test_keys_are_splitmix64() -> None:
    # Element i of the generator with state s is mix(s + (i + 1) * golden); here with s = mix(seed + golden).
    def mix(z: int) -> int:
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z >> 31)

    golden = 0x9E3779B97F4A7C15
    for seed, position in ((0, 0), (7, 123456789012)):
        state = mix((seed + golden) % 2**64)
        assert fold_in(seed, position) == mix((state + (position + 1) * golden) % 2**64) >> 1


def test_random_bits_are_uniform_and_uncorrelated() -> None:
    keys = sample_keys(1, np.arange(20_000))
    assert len(set(keys.tolist())) == 20_000
    values = uniform(random_bits(keys, 4))
    assert values.min() >= 0
    assert values.max() < 1
    # 5 standard errors of the mean, and of a correlation of 20,000 pairs.
    assert np.abs(values.mean(axis=0) - 0.5).max() < 5 * np.sqrt(1 / 12 / 20_000)
    correlation = np.corrcoef(values.T)
    assert np.abs(correlation[~np.eye(4, dtype=bool)]).max() < 5 / np.sqrt(20_000)
    assert abs(np.corrcoef(values[:-1, 0], values[1:, 0])[0, 1]) < 5 / np.sqrt(20_000)


def test_order_of_no_rows_is_refused() -> None:
    with pytest.raises(ValueError, match=r"0 rows"):
        SampleOrder(1, 0)


def test_next_epochs_permutation_is_computed_ahead_by_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    length = 1000
    expected = SampleOrder(3, length)(np.arange(5 * length))
    where: list[bool] = []
    real = sampling.permutation

    def recorded(*args: int) -> Any:
        where.append(threading.current_thread() is threading.main_thread())
        return real(*args)

    monkeypatch.setattr(sampling, "permutation", recorded)
    monkeypatch.setattr(sampling, "_AHEAD", 1)
    order = SampleOrder(3, length)
    found = [order(np.arange(first, first + 40)) for first in range(0, 5 * length, 40)]
    assert np.array_equal(np.concatenate(found), expected)
    assert where == [True, *[False] * 5]
    assert np.array_equal(order(np.arange(40)), expected[:40]), "an earlier epoch is computed again"

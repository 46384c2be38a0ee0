"""Counter-based random numbers, and the order of samples: the row at each global position, and the sample's random key.

Both are functions of (seed, position) alone. They are written in integer arithmetic instead of taken from a library's
generator, so that they are equal on every machine and with every version of every library.
"""

from __future__ import annotations

from threading import Thread
from typing import Any, overload

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
Bits = npt.NDArray[np.uint64]

_STEP = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, odd
_MASK = 2**64 - 1
_AHEAD = 2**18  # rows; shorter permutations take a few milliseconds
_ORDER = 0x6F72646572  # separates the seeds of sample orders from those of sample keys


def _mix(z: Bits) -> Bits:
    """The output function of SplitMix64 (Steele, Lea and Flood 2014): each input bit flips half of the output bits."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _state(seed: int) -> np.uint64:
    # One round before the positions are added, so that the streams of neighbouring seeds do not overlap.
    return np.uint64(_mix(np.array([(seed + _STEP) & _MASK], dtype=np.uint64))[0])


def sample_keys(seed: int, positions: npt.ArrayLike) -> Integers:
    """A random key of 63 bits for each position: element i of SplitMix64 seeded with ``seed``.

    Args:
        seed: any integer; taken modulo 2^64.
        positions: non-negative integers of any shape.
    """
    steps = np.asarray(positions).astype(np.uint64) + np.uint64(1)
    return (_mix(_state(seed) + steps * np.uint64(_STEP)) >> np.uint64(1)).astype(np.int64)


def fold_in(seed: int, position: int) -> int:
    """Derives a new seed from a seed and a counter, as `jax.random.fold_in` does: `sample_keys` for one position.

    >>> fold_in(1, 0) == int(sample_keys(1, [0])[0]), 0 <= fold_in(1, 0) < 2**63
    (True, True)
    """
    return int(sample_keys(seed, [position])[0])


def random_bits(keys: npt.ArrayLike, count: int) -> Bits:
    """``count`` random numbers of 64 bits for each of B keys: [B, count]."""
    state = _mix(np.asarray(keys).astype(np.uint64))
    return _mix(state[:, None] + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_STEP))


def uniform(bits: Bits) -> npt.NDArray[np.float64]:
    """Converts random numbers of 64 bits to fractions in [0, 1), by their upper 53 bits."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(seed: int, length: int) -> Integers:
    """A random permutation of 0 .. length - 1."""
    order = np.argsort(sample_keys(seed, np.arange(length)), kind="stable")
    # The permutation of a large corpus stays in memory: half the size if 32 bits are enough.
    return order.astype(np.uint32) if length < 2**32 else order


def rank_positions(rank: int, world_size: int, micro: int, accumulation: int) -> Integers:
    """The positions in a global batch that a rank takes, [accumulation, micro]: those of each of its micro-batches."""
    first = (np.arange(accumulation) * world_size + rank) * micro
    return first[:, None] + np.arange(micro)


class SampleOrder:
    """The row at each global sample position: an independent permutation of all rows for each epoch.

    The permutation of epoch e depends on (seed, e) alone; a position belongs to epoch ``position // length``. A global
    batch may span two epochs, so the last two permutations are cached. That of the next epoch of a large dataset is computed
    by a thread from the middle of an epoch on, so that its end takes no longer than other steps.

    Args:
        seed: of the run, or of one phase of it.
        length: number of rows.

    Raises:
        ValueError: if there are no rows.
    """

    def __init__(self, seed: int, length: int) -> None:
        if length < 1:
            raise ValueError(f"no order of {length} rows")
        self.seed, self.length = seed, length
        self._epochs: dict[int, Integers] = {}
        self._next: tuple[int, Thread] | None = None  # the epoch that a thread computes into `_epochs`

    @overload
    def __call__(self, position: int) -> int: ...
    @overload
    def __call__(self, position: npt.NDArray[Any]) -> Integers: ...

    def __call__(self, position: int | npt.NDArray[Any]) -> int | Integers:
        """The rows at positions 0, 1, 2, ...; for a number, or for an array of any shape."""
        positions = np.asarray(position, dtype=np.int64)
        epochs, offsets = np.divmod(positions, self.length)
        rows = np.empty_like(positions)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            rows[here] = self._permutation(int(epoch))[offsets[here]]
            if self.length >= _AHEAD and offsets[here].max() >= self.length // 2:
                self._compute_ahead(int(epoch) + 1)
        return rows if isinstance(position, np.ndarray) else int(rows)

    def _permutation(self, epoch: int) -> Integers:
        if self._next is not None and self._next[0] == epoch:
            self._next[1].join()
            self._next = None
        if epoch not in self._epochs:
            self._compute(epoch)
        found = self._epochs[epoch]
        while len(self._epochs) > 2:
            del self._epochs[min(self._epochs)]
        return found

    def _compute(self, epoch: int) -> None:
        self._epochs[epoch] = permutation(fold_in(self.seed ^ _ORDER, epoch), self.length)

    def _compute_ahead(self, epoch: int) -> None:
        if self._next is None and epoch not in self._epochs:
            self._next = epoch, Thread(target=self._compute, args=(epoch,), daemon=True)
            self._next[1].start()

"""Which row is the sample at a global position, and which random numbers belong to it.

Both are functions of (seed, position) alone, written out in integer arithmetic instead of taken from a library's
generator: they are the same on every machine and with every version, and whoever computes a sample, it comes out
the same.
"""

from __future__ import annotations

from typing import Any, overload

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]

_STEP = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, odd
_MASK = 2**64 - 1


def _mix(z: Keys) -> Keys:
    """The output function of SplitMix64 (Steele, Lea and Flood 2014): each input bit moves half of the output bits."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _state(seed: int) -> np.uint64:
    # One round before the positions are added, so that the streams of neighbouring seeds do not overlap.
    return np.uint64(_mix(np.array([(seed + _STEP) & _MASK], dtype=np.uint64))[0])


def keys(seed: int, positions: npt.ArrayLike) -> Integers:
    """63-bit random numbers, one for each position: element i of SplitMix64 seeded by ``seed``.

    Args:
        seed: any integer; taken modulo 2^64.
        positions: integers of any shape.
    """
    steps = np.asarray(positions).astype(np.uint64) + np.uint64(1)
    return (_mix(_state(seed) + steps * np.uint64(_STEP)) >> np.uint64(1)).astype(np.int64)


def key(seed: int, position: int) -> int:
    """`keys` for one position.

    >>> key(1, 0) == int(keys(1, [0])[0]), 0 <= key(1, 0) < 2**63
    (True, True)
    """
    return int(keys(seed, [position])[0])


def draws(sample_keys: npt.ArrayLike, count: int) -> Keys:
    """``count`` 64-bit random numbers for each of B keys: ``[B, count]``."""
    state = _mix(np.asarray(sample_keys).astype(np.uint64))
    return _mix(state[:, None] + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_STEP))


def uniform(numbers: Keys) -> npt.NDArray[np.float64]:
    """64-bit numbers as fractions in [0, 1), by their upper 53 bits."""
    return (numbers >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(seed: int, length: int) -> Integers:
    """The numbers 0 .. length - 1 in an order that the seed decides."""
    order = np.argsort(keys(seed, np.arange(length)), kind="stable")
    # An epoch of a large corpus stays in memory: half of it where 32 bits are enough.
    return order.astype(np.uint32) if length < 2**32 else order


class Order:
    """The row that stands at each global sample position: one permutation of all rows after another.

    The permutation of epoch e depends on (seed, e) alone; a position lies in epoch ``position // length``. A global
    batch may straddle two epochs, so the last two permutations are kept.

    Args:
        seed: of the run (or of one phase of it).
        length: rows of the data.
    """

    def __init__(self, seed: int, length: int) -> None:
        if length < 1:
            raise ValueError(f"no order of {length} rows")
        self.seed, self.length = seed, length
        self._epochs: dict[int, Integers] = {}

    @overload
    def __call__(self, position: int) -> int: ...
    @overload
    def __call__(self, position: npt.NDArray[Any]) -> Integers: ...

    def __call__(self, position: int | npt.NDArray[Any]) -> int | Integers:
        """Rows at positions (0, 1, 2, ...; a number or an array of any shape)."""
        positions = np.asarray(position, dtype=np.int64)
        epochs, places = np.divmod(positions, self.length)
        rows = np.empty_like(positions)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            rows[here] = self._epoch(int(epoch))[places[here]]
        return rows if isinstance(position, np.ndarray) else int(rows)

    def _epoch(self, epoch: int) -> Integers:
        if epoch not in self._epochs:
            while len(self._epochs) >= 2:
                del self._epochs[min(self._epochs)]
            # A tag apart from the seeds of samples: order and content are independent.
            self._epochs[epoch] = permutation(key(self.seed ^ 0x6F72646572, epoch), self.length)
        return self._epochs[epoch]

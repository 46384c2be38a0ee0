"""Windows of varying length, so that streams are not cut at the same tokens in every epoch (Merity et al. 2017, section 5).

The paper's code draws for each step a base, the configured length with probability 0.95 and half of it otherwise, and a length from the
normal distribution around it with standard deviation 5, at least 5 tokens. The rate of the step is scaled by length / configured length.
"""

from __future__ import annotations

from bellwether.trainer.data.sampling import fold_in, random_bits, sample_keys, uniform

FULL = 0.95  # probability of the configured length as base
DEVIATION, SHORTEST = 5, 5
MOST_ABOVE = 6 * DEVIATION  # more than the configured length: the sum of twelve uniform numbers is bounded
_LENGTHS = 0x6C656E677468  # separates their seed from those of sample keys
_BLOCK = 1024  # steps that are drawn at a time


def mean_length(length: int) -> float:
    """The mean length of a window, without the bound of `SHORTEST` tokens."""
    return max(SHORTEST, length * (FULL + (1 - FULL) / 2))


class WindowLengths:
    """First token and length of the window of each step in a stream. A function of (seed, step) alone.

    A window that would go beyond the end of the stream ends there, and the next one begins at the first token again.

    Args:
        length: the configured length.
        tokens: of each stream.

    >>> windows = WindowLengths(seed=1, length=70, tokens=100)
    >>> [windows[step] for step in range(3)]
    [(0, 72), (72, 28), (0, 70)]
    """

    def __init__(self, seed: int, length: int, tokens: int) -> None:
        self._seed, self._length, self._tokens = fold_in(seed, _LENGTHS), length, tokens
        self._windows: list[tuple[int, int]] = []

    def __getitem__(self, step: int) -> tuple[int, int]:
        while len(self._windows) <= step:
            self._extend()
        return self._windows[step]

    def _extend(self) -> None:
        first = len(self._windows)
        begin = sum(self._windows[-1]) if self._windows else 0
        for length in draw(self._seed, self._length, range(first, first + _BLOCK)):
            begin %= self._tokens
            cut = min(length, self._tokens - begin)
            self._windows.append((begin, cut))
            begin += cut


def draw(seed: int, length: int, steps: range) -> list[int]:
    """The lengths of some steps before streams end. In arithmetic that is the same on every machine."""
    uniforms = uniform(random_bits(sample_keys(seed, list(steps)), 13))
    # Twelve uniform numbers have the variance of a standard normal one.
    normal = uniforms[:, 1:].sum(axis=1) - 6
    bases = [length if each < FULL else length / 2 for each in uniforms[:, 0].tolist()]
    return [max(SHORTEST, int(base + DEVIATION * each)) for base, each in zip(bases, normal.tolist(), strict=True)]

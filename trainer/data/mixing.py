"""The random choices of mixup, CutMix and random erasing, functions of the samples' keys. `finishing` applies them on the device.

Mixing takes the images of a global batch two by two: positions 0 and 1, 2 and 3, ... of the run are a pair, and each image is
mixed with the other one of its pair, in a share that its own key chooses. Which images make a pair, and how they are mixed, is
thus a function of the seed and the position alone, as long as no pair is torn apart: micro-batches hold an even number of
samples. As the order of the samples is random, so are the pairs.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from bellwether.trainer.data.sampling import Integers, random_bits, uniform

Floats = npt.NDArray[np.float64]

_MIX, _ERASE = 0x6D697875, 0x6572617365  # separate their random numbers from those of crops
_ATTEMPTS = 10  # at a rectangle to erase, as timm and torchvision have it
_PAIRS = 32  # of uniform numbers for one of the beta distribution


def beta(fractions: Floats, alpha: float) -> Floats:
    """Random numbers of the distribution Beta(alpha, alpha), alpha in (0, 1]: [N], from uniform ones, [N, 2 * n].

    By Jöhnk 1964: the first pair (u, v) with x + y <= 1, x = u^(1/alpha) and y = v^(1/alpha), gives x / (x + y). At least half of
    all pairs are of this kind, so of 32 one is, but for one case in 2^32, which gives 1/2.
    """
    # As logarithms: for small alpha x and y themselves would underflow.
    x, y = np.log(1 - fractions[:, ::2]) / alpha, np.log(1 - fractions[:, 1::2]) / alpha
    sums = np.logaddexp(x, y)
    chosen = np.arange(len(fractions)), (sums <= 0).argmax(axis=1)
    return np.where(sums[chosen] <= 0, np.exp(x[chosen] - sums[chosen]), 0.5)


def mixing(
    keys: npt.ArrayLike, size: int, mixup: float, cutmix: float, share: float
) -> tuple[npt.NDArray[np.float32], Integers]:
    """How each of B images is mixed with the other one of its pair.

    Args:
        size: height and width of the images.
        mixup, cutmix: alpha of each, 0 for none; where both are above 0, each image takes one of them at even odds.
        share: of the images that are mixed.

    Returns:
        The share of the image itself in the pixels outside of the rectangle, float32 [B]; and the rectangle that the other image
        fills, int64 [B, 4]: top, left, bottom, right, in pixels. It has no pixels where CutMix is not chosen.
    """
    fractions = uniform(random_bits(np.asarray(keys) ^ _MIX, 4 + 2 * _PAIRS))
    is_mixed = fractions[:, 0] < share
    is_cut = is_mixed & (fractions[:, 1] < (0.5 if mixup and cutmix else float(cutmix > 0)))
    own = np.ones(len(fractions))
    if mixup:
        blended = is_mixed & ~is_cut
        own[blended] = beta(fractions[blended, 4:], mixup)
    box = np.zeros((len(fractions), 4), dtype=np.int64)
    if cutmix:
        box[is_cut] = _cut(beta(fractions[is_cut, 4:], cutmix), fractions[is_cut, 2:4], size)
    return own.astype(np.float32), box


def _cut(own: Floats, centre: Floats, size: int) -> Integers:
    """Rectangles of 1 - own of the area around random centres, clipped at the border (Yun et al. 2019, 1905.04899)."""
    half = (size * np.sqrt(1 - own)).astype(np.int64)[:, None] // 2
    middle = (centre * size).astype(np.int64)
    return np.concatenate([middle - half, middle + half], axis=1).clip(0, size)


def erased(keys: npt.ArrayLike, size: int, share: float) -> Integers:
    """The rectangle that is erased from each of B images, int64 [B, 4]: top, left, bottom, right, without pixels where none is.

    Zhong et al. 2017 (1708.04896): its area is uniform in 2 % to a third of the image, its aspect ratio log-uniform in 0.3 to
    1 / 0.3; after ten that do not fit nothing is erased.
    """
    fractions = uniform(random_bits(np.asarray(keys) ^ _ERASE, 3 + 2 * _ATTEMPTS))
    areas = size * size * (0.02 + (1 / 3 - 0.02) * fractions[:, 3::2])
    aspects = np.exp(math.log(0.3) * (1 - 2 * fractions[:, 4::2]))
    heights, widths = (np.rint(np.sqrt(each)).astype(np.int64) for each in (areas * aspects, areas / aspects))
    fits = (heights < size) & (widths < size)
    rows, first = np.arange(len(fractions)), fits.argmax(axis=1)
    height, width = heights[rows, first], widths[rows, first]
    top = (fractions[:, 1] * (size - height + 1)).astype(np.int64)
    left = (fractions[:, 2] * (size - width + 1)).astype(np.int64)
    box = np.stack([top, left, top + height, left + width], axis=1)
    box[~fits.any(axis=1) | (fractions[:, 0] >= share)] = 0
    return box

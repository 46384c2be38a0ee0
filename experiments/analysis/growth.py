"""The curve of the samples to a target over the batch size, with a knee that may be soft or sharp.

``samples = S_min (1 + k (B / B_crit)^s)^(1/s)``, ``k = 2^s - 1``. With s = 1 it is ``S_min (1 + B / B_crit)`` (McCandlish et al.
2018, 1812.06162, equation 5.3, in samples instead of steps). For every s a batch far below B_crit needs S_min samples, B_crit needs
twice S_min, and far above it the number of steps is constant. A small s is a soft knee, a large one a sharp knee.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def log_growth(log_ratio: ArrayLike, log_shape: ArrayLike) -> Floats:
    """log(samples / S_min) at log(B / B_crit), for log(s); the arguments are broadcast."""
    x = np.asarray(log_ratio, dtype=np.float64)
    shape = np.exp(np.asarray(log_shape, dtype=np.float64))
    return np.asarray(np.logaddexp(0.0, np.log(np.expm1(shape * np.log(2.0))) + shape * x) / shape)

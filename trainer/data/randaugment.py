"""RandAugment (Cubuk et al. 2019, 1909.13719) as timm's ``rand-mM-mstdS-inc1`` has it: the operations grow with the magnitude.

The operations are Pillow's. Which of them, how strong and in which direction is a function of the sample's key.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from bellwether.trainer.data.sampling import random_bits, uniform

if TYPE_CHECKING:
    from bellwether.trainer.data.images import ImageData

HIGHEST = 10  # magnitude
_KEY = 0x72616E64617567  # separates its random numbers from those of the crop
_PER_OPERATION = 6  # random numbers
_Fill = int | tuple[int, ...]


def _autocontrast(image: Any, level: float, sign: float) -> Any:
    from PIL import ImageOps

    return ImageOps.autocontrast(image)


def _equalize(image: Any, level: float, sign: float) -> Any:
    from PIL import ImageOps

    return ImageOps.equalize(image)


def _invert(image: Any, level: float, sign: float) -> Any:
    from PIL import ImageOps

    return ImageOps.invert(image)


def _posterize(image: Any, level: float, sign: float) -> Any:
    """Keeps 4 bits at level 0, none at level 1, which Pillow's own function refuses."""
    mask = 256 - 2 ** (4 + int(level * 4))
    return image.point([value & mask for value in range(256)] * len(image.mode))


def _solarize(image: Any, level: float, sign: float) -> Any:
    """Inverts what is as bright as 256 at level 0, as 0 at level 1."""
    from PIL import ImageOps

    return ImageOps.solarize(image, 256 - int(level * 256))


def _solarize_add(image: Any, level: float, sign: float) -> Any:
    """Adds up to 110 to what is darker than 128."""
    added = int(level * 110)
    return image.point([min(255, value + added) if value < 128 else value for value in range(256)] * len(image.mode))


def _enhanced(name: str) -> Callable[[Any, float, float], Any]:
    """Away from the image as it is: a factor of 0.1 to 1.9."""

    def apply(image: Any, level: float, sign: float) -> Any:
        from PIL import ImageEnhance

        return getattr(ImageEnhance, name)(image).enhance(max(0.1, 1 + sign * level * 0.9))

    return apply


_COLOURS: dict[str, Callable[[Any, float, float], Any]] = {
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "invert": _invert,
    "posterize": _posterize,
    "solarize": _solarize,
    "solarize-add": _solarize_add,
    "color": _enhanced("Color"),
    "contrast": _enhanced("Contrast"),
    "brightness": _enhanced("Brightness"),
    "sharpness": _enhanced("Sharpness"),
}
_MOVES = ("rotate", "shear-x", "shear-y", "translate-x", "translate-y")
OPERATIONS = (*_COLOURS, *_MOVES)


def apply(name: str, image: Any, level: float, sign: float, *, fill: _Fill = 0, bicubic: bool = False) -> Any:
    """One operation on a PIL image, of the same size and mode.

    Args:
        name: one of `OPERATIONS`.
        level: strength, in 0..1.
        sign: 1 or -1, the direction of those that have two.
        fill: colour of what lies outside of the image.
        bicubic: the interpolation of those that move pixels, else bilinear.
    """
    from PIL.Image import Resampling, Transform

    if name in _COLOURS:
        return _COLOURS[name](image, level, sign)
    resample = Resampling.BICUBIC if bicubic else Resampling.BILINEAR
    if name == "rotate":
        return image.rotate(sign * level * 30, resample=resample, fillcolor=fill)
    shear, (width, height) = sign * level * 0.3, image.size
    along = sign * level * 0.45
    matrices = {
        "shear-x": (1, shear, 0, 0, 1, 0),
        "shear-y": (1, 0, 0, shear, 1, 0),
        "translate-x": (1, 0, along * width, 0, 1, 0),
        "translate-y": (1, 0, 0, 0, 1, along * height),
    }
    return image.transform(image.size, Transform.AFFINE, matrices[name], resample=resample, fillcolor=fill)


def augmented(image: Any, key: int, config: ImageData) -> Any:
    """A grey or RGB PIL image after the operations that the key chooses."""
    assert config.randaugment is not None
    fractions = uniform(random_bits([key ^ _KEY], _PER_OPERATION * config.randaugment_ops))[0]
    fill = tuple(round(255 * mean) for mean in config.mean)
    for index in range(config.randaugment_ops):
        which, happens, *normal, direction, interpolation = fractions[index * _PER_OPERATION :][:_PER_OPERATION]
        if happens >= config.randaugment_share:
            continue
        magnitude = config.randaugment + config.randaugment_std * _gauss(normal)
        image = apply(
            OPERATIONS[int(which * len(OPERATIONS))], image, min(max(magnitude / HIGHEST, 0.0), 1.0),
            -1.0 if direction < 0.5 else 1.0, fill=fill if len(fill) > 1 else fill[0], bicubic=interpolation < 0.5,
        )  # fmt: skip
    return image


def _gauss(fractions: Sequence[float]) -> float:
    """A standard normal number from two uniform ones (Box and Muller 1958)."""
    return math.sqrt(-2 * math.log(1 - fractions[0])) * math.cos(2 * math.pi * fractions[1])

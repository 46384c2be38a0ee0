"""Decodes one image: orientation, transparency and all modes of Pillow, and what had to be done to it.

In this order: the first frame is decoded, 16-bit grey is scaled to 8 bits, the image is turned as EXIF says (as `datasets`
does), transparent pixels are composited over white, and the result is converted to grey or RGB.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np

# Twice Pillow's own limit, at which Pillow refuses: a small file can claim an image that does not fit in memory.
PIXEL_LIMIT = 178_956_970
LARGE = PIXEL_LIMIT // 2  # at which Pillow warns of a decompression bomb
BACKGROUND = (255, 255, 255)  # below transparent pixels

_ORIENTATION = 0x0112
_LFS_POINTER = b"version https://git-lfs"
_SIXTEEN_BIT = ("I", "F")
# Formats that are read under each other's suffix: MPO is a JPEG with further images behind it.
_SAME_FORMAT = {"MPO": "JPEG", "PGM": "PPM", "DIB": "BMP"}


class Undecodable(ValueError):
    """An image that cannot be decoded. The message is the reason and does not name the file."""


@dataclass(frozen=True)
class Traits:
    """What is unusual about an image, and its encoded form.

    Attributes:
        size: width and height as stored, before EXIF turns it.
        mode, format: Pillow's names of the stored mode and of the file format.
        rotated: turned or mirrored as its EXIF orientation says.
        transparent: has pixels that are not opaque, which are composited over white.
        animated: has more frames than the first, which alone is used.
        wrong_suffix: the file's suffix is that of another format; the content decides.
        pages: a TIFF with further pages behind the first, which alone is used.
        profile: has a colour profile other than sRGB, which is not applied.
    """

    size: tuple[int, int]
    mode: str
    format: str
    rotated: bool = False
    transparent: bool = False
    animated: bool = False
    wrong_suffix: bool = False
    pages: bool = False
    profile: bool = False

    @property
    def large(self) -> bool:
        """Whether it has so many pixels that Pillow would warn."""
        return self.size[0] * self.size[1] > LARGE

    @property
    def is_plain_jpeg(self) -> bool:
        """Whether another JPEG decoder gives the same image: no orientation, and grey or YCbCr as nearly all have."""
        return self.format == "JPEG" and self.mode in ("L", "RGB") and not self.rotated


def decode(data: bytes, channels: int, name: str = "", header_only: bool = False) -> tuple[Any, Traits]:
    """Decodes an image to a grey or RGB PIL image.

    Args:
        data: the encoded image.
        channels: 1 for grey, 3 for RGB.
        name: name of the file; its suffix is compared with the content.
        header_only: decode a JPEG at an eighth of its size, to find damage at a third of the cost; the returned image is of
            no use.

    Raises:
        Undecodable: with the reason.
    """
    from PIL import Image

    if not data:
        raise Undecodable("the file is empty")
    if data.startswith(_LFS_POINTER):
        raise Undecodable("it is a Git LFS pointer instead of the image: run git lfs pull")
    # Pillow would print its warning in each worker. Large images are counted, and refused below.
    Image.MAX_IMAGE_PIXELS = None
    try:
        with Image.open(io.BytesIO(data)) as image:
            return _converted(image, channels, name, header_only)
    except Undecodable:
        raise
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plugins raise whatever their parsing of a damaged file meets
        reason = str(error).replace(f"{error.__class__.__name__}: ", "")
        if isinstance(error, Image.UnidentifiedImageError):
            reason = f"its content is no image that Pillow knows; it begins with {data[:12]!r}"
        raise Undecodable(f"{type(error).__name__}: {reason}" if reason else type(error).__name__) from error


def _converted(image: Any, channels: int, name: str, header_only: bool) -> tuple[Any, Traits]:
    size, mode, form = image.size, image.mode, image.format or ""
    if size[0] * size[1] > PIXEL_LIMIT:
        raise Undecodable(f"it claims {size[0]:,} x {size[1]:,} pixels, more than {PIXEL_LIMIT:,}")
    stored_orientation = _orientation(image) if form == "TIFF" else 1  # Pillow itself turns TIFF when it is loaded
    pages = form == "TIFF" and _is_animated(image)
    animated = form not in ("MPO", "TIFF") and _is_animated(image)
    if header_only:
        image.draft(mode, (1, 1))
    image.load()
    profile = _has_other_profile(image)
    orientation = _orientation(image)
    if image.mode.startswith(_SIXTEEN_BIT):
        image = _eight_bits(image)
    image = _turned(image, orientation)
    image, transparent = _composited(image)
    traits = Traits(
        size, mode, form, rotated=max(orientation, stored_orientation) > 1, transparent=transparent, animated=animated,
        wrong_suffix=_is_wrong_suffix(name, form), pages=pages, profile=profile,
    )  # fmt: skip
    return image.convert("L" if channels == 1 else "RGB"), traits


def _orientation(image: Any) -> int:
    """The EXIF orientation, 1 to 8; 1 where it is missing, invalid or unreadable."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF data does not make the image unreadable
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _turned(image: Any, orientation: int) -> Any:
    from PIL.Image import Transpose

    turns = (
        None, None, Transpose.FLIP_LEFT_RIGHT, Transpose.ROTATE_180, Transpose.FLIP_TOP_BOTTOM, Transpose.TRANSPOSE,
        Transpose.ROTATE_270, Transpose.TRANSVERSE, Transpose.ROTATE_90,
    )  # fmt: skip
    turn = turns[orientation]
    return image if turn is None else image.transpose(turn)


def _is_animated(image: Any) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # a damaged later frame, which is not used
        return True
    finally:
        image.seek(0)


def _has_other_profile(image: Any) -> bool:
    profile = image.info.get("icc_profile") or b""
    # Names of the sRGB profiles that cameras, browsers and editors write, as ASCII or UTF-16.
    return bool(profile) and not any(name in profile for name in (b"sRGB", "sRGB".encode("utf-16-be")))


def _composited(image: Any) -> tuple[Any, bool]:
    """An image without transparency, and whether any of its pixels was not opaque."""
    from PIL import Image

    if not image.has_transparency_data:
        return image, False
    if image.mode in ("La", "RGBa"):
        image = image.convert(image.mode.upper())
    rgba = image.convert("RGBA")
    if rgba.getchannel("A").getextrema()[0] == 255:
        return rgba, False
    return Image.alpha_composite(Image.new("RGBA", image.size, BACKGROUND), rgba), True


def _is_wrong_suffix(name: str, form: str) -> bool:
    from PIL import Image

    expected = Image.registered_extensions().get(PurePath(name).suffix.lower())
    return expected is not None and _SAME_FORMAT.get(expected, expected) != _SAME_FORMAT.get(form, form)


def _eight_bits(image: Any) -> Any:
    """Scales grey of up to 16 bits to 8 bits. Pillow's own conversion clips: everything above 255 becomes white."""
    from PIL import Image

    values = np.asarray(image)
    # Of the 16-bit modes only TIFF uses fewer bits, given by its tag BitsPerSample. Pillow scales the others to 16.
    bits = getattr(image, "tag_v2", {}).get(258, [16])[0] if image.mode.startswith("I;") else 16
    if image.mode == "F" or values.min() < 0 or values.max() >= 2**bits:
        raise Undecodable(f"values of mode {image.mode} that are not whole numbers of {bits} bits")
    return Image.fromarray(np.rint(values * (255 / (2**bits - 1))).astype(np.uint8))

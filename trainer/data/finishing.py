"""The last steps from bytes to the model's input: crop of padded images, mirroring, normalization, [B, S, S, C] to [B, C, S, S],
erasing and mixing.

Workers send uint8, a quarter of the bytes of float32, and the training process finishes a batch on its device. The result has
the bits of normalizing first, as long as the device rounds each operation as IEEE 754 says: nothing is fused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bellwether.trainer.data import augment


@dataclass
class Finisher:
    """Finishes batches of images.

    Args:
        mean, std: of each channel, for pixel values in 0..1.
    """

    mean: Sequence[float]
    std: Sequence[float]
    _factors: dict[torch.device, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False, compare=False)

    def __call__(self, pixels: Tensor, mirror: Tensor | None = None, corner: Tensor | None = None) -> Tensor:
        """The model's input, float32 [B, C, S, S].

        Args:
            pixels: uint8 [B, S, S, C].
            mirror: bool [B]: which images to mirror.
            corner: int64 [B, 2]: the crop's upper left corner, row and column, in images that are padded by
                `augment.margin` with the mean.
        """
        outside = None
        if corner is not None:
            pixels, outside = _cropped(pixels, mirror, corner)
        elif mirror is not None:
            pixels = torch.where(mirror[:, None, None, None], pixels.flip(2), pixels)
        scale, shift = self._on(pixels.device)
        # One channel keeps the strides of [B, S, S, 1]. Convolutions round by the strides, so they are part of the result.
        one_channel = pixels.shape[3] == 1
        layout = torch.preserve_format if one_channel else torch.contiguous_format
        images = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=layout)
        images.mul_(scale).sub_(shift)
        return images if outside is None else images.masked_fill_(outside[:, None], 0)

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Scale and shift, [C, 1, 1]; copied to the device once, as such a copy waits for it."""
        if device not in self._factors:
            scale = torch.tensor([1 / (255 * s) for s in self.std])
            shift = torch.tensor([m / s for m, s in zip(self.mean, self.std, strict=True)])
            self._factors[device] = scale[:, None, None].to(device), shift[:, None, None].to(device)
        return self._factors[device]


def erase(images: Tensor, box: Tensor) -> Tensor:
    """Images [B, C, S, S] with the mean in a rectangle each, [B, 4]: top, left, bottom, right. The images are normalized."""
    return images.masked_fill_(_inside(box, images.shape[2])[:, None], 0)


def mix(images: Tensor, own_share: Tensor, box: Tensor | None) -> Tensor:
    """Each image [B, C, S, S] mixed with the other one of its pair, which are images 0 and 1, 2 and 3, ...

    Args:
        own_share: float32 [B], the share of the image itself in each pixel.
        box: int64 [B, 4], top, left, bottom, right of the rectangle that the other image fills; None: none has one.
    """
    other = other_of_pair(images)
    share = own_share[:, None, None, None]
    mixed = images * share + other * (1 - share)
    return mixed if box is None else torch.where(_inside(box, images.shape[2])[:, None], other, mixed)


def other_of_pair(tensor: Tensor) -> Tensor:
    """[B, ...] with each two neighbours exchanged.

    >>> other_of_pair(torch.tensor([1, 2, 3, 4])).tolist()
    [2, 1, 4, 3]
    """
    return tensor.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)


def _inside(box: Tensor, size: int) -> Tensor:
    """bool [B, S, S]."""
    along = torch.arange(size, device=box.device)
    top, left, bottom, right = box[:, :, None].unbind(1)
    rows, columns = (top <= along) & (along < bottom), (left <= along) & (along < right)
    return rows[:, :, None] & columns[:, None, :]


def _cropped(pixels: Tensor, mirror: Tensor | None, corner: Tensor) -> tuple[Tensor, Tensor]:
    """Crops of padded images, and which of their pixels are padding: uint8 [B, S, S, C], bool [B, S, S]."""
    count, size, _, channels = pixels.shape
    steps = torch.arange(size, device=pixels.device) - augment.margin(size)
    rows, columns = corner[:, :1] + steps, corner[:, 1:] + steps
    if mirror is not None:
        columns = torch.where(mirror[:, None], columns.flip(1), columns)
    outside = _is_outside(rows, size)[:, :, None] | _is_outside(columns, size)[:, None, :]
    inside_rows, inside_columns = rows.clamp(0, size - 1), columns.clamp(0, size - 1)
    index = (inside_rows[:, :, None] * size + inside_columns[:, None, :]).view(count, size * size, 1)
    cropped = pixels.reshape(count, size * size, channels).gather(1, index.expand(-1, -1, channels))
    return cropped.view(pixels.shape), outside


def _is_outside(index: Tensor, size: int) -> Tensor:
    return (index < 0) | (index >= size)

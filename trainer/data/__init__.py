"""Data for training: from a source in the config to batches of tensors, prepared once and cached on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from bellwether.trainer.config.schema import ImageData, TextData

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Data", "Samples", "load", "peek"]


class Samples(Protocol):
    """Rows that can be made into batches. Picklable, so that worker processes can do it."""

    def __len__(self) -> int: ...

    def batch(
        self, indices: Sequence[int] | npt.NDArray[np.int64], keys: Sequence[int] | npt.NDArray[np.int64]
    ) -> dict[str, Tensor]:
        """B samples.

        Args:
            indices: B rows.
            keys: B numbers of 63 bits, from which all that is random about each sample follows (masking,
                augmentation). Held-out samples have nothing random and ignore them.

        Returns:
            Text: ``input_ids`` int64 [B, L], masked already; ``masked_positions`` int64 [B, k], ascending; ``labels``
            int64 [B, k], the tokens that stood there. Images: ``pixel_values`` float32 [B, C, S, S], normalised;
            ``labels`` int64 [B].
        """
        ...


@dataclass(frozen=True)
class Data:
    """What a run trains on.

    Attributes:
        train, validation: the samples.
        vocabulary_size: entries of the tokenizer, for text.
        classes, channels, labels: number and names of the classes, and channels of the images, for images.
        tokenizer: a fast tokenizer of transformers, for text.
        fingerprint: stands for the content and all that was made of it; another one means other samples.
    """

    train: Samples
    validation: Samples
    vocabulary_size: int | None = None
    classes: int | None = None
    channels: int | None = None
    labels: list[str] | None = None
    tokenizer: Any = None
    fingerprint: str = ""


def load(config: TextData | ImageData) -> Data:
    """Prepare the data, or find it prepared. Any number of processes may call it at once; one does the work.

    Nothing that is prepared depends on a run's seed: runs that differ in it alone are held out the same rows, with the
    same vocabulary and the same masks, so their losses can be compared, and share one cache.

    Args:
        config: the section `data` of a config.

    Raises:
        ConfigError: if the source cannot be read as the config says, or is too small to hold out a part of it.
    """
    if isinstance(config, TextData):
        from bellwether.trainer.data import text

        return text.load(config)
    from bellwether.trainer.data import images

    return images.load(config)


def peek(config: TextData | ImageData) -> Data | None:
    """`load` where that takes no time: None where the data would have to be prepared first, or a hub asked for them."""
    from bellwether.trainer.config import ConfigError
    from bellwether.trainer.data import cache, sources

    if not sources.is_here(config):
        return None
    try:
        with cache.found_only():
            return load(config)
    except (cache.NotPrepared, ConfigError):
        return None

"""Labelled images for classification: the keys of ``data: {kind: images}``. `image_samples` prepares the data.

Reading a config must not import torch and numpy, so the methods import them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from bellwether.trainer.config.schema.data import DataConfig
from bellwether.trainer.config.schema.section import PIXELS, Count

if TYPE_CHECKING:
    from torch import Tensor

    from bellwether.trainer.data import Dataset, Samples


class ImageData(DataConfig):
    """Labelled images for classification."""

    metric: ClassVar[tuple[str, bool]] = ("val/accuracy", True)

    kind: Literal["images"]
    source: str = Field("digits", description="digits (built in), a folder or glob, or the name of a hub dataset")
    image_column: str = Field("image", description="name of the image column")
    label_column: str = Field("label", description="name of the label column")
    size: Count = Field(32, description="height and width of the model's input", json_schema_extra=PIXELS)
    crop: Literal["none", "pad", "resized"] = Field(
        "pad",
        description="training crop. pad: pad by size/8, then crop at random (CIFAR); resized: random area and aspect ratio "
        "(ImageNet)",
    )
    flip: bool = Field(True, description="flip half of the training images horizontally")
    decoder: Literal["pillow", "simplejpeg"] = Field(
        "pillow",
        description="how JPEGs are decoded for each batch; simplejpeg: faster, crops differ from Pillow's by rounding and at "
        "their border",
    )
    mean: list[float] = Field([0.5, 0.5, 0.5], description="mean of each channel, subtracted from pixel values in 0..1")
    std: list[float] = Field(
        [0.25, 0.25, 0.25], description="standard deviation of each channel, by which pixel values in 0..1 are divided"
    )

    @model_validator(mode="after")
    def _channels(self) -> ImageData:
        if len(self.mean) != len(self.std) or len(self.mean) not in (1, 3):
            raise ValueError("mean and std: one value a channel, 1 (grey) or 3 (RGB), the same number in both")
        if min(self.std) <= 0:
            raise ValueError("std: each value above 0")
        return self

    @property
    def channels(self) -> int:
        """1 for grey images, 3 for RGB."""
        return len(self.mean)

    @property
    def augments(self) -> bool:
        return self.flip or self.crop != "none"

    def prepare(self) -> dict[str, Any]:
        from bellwether.trainer.data import image_samples

        return image_samples.prepare(self)

    def open(self, facts: dict[str, Any]) -> Dataset:
        from bellwether.trainer.data import image_samples

        return image_samples.open_prepared(self, facts)

    def zeros(self, count: int) -> dict[str, Tensor]:
        import torch

        pixels = torch.zeros(count, self.channels, self.size, self.size)
        return {"pixel_values": pixels, "labels": torch.zeros(count, dtype=torch.int64)}

    def assumed(self, samples: Samples, classes: int) -> tuple[Dataset, str]:
        from bellwether.trainer.data import Dataset

        labels = [str(i) for i in range(classes)]
        dataset = Dataset(samples, samples, classes=classes, channels=self.channels, labels=labels)
        return dataset, f"{classes:,} classes: the data were not read"

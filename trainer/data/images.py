"""Labelled images for classification: the keys of ``data: {kind: images}``. `image_samples` prepares the data.

Reading a config must not import torch and numpy, so the methods import them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from bellwether.trainer.config.schema.data import DataConfig
from bellwether.trainer.config.schema.section import FRACTION, PIXELS, Count, Share, unit

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
    test_size: Count | None = Field(
        None,
        description="with crop: resized, height and width of held-out images; null: `size`",
        json_schema_extra=PIXELS,
    )
    test_crop: Annotated[float, Field(gt=0, le=1)] = Field(
        0.875,
        description="with crop: resized, side of the central square that is cropped from held-out images, as a fraction of their "
        "short side",
        json_schema_extra=FRACTION,
    )
    crop: Literal["none", "pad", "resized"] = Field(
        "pad",
        description="training crop. pad: pad by size/8, then crop at random (CIFAR); resized: random area and aspect ratio "
        "(ImageNet)",
    )
    flip: bool = Field(True, description="flip half of the training images horizontally")
    randaugment: Annotated[float, Field(ge=0, le=10)] | None = Field(
        None, description="magnitude of RandAugment (Cubuk et al. 2019), as timm counts it; null: none"
    )
    randaugment_ops: Annotated[int, Field(gt=0, le=15)] = Field(
        2, description="operations of RandAugment for each image", json_schema_extra=unit("operations")
    )
    randaugment_std: Annotated[float, Field(ge=0)] = Field(
        0.5, description="standard deviation of the magnitude, which differs between operations and images"
    )
    randaugment_share: Share = Field(
        0.5, description="probability that one of the operations takes place", json_schema_extra=FRACTION
    )
    erase: Share = Field(
        0.0,
        description="share of the training images in which a rectangle of 2 % to a third of the area is filled with the mean "
        "(Zhong et al. 2017, random erasing)",
        json_schema_extra=FRACTION,
    )
    mixup: Share = Field(
        0.0,
        description="mix each training image with another one in shares of the distribution Beta(mixup, mixup), and their labels "
        "(Zhang et al. 2017); 0: none",
    )
    cutmix: Share = Field(
        0.0,
        description="fill a rectangle of each training image with another one, in shares of Beta(cutmix, cutmix) of the area, and "
        "mix the labels (Yun et al. 2019); with mixup each image takes one of the two at even odds; 0: none",
    )
    mix_share: Share = Field(
        1.0, description="share of the training images that mixup and cutmix mix", json_schema_extra=FRACTION
    )
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

    @model_validator(mode="after")
    def _of_other_keys(self) -> ImageData:
        for key in ("test_size", "test_crop"):
            if self.crop != "resized" and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key}: goes with crop: resized; remove it, or write crop: resized")
        for key, needed in (("randaugment_ops", "randaugment"), ("randaugment_std", "randaugment"),
                            ("randaugment_share", "randaugment"), ("mix_share", "mixup")):  # fmt: skip
            absent = self.randaugment is None if needed == "randaugment" else self.unit == 1
            if absent and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key}: has no effect without {needed}; remove it, or write data.{needed}")
        return self

    @property
    def channels(self) -> int:
        """1 for grey images, 3 for RGB."""
        return len(self.mean)

    @property
    def augments(self) -> bool:
        return self.flip or self.crop != "none"

    @property
    def unit(self) -> int:
        """Images are mixed in pairs."""
        return 2 if self.mixup or self.cutmix else 1

    @property
    def held_out_size(self) -> int:
        """Height and width of held-out images."""
        return self.test_size or self.size

    def only_cropped(self) -> ImageData:
        """The config of views for test-time augmentation: crop and flip alone, at the size of held-out images."""
        none = {"randaugment": None, "erase": 0.0, "mixup": 0.0, "cutmix": 0.0}
        return self.model_copy(update={**none, "size": self.held_out_size})

    def plan(self) -> list[tuple[str, str]]:
        parts = [f"{self.size} pixels", f"crop {self.crop}", *(["flip"] if self.flip else [])]
        if self.randaugment is not None:
            share = "" if self.randaugment_share == 1 else f" of {self.randaugment_share:.0%}"
            noise = f" +- {self.randaugment_std:g}" if self.randaugment_std else ""
            parts.append(f"RandAugment {self.randaugment_ops} x {self.randaugment:g}{noise}{share}")
        parts += [f"erase {self.erase:.0%}"] if self.erase else []
        mixed = " or ".join(f"{key} {alpha:g}" for key in ("mixup", "cutmix") if (alpha := getattr(self, key)))
        if mixed:
            parts.append(mixed + ("" if self.mix_share == 1 else f" of {self.mix_share:.0%}"))
        rows = [("images", ", ".join(parts))]
        if self.crop == "resized":
            rows.append(("held-out", f"{self.held_out_size} pixels, the central {self.test_crop:.1%}"))
        return rows

    def prepare(self) -> dict[str, Any]:
        from bellwether.trainer.data import image_samples

        return image_samples.prepare(self)

    def open(self, facts: dict[str, Any]) -> Dataset:
        from bellwether.trainer.data import image_samples

        return image_samples.open_prepared(self, facts)

    def zeros(self, count: int) -> dict[str, Tensor]:
        import torch

        labels = torch.zeros(count, dtype=torch.int64)
        batch = {
            "pixel_values": torch.zeros(count, self.channels, self.size, self.size),
            "labels": labels,
            "sample_keys": labels.clone(),
        }
        mixed = {} if self.unit == 1 else {"other_labels": labels.clone(), "label_share": torch.zeros(count)}
        return {**batch, **mixed}

    def assumed(self, samples: Samples, classes: int) -> tuple[Dataset, str]:
        from bellwether.trainer.data import Dataset

        labels = [str(i) for i in range(classes)]
        dataset = Dataset(samples, samples, classes=classes, channels=self.channels, labels=labels)
        return dataset, f"{classes:,} classes: the data were not read"

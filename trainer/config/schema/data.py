"""``data``: what it is trained on."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from bellwether.trainer.config.schema.section import Count, Section, Share


class _Data(Section):
    format: Literal["auto", "text", "parquet", "imagefolder", "hub"] = Field(
        "auto", description="how to read `source`; auto decides from the file names"
    )
    subset: str | None = Field(None, description="a hub dataset's configuration name")
    split: str = Field("train", description="the split to train on, for a hub dataset")
    validation: str | None = Field(
        None,
        description="held-out data: a path or glob, or a hub split's name; null holds out `validation_share`",
    )
    validation_share: Share = Field(0.05, description="share of the rows held out when `validation` is null")
    cache: str = Field("~/.cache/bellwether", description="directory of prepared data, shared by all runs")
    workers: Annotated[int, Field(ge=0)] = Field(
        2, description="processes a rank that prepare batches; 0: in the training process"
    )


class TextData(_Data):
    """Text for masked language modelling, packed into sequences without padding."""

    kind: Literal["text"]
    source: str = Field(
        "python-docs", description="python-docs (built in), a file, folder or glob, or a hub dataset's name"
    )
    column: str = Field("text", description="the column that holds the text")
    tokenizer: str = Field(
        "train",
        description="train (WordPiece on this corpus), a vocabulary file, a tokenizer folder, or a hub name",
    )
    vocabulary_size: Annotated[int, Field(ge=64, le=2**24)] = Field(
        30522, description="entries of a trained WordPiece vocabulary (a given one has its own size)"
    )
    lowercase: bool = Field(True, description="fold case and strip accents (trained vocabulary or vocabulary file)")
    sequence_length: Annotated[int, Field(ge=8)] = Field(128, description="tokens a sequence, [CLS] and [SEP] included")
    mask_share: Annotated[float, Field(gt=0, lt=1)] = Field(0.15, description="share of the tokens to predict")


class ImageData(_Data):
    """Labelled images for classification."""

    kind: Literal["images"]
    source: str = Field("digits", description="digits (built in), a folder or glob, or a hub dataset's name")
    image_column: str = Field("image", description="the column that holds the image")
    label_column: str = Field("label", description="the column that holds the class")
    size: Count = Field(32, description="height and width that the model sees, in pixels")
    crop: Literal["none", "pad", "resized"] = Field(
        "pad",
        description="training crop: pad by size/8 and cut (CIFAR), or random area and aspect (ImageNet)",
    )
    flip: bool = Field(True, description="mirror half of the training images")
    mean: list[float] = Field([0.5, 0.5, 0.5], description="per-channel mean of pixels in 0..1, subtracted")
    std: list[float] = Field([0.25, 0.25, 0.25], description="per-channel deviation of pixels in 0..1, divided by")

    @model_validator(mode="after")
    def _channels(self) -> ImageData:
        if len(self.mean) != len(self.std) or len(self.mean) not in (1, 3):
            raise ValueError("mean and std: one value a channel, 1 (grey) or 3 (RGB), the same number in both")
        if min(self.std) <= 0:
            raise ValueError("std: each value above 0")
        return self


Data = Annotated[TextData | ImageData, Field(discriminator="kind")]

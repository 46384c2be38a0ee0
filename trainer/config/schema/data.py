"""``data``: the dataset."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from bellwether.trainer.config.schema.section import FRACTION, PIXELS, TOKENS, Count, Section, Share, unit


class _Data(Section):
    format: Literal["auto", "text", "parquet", "imagefolder", "hub"] = Field(
        "auto", description="how to read `source`; auto: decided by the file names"
    )
    subset: str | None = Field(None, description="configuration name of a hub dataset")
    split: str = Field("train", description="split of a hub dataset to train on")
    validation: str | None = Field(
        None,
        description="held-out data: a path or glob, or the name of a split of a hub dataset; null: hold out `validation_share` of the "
        "training data",
    )
    validation_share: Share = Field(
        0.05, description="fraction of the rows to hold out when `validation` is null", json_schema_extra=FRACTION
    )
    cache: str = Field("~/.cache/bellwether", description="directory of the prepared data, shared by all runs")
    workers: Annotated[int, Field(ge=0)] = Field(
        2,
        description="processes per rank that prepare batches; 0: prepare them in the training process",
        json_schema_extra=unit("processes"),
    )


class TextData(_Data):
    """Text for masked language modelling, packed into sequences without padding."""

    kind: Literal["text"]
    source: str = Field(
        "python-docs", description="python-docs (built in), a file, folder or glob, or the name of a hub dataset"
    )
    column: str = Field("text", description="name of the text column")
    tokenizer: str = Field(
        "train",
        description="train (WordPiece, trained on this corpus), a vocabulary file, a tokenizer folder, or the name of one on the hub",
    )
    vocabulary_size: Annotated[int, Field(ge=64, le=2**24)] = Field(
        30522,
        description="size of a trained WordPiece vocabulary; ignored for a given tokenizer",
        json_schema_extra=TOKENS,
    )
    lowercase: bool = Field(
        True, description="lowercase the text and strip accents (for a trained vocabulary or a vocabulary file)"
    )
    sequence_length: Annotated[int, Field(ge=8)] = Field(
        128, description="sequence length, [CLS] and [SEP] included", json_schema_extra=TOKENS
    )
    mask_share: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.15, description="fraction of the tokens to mask and predict", json_schema_extra=FRACTION
    )


class ImageData(_Data):
    """Labelled images for classification."""

    kind: Literal["images"]
    source: str = Field("digits", description="digits (built in), a folder or glob, or the name of a hub dataset")
    image_column: str = Field("image", description="name of the image column")
    label_column: str = Field("label", description="name of the label column")
    size: Count = Field(32, description="height and width of the model's input", json_schema_extra=PIXELS)
    crop: Literal["none", "pad", "resized"] = Field(
        "pad",
        description="training crop. pad: pad by size/8, then crop at random (CIFAR); resized: random area and aspect ratio (ImageNet)",
    )
    flip: bool = Field(True, description="flip half of the training images horizontally")
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


Data = Annotated[TextData | ImageData, Field(discriminator="kind")]

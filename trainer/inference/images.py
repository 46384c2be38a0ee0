"""Predictions of image classifiers: a class for each image file."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from bellwether.trainer.config import ConfigError
from bellwether.trainer.data import image_decoding, sources
from bellwether.trainer.data.finishing import Finisher
from bellwether.trainer.data.image_folders import SUFFIXES
from bellwether.trainer.data.image_samples import held_out_pixels
from bellwether.trainer.data.images import ImageData
from bellwether.trainer.data.listing import select
from bellwether.trainer.data.summary import SourceSummary
from bellwether.trainer.inference.exported import export_of, last_data_of, load_model
from bellwether.trainer.models import auto_classes

assert auto_classes  # by which transformers knows our residual networks

log = logging.getLogger(__name__)


@dataclass
class ImageClassifier:
    """A model of a run, and the image files to read as the run's evaluation does.

    Attributes:
        architecture: what the names of its models end with.
        names: its classes.
        data: what the files were named by, for errors.
    """

    architecture: ClassVar[str] = "ForImageClassification"

    config: ImageData
    model: Any
    names: Sequence[str]
    files: Sequence[Path]
    data: str

    @classmethod
    def load(cls, folder: Path, data: str) -> ImageClassifier:
        """Of a run with an export, or of the export.

        Args:
            data: an image, a folder with images at any depth, or a glob.

        Raises:
            ConfigError: if the model cannot be loaded, belongs to no run, or there are no images.
        """
        export = export_of(folder)
        config = last_data_of(folder)
        if not isinstance(config, ImageData):
            problem = "belongs to no run on images, which would say how they are read"
            raise ConfigError("RUN_OR_FOLDER", str(folder), problem, "name a run, or use transformers.pipeline")
        model = load_model(folder, export, f"AutoModel{cls.architecture}")
        found = SourceSummary()
        files = select(sources.files_of(data, SUFFIXES, "--data", found), SUFFIXES, found)
        if not files:
            raise ConfigError("--data", data, "names no image", f"images end in {' '.join(SUFFIXES)}")
        for finding in found.findings:
            log.warning("%s", finding)
        return cls(config, model, [model.config.id2label[i] for i in range(model.config.num_labels)], files, data)

    @torch.no_grad()
    def predictions(self, batch: int, device: str) -> Iterator[dict[str, Any]]:
        """For each image, sorted by path: ``file``, ``prediction``, and the ``probability`` of the predicted class.

        Raises:
            ConfigError: naming an image that cannot be decoded.
        """
        self.model.to(device).eval()
        finish = Finisher(self.config.mean, self.config.std)
        with ThreadPoolExecutor() as pool, tqdm(total=len(self.files), unit=" images", disable=None) as bar:
            for begin in range(0, len(self.files), batch):
                files = self.files[begin : begin + batch]
                pixels = torch.from_numpy(np.stack(list(pool.map(self._pixels, files)))).to(device)
                logits = self.model(pixel_values=finish(pixels)).logits.float()
                best = logits.softmax(dim=1).max(dim=1)
                for file, number, share in zip(files, best.indices.tolist(), best.values.tolist(), strict=True):
                    yield {"file": str(file), "prediction": self.names[number], "probability": share}
                bar.update(len(files))

    def _pixels(self, file: Path) -> npt.NDArray[np.uint8]:
        try:
            image, _ = image_decoding.decode(file.read_bytes(), self.config.channels)
        except OSError as error:
            raise ConfigError("--data", self.data, f"{file} cannot be read: {error.strerror}") from error
        except image_decoding.Undecodable as error:
            advice = "repair or remove it"
            raise ConfigError("--data", self.data, f"{file} cannot be decoded: {error}", advice) from error
        return held_out_pixels(image, self.config)

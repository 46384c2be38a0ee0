"""The images of a folder with one sub-folder per class, or of a glob, and their classes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bellwether.trainer.config.errors import ConfigError
from bellwether.trainer.data.listing import is_dir, is_hidden, select
from bellwether.trainer.data.summary import SourceSummary, readable

SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm",
)  # fmt: skip
_SPLITS = {"train", "training", "val", "valid", "validation", "dev", "eval", "test", "testing"}


@dataclass(frozen=True)
class ImageFiles:
    """The images of a folder or glob.

    Attributes:
        base: the folder to which `names` are relative.
        names: paths of the images.
        labels: the class of each image.
        classes: all classes, sorted; also those without an image.
    """

    base: Path
    names: list[str]
    labels: list[str]
    classes: list[str]

    @property
    def paths(self) -> list[str]:
        """The absolute paths. Strings, as there may be millions."""
        base = os.path.join(self.base.absolute(), "")
        return [base + name for name in self.names]


def list_folder(folder: Path, files: Sequence[Path], key: str, summary: SourceSummary) -> ImageFiles:
    """The images among the files below a folder. Its sub-folders are the classes, whatever is below them.

    Args:
        files: as `listing.walk` yields them.

    Raises:
        ConfigError: if an image is in no sub-folder, or the sub-folders are splits.
    """
    begin = 0 if folder == Path() else len(os.path.join(folder, ""))
    relative = [str(file)[begin:].split("/") for file in select(files, SUFFIXES, summary)]
    classes = sorted(
        readable(entry.name) for entry in os.scandir(folder) if not is_hidden(entry.name) and is_dir(entry)
    )
    for parts in relative:
        if len(parts) == 1:
            problem = f"{parts[0]} is not in a folder/class/image layout"
            raise ConfigError(key, str(folder), problem, "name the folder that holds one sub-folder a class, or a glob")
    if classes and {name.lower() for name in classes} <= _SPLITS:
        problem = f"its sub-folders {', '.join(classes)} are splits, not classes"
        held_out = next((name for name in classes if not name.lower().startswith("train")), classes[-1])
        advice = f"name them, as in data.source={folder / classes[-1]} data.validation={folder / held_out}"
        raise ConfigError(key, str(folder), problem, advice)
    if deeper := [parts for parts in relative if len(parts) > 2]:
        done = "the first level is the class"
        summary.note("images in folders below their class", done, "/".join(deeper[0]), len(deeper))
    return ImageFiles(
        folder, ["/".join(parts) for parts in relative], [readable(parts[0]) for parts in relative], classes
    )


def list_files(files: Sequence[Path], summary: SourceSummary) -> ImageFiles:
    """The images among the files of a glob. The folder of an image is its class."""
    images = select(files, SUFFIXES, summary)
    base = Path(os.path.commonpath([file.parent for file in files]))
    labels = [readable(file.parent.name) for file in images]
    classes = sorted(set(labels))
    return ImageFiles(base, [file.relative_to(base).as_posix() for file in images], labels, classes)

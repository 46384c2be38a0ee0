"""Lists the images in tar shards as webdataset writes them; each image is read from its shard by offset and size.

The class of an image is, in this order: the member of the same name with the suffix ``.cls`` (a number or a name), the field
`data.label_column` of that with the suffix ``.json``, the folder of the image. As webdataset cuts names at the first dot, the
label of ``0001.front.jpg`` may also be ``0001.cls``.
"""

from __future__ import annotations

import json
import tarfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from bellwether.trainer.config.errors import ConfigError
from bellwether.trainer.data import tar_end
from bellwether.trainer.data.image_folders import SUFFIXES
from bellwether.trainer.data.listing import is_hidden
from bellwether.trainer.data.summary import SourceSummary


@dataclass
class ShardImages:
    """The images of shards, in the order of the shards and of the members in them.

    Attributes:
        shards: the tar files.
        names: name of each image's member.
        places: shard number, offset and size of each image.
        labels: of each image: all int, or all str.
        summary: counts the members that are neither images nor labels.
    """

    shards: list[Path]
    names: list[str] = field(default_factory=list)
    places: list[tuple[int, int, int]] = field(default_factory=list)
    labels: list[int | str] = field(default_factory=list)
    summary: SourceSummary = field(default_factory=SourceSummary)


@dataclass
class _Members:
    """The members of one shard: offset and size by name, and the labels by their name without suffix."""

    images: dict[str, tuple[int, int]] = field(default_factory=dict)
    cls: dict[str, bytes] = field(default_factory=dict)
    json: dict[str, bytes] = field(default_factory=dict)
    owners: dict[str, str] = field(default_factory=dict)


def list_shards(shards: list[Path], label_column: str, key: str) -> ShardImages:
    """Reads the headers of all shards, in parallel.

    Raises:
        ConfigError: naming the shard and member, if a shard is damaged or a sample has two images or no class.
    """
    found = ShardImages(shards)
    with ThreadPoolExecutor(8) as pool:
        for number, part in enumerate(pool.map(lambda shard: _list_shard(shard, label_column, key), shards)):
            found.names += part.names
            found.places += [(number, offset, size) for _, offset, size in part.places]
            found.labels += part.labels
            found.summary.add(part.summary)
    kinds = {type(label) for label in found.labels}
    if kinds == {int, str}:
        found.labels = [str(label) for label in found.labels]
    return found


def _list_shard(shard: Path, label_column: str, key: str) -> ShardImages:
    found = ShardImages([shard])
    members = _members(shard, found.summary, key)
    for name, (offset, size) in members.images.items():
        found.names.append(name)
        found.places.append((0, offset, size))
        found.labels.append(_label(name, members, label_column, shard, key))
    for stem in sorted({*members.cls, *members.json} - set(members.owners)):
        found.summary.note("labels without an image", "left out", f"{shard}/{stem}")
    return found


def _members(shard: Path, summary: SourceSummary, key: str) -> _Members:
    members = _Members()
    try:
        with tarfile.open(shard, "r:") as tar:
            end = 0
            for member in tar:
                end = tar_end.after(member)
                if member.issym() or member.islnk():
                    summary.note("links in tar shards", "left out", f"{shard}, {member.name}")
                if member.isfile():
                    _add(members, tar, member, shard, summary, key)
        tar_end.check_file(shard, end, summary)
    except (tarfile.TarError, EOFError) as error:
        problem = f"is no tar archive, or is damaged: {error}"
        raise ConfigError(
            key, str(shard), problem, "write it again; compressed archives have to be unpacked"
        ) from error
    return members


def _add(
    members: _Members, tar: tarfile.TarFile, member: tarfile.TarInfo, shard: Path, summary: SourceSummary, key: str
) -> None:
    path = PurePosixPath(member.name)
    suffix = path.suffix.lower()
    out = any(is_hidden(part) for part in path.parts if part not in (".", ".."))
    if out or suffix not in (*SUFFIXES, ".cls", ".json"):
        summary.ignore(shard / member.name)
    elif suffix in SUFFIXES:
        if member.name in members.images:
            problem = f"holds {member.name} twice"
            raise ConfigError(key, str(shard), problem, "give each image a name of its own")
        members.images[member.name] = (member.offset_data, member.size)
    else:
        stream = tar.extractfile(member)
        assert stream is not None
        labels, stem = members.cls if suffix == ".cls" else members.json, str(path.with_suffix(""))
        if stem in labels:
            what = "members of a tar shard with the name of a later one"
            summary.note(what, "left out", f"{shard}, {member.name}")
        labels[stem] = stream.read()


def _label(name: str, members: _Members, label_column: str, shard: Path, key: str) -> int | str:
    path = PurePosixPath(name)
    whole, first = str(path.with_suffix("")), str(path.parent / path.name.partition(".")[0])
    stem = next((stem for stem in (whole, first) if stem in members.cls or stem in members.json), None)
    label: Any = path.parent.name
    if stem is not None:
        if members.owners.setdefault(stem, name) != name:
            problem = f"{members.owners[stem]} and {name} have one label: the name of a sample ends at its first dot"
            raise ConfigError(key, str(shard), problem, "give each image a label of its own")
        if stem in members.cls:
            label = _number(members.cls[stem].decode("utf-8-sig", "replace").strip())
        else:
            label = _field(members.json[stem], label_column, name, shard, key)
    if isinstance(label, bool) or not isinstance(label, int | str) or label == "":
        problem = f"{name} in {shard} has no class: neither a .cls, nor this field of a .json, nor a folder"
        raise ConfigError("data.label_column", label_column, problem, "write one of them")
    return label


def _number(text: str) -> int | str:
    """The class as a number if it is written as one; ``007`` is a name."""
    is_number = text.isascii() and text.removeprefix("-").isdigit() and str(int(text)) == text
    return int(text) if is_number else text


def _field(content: bytes, label_column: str, name: str, shard: Path, key: str) -> Any:
    try:
        return json.loads(content).get(label_column)
    except (ValueError, AttributeError) as error:
        problem = f"the .json of {name} is no JSON object: {error}"
        raise ConfigError(key, str(shard), problem, "write it again") from error

"""Which file of a checkpoint holds which slice of a parameter.

Each safetensors file lists its own slices in its header, so that the manifest does not have to: at 1,024 ranks that were 33 MB
of JSON, parsed by every rank. A rank that finds all its slices in its own file, as after a restart on the same number of ranks,
reads one header. Otherwise the ranks share the headers, and exchange the rows as integers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bellwether.trainer import messages
from bellwether.trainer.checkpoint.format import Manifest
from bellwether.trainer.config import ConfigError
from bellwether.trainer.distributed import World, run_on_all_ranks

Row = tuple[str, int, int, str]  # parameter, offset of the slice in the flattened parameter, its length, file


class SliceIndex:
    """The slices of each parameter, by their offset.

    Args:
        rows: in any order; slices of one parameter do not overlap.
    """

    def __init__(self, rows: Iterable[Row]) -> None:
        self._files: list[str] = []
        numbers: dict[str, int] = {}
        found: dict[str, list[tuple[int, int, int]]] = {}
        for name, start, length, file in rows:
            if file not in numbers:
                numbers[file] = len(self._files)
                self._files.append(file)
            found.setdefault(name, []).append((start, length, numbers[file]))
        self._rows: dict[str, NDArray[np.int64]] = {n: np.array(sorted(r), np.int64) for n, r in found.items()}

    def overlapping(self, name: str, start: int, end: int) -> Iterator[tuple[int, int, str]]:
        """The slices (offset, length, file) that hold elements of [start, end) of a parameter."""
        rows = self._rows.get(name)
        if rows is None:
            return
        first = max(0, int(np.searchsorted(rows[:, 0], start, side="right")) - 1)
        for offset, length, file in rows[first : int(np.searchsorted(rows[:, 0], end, side="left"))]:
            yield int(offset), int(length), self._files[file]


def of_file(path: Path, name: str) -> list[Row]:
    """The slices that a file holds, from its header.

    Raises:
        ConfigError: if the file is missing or its header is damaged.
    """
    try:
        with open(path / name, "rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        keys = [(key.split("|"), about["shape"]) for key, about in header.items() if key.count("|") == 2]
        return [
            (of[1], int(of[2]), int(shape[0]), name) for of, shape in keys if of[0] in ("weight", "frozen", "carried")
        ]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, MemoryError, OverflowError) as error:
        problem = f"the header of {name} cannot be read: {error}"
        raise ConfigError("resume", str(path), problem, "resume from another checkpoint") from None


def of_checkpoint(path: Path, manifest: Manifest) -> SliceIndex:
    """The slices of all files, read by this process alone."""
    if manifest.format == 1:
        return SliceIndex(_of_manifest(manifest))
    return SliceIndex(row for name in manifest.files for row in of_file(path, name))


def for_rank(path: Path, manifest: Manifest, world: World, wanted: Iterable[tuple[str, int, int]]) -> SliceIndex:
    """An index that holds at least this rank's slices. Collective.

    Args:
        wanted: this rank's slices: parameter, offset, length.

    Raises:
        ConfigError: on all ranks, if the header of a file cannot be read.
    """
    if manifest.format == 1:
        return SliceIndex(_of_manifest(manifest))
    own_file, names = f"rank-{world.rank:05d}.safetensors", list(manifest.files)
    own: list[Row] = []

    def read_own() -> bool:
        if own_file in manifest.files:
            own.extend(of_file(path, own_file))
        # Frozen parameters are in rank 0's file alone.
        if manifest.frozen and own_file != names[0]:
            own.extend(row for row in of_file(path, names[0]) if row[0] in manifest.frozen)
        return set(wanted) <= {row[:3] for row in own}

    if all(run_on_all_ranks(world, read_own)):
        return SliceIndex(own)
    return SliceIndex(_exchanged(path, manifest, world))


def _exchanged(path: Path, manifest: Manifest, world: World) -> Iterator[Row]:
    """The slices of all files: each rank reads the headers of its share. Collective."""
    names, files = [*manifest.parameters, *manifest.frozen, *manifest.carried], list(manifest.files)
    name_of, file_of = ({text: number for number, text in enumerate(texts)} for texts in (names, files))
    own: list[tuple[int, int, int, int]] = []

    def read_share() -> None:
        for file in files[world.rank :: world.size]:
            own.extend((name_of[name], start, length, file_of[file]) for name, start, length, _ in of_file(path, file))

    run_on_all_ranks(world, read_share)
    for data in messages.all_gather(np.array(own, np.int64).tobytes(), world.device):
        for name, start, length, file in np.frombuffer(data, np.int64).reshape(-1, 4).tolist():
            yield names[name], start, length, files[file]


def _of_manifest(manifest: Manifest) -> Iterator[Row]:
    """The slices as the manifests of format 1 list them."""
    for file, about in manifest.files.items():
        for name, slices in about["pieces"].items():
            for start, length in slices:
                yield name, start, length, file

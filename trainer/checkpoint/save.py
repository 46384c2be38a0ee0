"""Saves a checkpoint: each rank writes the slices that it owns, then one rename publishes them."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial as bind
from pathlib import Path
from typing import Any, Protocol, TypeVar

from bellwether import __version__
from bellwether.trainer import file_errors, run_paths
from bellwether.trainer.checkpoint import snapshot
from bellwether.trainer.checkpoint.format import Manifest, Position
from bellwether.trainer.checkpoint.snapshot import HostBuffer, Snapshot
from bellwether.trainer.distributed import World, run_on_all_ranks
from bellwether.trainer.engine import Engine

T = TypeVar("T")

# Deleting the thousands of files of a large run takes minutes on some file systems. Python waits for this thread at its exit.
_deletions = ThreadPoolExecutor(max_workers=1, thread_name_prefix="delete-checkpoints")


class RunOnAllRanks(Protocol):
    """`bellwether.trainer.distributed.run_on_all_ranks` for some connection of the ranks."""

    def __call__(self, act: Callable[[], T]) -> list[T]: ...


@dataclass(frozen=True)
class Contents:
    """A checkpoint in memory, as it was at one step boundary."""

    snapshot: Snapshot  # of this rank
    manifest: Manifest  # without its files


@dataclass(frozen=True)
class Retention:
    """Which checkpoints are kept when a new one is published."""

    keep: int  # newest ones
    best: int | None = None  # step of one that is kept however old it is


def save(
    root: Path,
    engine: Engine,
    position: Position,
    world: World,
    keep: int,
    data: list[str],
    noise: dict[str, float] | None = None,
    best: int | None = None,
) -> Path:
    """Saves a checkpoint at a step boundary, and deletes all but the newest ``keep`` in the background. Collective.

    Args:
        best: step of a checkpoint that is kept however old it is.
        data: fingerprint of each phase's dataset, compared on resume.
        noise: state of the gradient noise estimate.

    Raises:
        OSError: on every rank, naming the file, if any rank could not write. Nothing is published then.
    """
    contents = take(engine, position, world, data, noise, HostBuffer(pinned=False))
    return write(root, contents, world, bind(run_on_all_ranks, world), Retention(keep, best))


def take(
    engine: Engine, position: Position, world: World, data: list[str], noise: dict[str, float] | None, buffer: HostBuffer
) -> Contents:  # fmt: skip
    """Copy all that a checkpoint holds: training may go on when this returns. Collective; arguments as of `save`.

    What is random, and which samples come next, follows from the seed and the position.

    Args:
        buffer: for this rank's tensors; it must not hold those of a checkpoint that is still being written.
    """
    # On all ranks, it may be collective; first, as Swats may switch, which changes tensors.
    scalars = engine.optimizer.scalars()
    return Contents(
        snapshot.take(engine, world, buffer), _manifest(engine, position, world, data, scalars, noise or {})
    )


def write(
    root: Path, contents: Contents, world: World, run_on_all_ranks: RunOnAllRanks, retention: Retention,
    before_publishing: Callable[[], None] = lambda: None,
) -> Path:  # fmt: skip
    """Write a checkpoint, publish it and delete old ones; may be called in a thread. Collective.

    Args:
        run_on_all_ranks: on a connection that no other thread uses meanwhile.
        before_publishing: called on rank 0 when all files are on the disk.

    Raises:
        OSError: on every rank, naming the file, if any rank could not write. Nothing is published then.
    """
    final = path_of(root, contents.manifest.position.step)
    partial = root / f"{final.name}.partial"
    on_rank_0 = bind(_on_rank_0, world, run_on_all_ranks)
    on_rank_0(lambda: _prepare(partial, final))
    file = partial / f"rank-{world.rank:05d}.safetensors"
    try:
        files = run_on_all_ranks(lambda: (file.name, contents.snapshot.write(file)))
        on_rank_0(before_publishing)
        on_rank_0(lambda: _publish(partial, final, replace(contents.manifest, files=dict(files))))
    except OSError:
        if world.is_main:  # what was written takes the room that another attempt needs
            shutil.rmtree(partial, ignore_errors=True)
        raise
    kept = () if retention.best is None else (path_of(root, retention.best),)
    on_rank_0(lambda: _prune(root, retention.keep, kept))
    return final


def _on_rank_0(world: World, run_on_all_ranks: RunOnAllRanks, act: Callable[[], None]) -> None:
    run_on_all_ranks(lambda: act() if world.is_main else None)


def path_of(root: Path, step: int) -> Path:
    """The checkpoint of a step, whether it exists or not."""
    return root / f"step-{step:08d}"


def _prepare(partial: Path, final: Path) -> None:
    if final.exists():
        raise FileExistsError(f"{final} already exists: another process writes to this run")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)


def _manifest(
    engine: Engine, position: Position, world: World, data: list[str], scalars: dict[str, float], noise: dict[str, float]
) -> Manifest:  # fmt: skip
    parameters: dict[str, Any] = {}
    kinds: set[str] = set()
    for shard in engine.optimizer.shards:
        step = engine.optimizer.state.get(shard.tensor, {}).get("step")
        own = sorted(snapshot.state_tensors(engine, shard))
        kinds |= set(own)
        for parameter in shard.parameters:
            parameters[parameter.name] = {
                "shape": parameter.shape,
                "step": None if step is None else float(step),
                "states": own,
            }
    return Manifest(
        position, __version__, world.size, engine.optimizer.name, data, sorted(kinds), parameters, {}, engine.loss_scaler_state(),
        scalars, noise, [name for name, _ in engine.frozen()], {} if engine.carried is None else engine.carried.shapes(),
        None if engine.carried is None else engine.carried.first_token,
    )  # fmt: skip


def _publish(partial: Path, final: Path, manifest: Manifest) -> None:
    with file_errors.naming(partial / "manifest.json"):
        manifest.write(partial)
        _flush(partial / "manifest.json")
        _flush(partial)
    partial.rename(final)
    _flush(final.parent)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def _prune(root: Path, keep: int, kept: Sequence[Path] = ()) -> None:
    """Delete all but the newest checkpoints, and what killed processes have left, while training goes on."""
    for old in run_paths.checkpoints(root)[:-keep]:
        if old not in kept:
            _set_aside(old)
    for leftover in sorted(root.glob("step-*.partial")):
        _delete(leftover if Path(leftover.stem).suffix else _set_aside(leftover))


def _set_aside(folder: Path) -> Path:
    """Rename a folder that is to be deleted, ``step-00000012`` or ``step-00000012.partial``, to a name that nothing else gets.

    A process killed while it deletes must not leave an incomplete checkpoint under a complete one's name, and a deletion that takes
    minutes must not find the checkpoint that is written next under the name.
    """
    return folder.rename(folder.with_name(f"{folder.stem}.{uuid.uuid4().hex[:8]}.partial"))


def _delete(folder: Path) -> None:
    _deletions.submit(shutil.rmtree, folder, ignore_errors=True)

"""Saves a checkpoint: each rank writes the slices that it owns, then one rename publishes them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from bellwether import __version__
from bellwether.optimizers.shards.layout import ShardLayout
from bellwether.trainer import file_errors, run_paths
from bellwether.trainer.checkpoint.format import Manifest, Position, checksum
from bellwether.trainer.distributed import World, run_on_all_ranks, run_on_rank0
from bellwether.trainer.engine import Engine

# Deleting the thousands of files of a large run takes minutes on some file systems. Python waits for this thread at its exit.
_deletions = ThreadPoolExecutor(max_workers=1, thread_name_prefix="delete-checkpoints")


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
    final = path_of(root, position.step)
    partial = root / f"{final.name}.partial"
    run_on_rank0(world, lambda: _prepare(partial, final))
    file = partial / f"rank-{world.rank:05d}.safetensors"
    scalars = (
        engine.optimizer.scalars()
    )  # on all ranks, it may be collective; first, as Swats may switch, which changes tensors
    tensors = _owned(engine, world)
    files = run_on_all_ranks(world, lambda: _write(file, tensors))
    manifest = _manifest(engine, position, world, dict(files), data, scalars, noise or {})
    run_on_rank0(world, lambda: _publish(partial, final, manifest))
    kept = () if best is None else (path_of(root, best),)
    run_on_rank0(world, lambda: _prune(root, keep, kept))
    return final


def path_of(root: Path, step: int) -> Path:
    """The checkpoint of a step, whether it exists or not."""
    return root / f"step-{step:08d}"


def state_tensors(engine: Engine, shard: ShardLayout) -> dict[str, Tensor]:
    """The optimizer's state tensors that have the layout of a shard, by name."""
    state = engine.optimizer.state.get(shard.tensor, {})
    return {k: v for k, v in state.items() if isinstance(v, Tensor) and k != "step"}


def _owned(engine: Engine, world: World) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}

    def keep(kind: str, name: str, start: int, values: Tensor) -> None:
        tensors[f"{kind}|{name}|{start}"] = values.detach().reshape(-1).to("cpu", copy=True)

    for index, shard in enumerate(engine.optimizer.shards):
        # Tensors that every rank holds completely are written once, by the ranks in turn.
        if shard.process_group is None and index % world.size != world.rank:
            continue
        for kind, tensor in {"weight": shard.tensor, **state_tensors(engine, shard)}.items():
            for parameter_slice, view in shard.views(tensor.detach()):
                keep(kind, shard.parameters[parameter_slice.index].name, parameter_slice.start, view)
    for name, parameter in engine.frozen():
        with engine.gathered(parameter):
            if world.is_main:
                keep("frozen", name, 0, parameter)
    for name, buffer in engine.buffers():
        keep("buffer", name, 0, buffer)
    return tensors


def _prepare(partial: Path, final: Path) -> None:
    if final.exists():
        raise FileExistsError(f"{final} already exists: another process writes to this run")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)


def _write(file: Path, tensors: dict[str, Tensor]) -> tuple[str, dict[str, Any]]:
    with file_errors.naming(file):
        # safetensors cannot write a file without tensors.
        save_file(tensors or {"nothing": torch.zeros(1)}, file)
        run_paths.apply_umask(file)
        _flush(file)
    return file.name, {"bytes": file.stat().st_size, "xxh3_128": checksum(file)}


def _manifest(
    engine: Engine, position: Position, world: World, files: dict[str, Any], data: list[str], scalars: dict[str, float],
    noise: dict[str, float],
) -> Manifest:  # fmt: skip
    parameters: dict[str, Any] = {}
    kinds: set[str] = set()
    for shard in engine.optimizer.shards:
        step = engine.optimizer.state.get(shard.tensor, {}).get("step")
        own = sorted(state_tensors(engine, shard))
        kinds |= set(own)
        for parameter in shard.parameters:
            parameters[parameter.name] = {
                "shape": parameter.shape,
                "step": None if step is None else float(step),
                "states": own,
            }
    return Manifest(
        position, __version__, world.size, engine.optimizer.name, data, sorted(kinds), parameters, files, engine.loss_scaler_state(),
        scalars, noise, [name for name, _ in engine.frozen()],
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
        if old in kept:
            continue
        # Renamed first: a process killed while it deletes must not leave an incomplete checkpoint under a complete one's name.
        old.rename(old.with_name(f"{old.name}.partial"))
    # Listed now: the next checkpoint is written to a directory of this kind.
    for leftover in sorted(root.glob("step-*.partial")):
        _deletions.submit(shutil.rmtree, leftover, ignore_errors=True)

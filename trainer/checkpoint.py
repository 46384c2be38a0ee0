"""Checkpoints keyed by parameter name: written by any number of ranks at any ZeRO stage, read by any other.

    checkpoints/step-00001200/manifest.json       step, samples, shapes, checksums, the code's version
    checkpoints/step-00001200/rank-00000.safetensors ...   what each rank owns

A file holds tensors named ``kind|parameter|start``: `start` is the place of this piece in the flattened parameter;
kinds are ``weight`` (the fp32 master), the optimizer's state names, ``frozen`` and ``buffer``. All is written into
``*.partial`` and published by one rename, so a directory without that suffix is whole. No pickle.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import xxhash
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from optimizers.shards import deepspeed as zero
from optimizers.shards.pieces import Shard
from trainer import __version__
from trainer.config import ConfigError
from trainer.distributed import World, agree
from trainer.engine import Engine

FORMAT = 1
_NAME = re.compile(r"^step-(\d{8})$")


@dataclass(frozen=True)
class Place:
    """Where in the run a checkpoint stands."""

    step: int  # updates done since the run's start
    samples: int
    phase: int  # index of the phase that the last update belongs to


def save(root: Path, engine: Engine, place: Place, world: World, keep: int) -> Path:
    """Write a checkpoint at a step boundary, and delete all but the newest ``keep``. Collective.

    Raises:
        OSError: on every rank, if any rank could not write; the partial directory is left out of sight.
    """
    final = root / f"step-{place.step:08d}"
    partial = root / f"{final.name}.partial"
    if agree(world, lambda: final.exists()):
        return final
    agree(world, lambda: _fresh(partial))
    file = partial / f"rank-{world.rank:05d}.safetensors"
    tensors = _owned(engine, world)
    each = _everywhere(world, lambda: _write(file, tensors))
    agree(world, lambda: _publish(partial, final, engine, place, world, dict(each)))
    agree(world, lambda: _prune(root, keep))
    return final


def newest(root: Path) -> Path | None:
    """The checkpoint that stands furthest in the run, or None."""
    found = sorted(p for p in root.glob("step-*") if _NAME.match(p.name)) if root.is_dir() else []
    return found[-1] if found else None


def read_place(path: Path) -> Place:
    manifest = _manifest(path)
    return Place(manifest["step"], manifest["samples"], manifest["phase"])


def load(path: Path, engine: Engine, world: World) -> Place:
    """Read a checkpoint into an engine of any stage and world size. Collective.

    Raises:
        ConfigError: if a file is missing or damaged, or the model is another.
    """
    manifest = _manifest(path)
    _everywhere(world, lambda: _verify(path, manifest, world))
    with _Files(path, manifest) as files:
        _everywhere(world, lambda: _fill(engine, files, manifest, path))
        _frozen_and_buffers(engine, files, manifest, world)
    zero.publish(engine.deepspeed)
    scaler = _loss_scaler(engine)
    if scaler is not None:
        vars(scaler).update({k: v for k, v in manifest["loss_scaler"].items() if k in vars(scaler)})
    return Place(manifest["step"], manifest["samples"], manifest["phase"])


def load_into_model(path: Path, task: nn.Module) -> None:
    """Read a checkpoint's fp32 weights, and the ranks' mean of each buffer, into a whole model in one process."""
    manifest = _manifest(path)
    with _Files(path, manifest) as files, torch.no_grad():
        for name, parameter in task.named_parameters():
            files.read("weight" if name in manifest["parameters"] else "frozen", name, 0, parameter.view(-1))
        for name, buffer in task.named_buffers():
            if ("buffer", name) in files.where:
                buffer.copy_(files.mean("buffer", name).view_as(buffer))


def _states(engine: Engine, shard: Shard) -> dict[str, Tensor]:
    """All that is kept of a shard's tensor: the weights and each state that has its layout."""
    state = engine.optimizer.state.get(shard.tensor, {})
    same = {k: v for k, v in state.items() if isinstance(v, Tensor) and v.shape == shard.tensor.shape and k != "step"}
    return {"weight": shard.tensor.detach(), **same}


def _owned(engine: Engine, world: World) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for index, shard in enumerate(engine.optimizer.shards):
        # What every rank holds whole is written once, the work shared out.
        if shard.process_group is None and index % world.size != world.rank:
            continue
        for kind, tensor in _states(engine, shard).items():
            for piece, view in shard.views(tensor):
                tensors[f"{kind}|{shard.parameters[piece.index].name}|{piece.start}"] = view.cpu().clone()
    for name, whole in _frozen(engine):
        if world.main:
            tensors[f"frozen|{name}|0"] = whole.detach().cpu().reshape(-1).clone()
    trained = engine.task.state_dict(keep_vars=True)
    for name, buffer in engine.task.named_buffers():
        if name in trained:
            tensors[f"buffer|{name}|0"] = buffer.detach().cpu().reshape(-1).clone()
    return tensors


def _frozen(engine: Engine) -> Iterator[tuple[str, Tensor]]:
    """Parameters that are not trained, whole on each rank in turn. Collective under ZeRO-3."""
    import deepspeed

    for name, parameter in engine.task.named_parameters():
        if not parameter.requires_grad:
            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                yield name, parameter


def _write(file: Path, tensors: dict[str, Tensor]) -> tuple[str, dict[str, Any]]:
    # safetensors cannot hold a file without tensors.
    save_file(tensors or {"nothing": torch.zeros(1)}, file)
    with open(file, "rb") as stream:
        os.fsync(stream.fileno())
    return file.name, {"bytes": file.stat().st_size, "xxh3_128": _checksum(file)}


def _checksum(file: Path) -> str:
    digest = xxhash.xxh3_128()
    with open(file, "rb") as stream:
        while block := stream.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()


def _fresh(partial: Path) -> None:
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)


def _publish(partial: Path, final: Path, engine: Engine, place: Place, world: World, files: dict[str, Any]) -> None:
    parameters: dict[str, Any] = {}
    for shard in engine.optimizer.shards:
        step = engine.optimizer.state.get(shard.tensor, {}).get("step")
        for parameter in shard.parameters:
            parameters[parameter.name] = {
                "shape": parameter.shape,
                "step": None if step is None else float(step),
            }
    scaler = _loss_scaler(engine)
    manifest = {
        "format": FORMAT,
        "version": __version__,
        "step": place.step,
        "samples": place.samples,
        "phase": place.phase,
        "world_size": world.size,
        "optimizer": type(engine.optimizer).__name__,
        "loss_scaler": {k: v for k, v in vars(scaler).items() if isinstance(v, int | float | bool)} if scaler else {},
        "files": files,
        "parameters": parameters,
    }
    text = partial / "manifest.json"
    text.write_text(json.dumps(manifest, indent=1))
    for path in (text, partial):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    partial.rename(final)


def _prune(root: Path, keep: int) -> None:
    whole = sorted(p for p in root.glob("step-*") if _NAME.match(p.name))
    for old in [*whole[:-keep], *root.glob("step-*.partial")]:
        shutil.rmtree(old, ignore_errors=True)


def _manifest(path: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((path / "manifest.json").read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(
            "resume",
            str(path),
            f"no readable manifest.json: {error}",
            "give a checkpoint's directory, step-...",
        ) from None
    if manifest.get("format") != FORMAT:
        raise ConfigError("resume", str(path), f"format {manifest.get('format')}, this version reads {FORMAT}")
    return manifest


def _verify(path: Path, manifest: dict[str, Any], world: World) -> None:
    """Checksums, the files shared out over the ranks."""
    for index, (name, about) in enumerate(manifest["files"].items()):
        if index % world.size == world.rank:
            file = path / name
            if not file.is_file():
                raise ConfigError("resume", str(path), f"{name} is missing", "resume from another checkpoint")
            if file.stat().st_size != about["bytes"] or _checksum(file) != about["xxh3_128"]:
                raise ConfigError(
                    "resume",
                    str(path),
                    f"{name} is damaged: its checksum differs",
                    "resume from another checkpoint",
                )


class _Files:
    """All pieces in a checkpoint, found by kind and parameter, read as slices."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.paths = [path / name for name in manifest["files"]]
        self.open: dict[Path, Any] = {}
        self.where: dict[tuple[str, str], list[tuple[int, Path, str]]] = defaultdict(list)

    def __enter__(self) -> _Files:
        for path in self.paths:
            handle = self.open[path] = safe_open(path, framework="pt").__enter__()
            for key in handle.keys():  # noqa: SIM118  (not a dict)
                kind, _, rest = key.partition("|")
                name, _, start = rest.rpartition("|")
                if name:
                    self.where[kind, name].append((int(start), path, key))
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self.open.values():
            handle.__exit__(None, None, None)

    def kinds(self) -> set[str]:
        return {kind for kind, _ in self.where}

    def mean(self, kind: str, name: str) -> Tensor:
        """What the ranks that wrote their own copy agree on: the mean, or the first where it is no fraction."""
        copies = torch.stack([self.open[path].get_tensor(key) for _, path, key in self.where[kind, name]])
        return copies.double().mean(0).to(copies.dtype) if copies.is_floating_point() else copies[0]

    def read(self, kind: str, name: str, start: int, into: Tensor) -> None:
        """Fill ``into`` [length] with the elements from ``start`` on, from as many pieces as it takes."""
        end, filled = start + into.numel(), 0
        for first, path, key in self.where[kind, name]:
            piece = self.open[path].get_slice(key)
            left, right = max(start, first), min(end, first + piece.get_shape()[0])
            if left < right:
                into[left - start : right - start].copy_(piece[left - first : right - first])
                filled += right - left
        if filled != into.numel():
            raise ConfigError(
                "resume",
                str(self.paths[0].parent),
                f"holds {filled} of {into.numel()} elements of {kind} {name}",
            )


def _fill(engine: Engine, files: _Files, manifest: dict[str, Any], path: Path) -> None:
    """Weights and optimizer state of this rank's pieces."""
    saved = manifest["parameters"]
    ours = {p.name: list(p.shape) for shard in engine.optimizer.shards for p in shard.parameters}
    for name in sorted(set(saved) ^ set(ours)):
        side = "checkpoint" if name in saved else "model"
        raise ConfigError("resume", str(path), f"another model: parameter {name} is only in the {side}")
    for name, shape in ours.items():
        if saved[name]["shape"] != shape:
            raise ConfigError(
                "resume", str(path), f"another model: {name} is {saved[name]['shape']} there, {shape} here"
            )
    states = sorted(files.kinds() - {"weight", "frozen", "buffer"})
    for shard in engine.optimizer.shards:
        steps = {saved[p.name]["step"] for p in shard.parameters}
        if len(steps) > 1:
            raise ConfigError(
                "resume",
                str(path),
                f"parameters with different step counts {sorted(map(str, steps))} cannot share a shard",
                "resume with engine.stage: 0",
            )
        tensors = {"weight": shard.tensor.detach()}
        step = steps.pop()
        if step is not None:
            state = engine.optimizer.state[shard.tensor]
            state["step"] = torch.tensor(step, dtype=torch.float32)
            for kind in states:
                tensors[kind] = state[kind] = torch.zeros_like(shard.tensor.detach())
        for kind, tensor in tensors.items():
            flat = tensor.contiguous()  # channels_last weights are not
            for piece, view in shard.views(flat):
                files.read(kind, shard.parameters[piece.index].name, piece.start, view)
            tensor.copy_(flat)


def _frozen_and_buffers(engine: Engine, files: _Files, manifest: dict[str, Any], world: World) -> None:
    with torch.no_grad():
        for name, whole in _frozen(engine):
            if whole.numel():
                files.read("frozen", name, 0, whole.view(-1))
        own = f"rank-{world.rank:05d}.safetensors"
        for name, buffer in engine.task.named_buffers():
            copies = {path.name: (path, key) for _, path, key in files.where.get(("buffer", name), [])}
            if not copies:
                continue
            if manifest["world_size"] == world.size:
                path, key = copies[own]
                buffer.copy_(files.open[path].get_tensor(key).view_as(buffer))
            else:
                # Another number of ranks: all begin with what the old ones agree on.
                buffer.copy_(files.mean("buffer", name).view_as(buffer))


def _loss_scaler(engine: Engine) -> Any:
    wrapper = engine.deepspeed.optimizer
    return getattr(wrapper, "loss_scaler", None) or getattr(wrapper, "loss_scale_config", None)


def _everywhere(world: World, act: Any) -> list[Any]:
    """Do it on every rank; if it fails on one, all raise that rank's error. Returns what each rank's call returned."""
    result = error = None
    try:
        result = act()
    except Exception as caught:
        error = caught
    outcomes: list[Any] = [None] * world.size
    dist.all_gather_object(outcomes, (result, error))
    for rank, (_, failed) in enumerate(outcomes):
        if failed is not None:
            if rank == world.rank:
                raise failed
            raise failed from RuntimeError(f"on rank {rank}")
    return [r for r, _ in outcomes]

"""Reading: into an engine of any stage and world size, or into a plain model."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from bellwether.trainer import run_paths
from bellwether.trainer.checkpoint.format import Files, Manifest, damage, newest
from bellwether.trainer.config import ConfigError
from bellwether.trainer.distributed import World, run_on_all_ranks, run_on_rank0
from bellwether.trainer.engine import Engine

_MODEL = "set model and data as they were, or start afresh under another name=..."


def newest_intact(root: Path, world: World) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose files are as they were written, and a line about each that was not. Collective.

    A damaged one is renamed to ``step-....damaged``, so that training goes on from the one before it.

    Raises:
        ConfigError: if not one of several is whole, or one is of another version's format: nothing begins again at 0 because
            of that.
        RuntimeError: if a node cannot read what rank 0 can.
    """
    said: list[str] = []
    while (path := run_on_rank0(world, lambda: newest(root))) is not None:
        problem = _problem(path, world)
        if problem is None:
            return path, said
        if run_on_rank0(world, lambda: len(run_paths.checkpoints(root))) == 1:
            advice = "start afresh under another name=..., or give a whole checkpoint as resume=PATH there"
            raise ConfigError("resume", str(path), f"no checkpoint is left that is whole: {problem}", advice)
        aside = path.with_name(f"{path.name}.damaged")
        run_on_rank0(world, lambda path=path, aside=aside: path.rename(aside))  # type: ignore[misc]
        said.append(f"{path}: {problem}; kept as {aside.name}, going on from the checkpoint before it")
    return None, said


def _problem(path: Path, world: World) -> str | None:
    """Its first damage, if any; each rank checks its share of the files, and rank 0 what another has found. Collective."""
    manifest = run_on_rank0(world, lambda: _readable(path))
    if isinstance(manifest, str):
        return manifest
    shares = [list(manifest.files)[rank :: world.size] for rank in range(world.size)]
    found = run_on_all_ranks(world, lambda: _damage(path, manifest, shares[world.rank]))
    suspects = [(rank, said) for rank, said in enumerate(found) if said is not None]
    if not suspects:
        return None
    rank, (name, problem, host) = suspects[0]
    # A node without the file system finds every file missing: that is no reason to put checkpoints aside.
    if run_on_rank0(world, lambda: _damage(path, manifest, [name])) is None:
        raise RuntimeError(
            f"rank {rank} on {host} cannot read {path} as rank 0 can: {problem}; is the file system mounted there?"
        )
    return problem


def _readable(path: Path) -> Manifest | str:
    try:
        return Manifest.read(path)
    except ConfigError as error:
        if "of format" in error.problem:
            raise
        return error.problem


def _damage(path: Path, manifest: Manifest, names: Sequence[str]) -> tuple[str, str, str] | None:
    found = damage(path, manifest, names)
    return None if found is None else (*found, socket.gethostname())


def load(path: Path, engine: Engine, world: World) -> Manifest:
    """Read a checkpoint into an engine of any stage and world size. Collective.

    Raises:
        ConfigError: if the model is another, or a file is missing or damaged.
    """
    problem = _problem(path, world)
    if problem is not None:
        raise ConfigError("resume", str(path), problem, "resume from another checkpoint")
    manifest = Manifest.read(path)
    with Files(path, manifest) as files, torch.no_grad():
        run_on_all_ranks(world, lambda: _fill(engine, files, manifest))
        for name, parameter in engine.frozen():
            with engine.gathered(parameter, modify=True):
                if parameter.numel():
                    files.read("frozen", name, 0, parameter.view(-1))
        if manifest.world_size == world.size:
            saved = run_on_all_ranks(world, lambda: files.buffers(f"rank-{world.rank:05d}.safetensors"))[world.rank]
        else:
            # Another number of ranks: all begin with what the old ones agree on.
            saved = run_on_rank0(world, lambda: files.agreed_buffers(list(manifest.files)))
        for name, buffer in engine.buffers():
            buffer.copy_(saved[name].view_as(buffer))
    engine.publish_weights()
    engine.optimizer.load_scalars(manifest.scalars)
    engine.load_loss_scaler_state(manifest.loss_scaler)
    return manifest


def load_into_model(path: Path, task: nn.Module) -> bool:
    """Read a checkpoint's fp32 weights, and what the ranks' buffers agree on, into a whole model in one process.

    Where the optimizer keeps an average of the weights (`bellwether.optimizers.WeightAverage`), it is read in their place.

    Returns:
        whether it was: the buffers belong to the other weights then.
    """
    manifest = Manifest.read(path)
    trained = "average" if "average" in manifest.states else "weight"
    with Files(path, manifest) as files, torch.no_grad():
        for name, parameter in task.named_parameters():
            files.read(trained if name in manifest.parameters else "frozen", name, 0, parameter.view(-1))
        saved = files.agreed_buffers(list(manifest.files))
        for name, buffer in task.named_buffers():
            if name in saved:
                buffer.copy_(saved[name].view_as(buffer))
    return trained == "average"


def _fill(engine: Engine, files: Files, manifest: Manifest) -> None:
    """Weights and optimizer state of this rank's pieces."""
    saved, path = manifest.parameters, str(files.path)
    if manifest.optimizer != engine.optimizer.name:
        advice = f"set optimizer.name: {manifest.optimizer.lower()}, or start afresh under another name=..."
        raise ConfigError("resume", path, f"its state is {manifest.optimizer}'s, not {engine.optimizer.name}'s", advice)
    ours = {p.name: list(p.shape) for shard in engine.optimizer.shards for p in shard.parameters}
    for name in sorted(set(saved) ^ set(ours)):
        side = "checkpoint" if name in saved else "model"
        raise ConfigError("resume", path, f"another model: parameter {name} is only in the {side}", _MODEL)
    for name, shape in ours.items():
        if saved[name]["shape"] != shape:
            raise ConfigError(
                "resume", path, f"another model: {name} is {saved[name]['shape']} there, {shape} here", _MODEL
            )
    for shard in engine.optimizer.shards:
        steps = {saved[p.name]["step"] for p in shard.parameters}
        if len(steps) > 1:
            problem = f"parameters with different step counts {sorted(map(str, steps))} cannot share a shard"
            raise ConfigError("resume", path, problem, "resume with engine.stage: 0")
        tensors = {"weight": shard.tensor.detach()}
        step = steps.pop()
        if step is not None:
            state = engine.optimizer.state[shard.tensor]
            state["step"] = torch.tensor(step, dtype=torch.float32)
            for kind in manifest.states:
                tensors[kind] = state[kind] = torch.zeros_like(shard.tensor.detach())
        for kind, tensor in tensors.items():
            flat = tensor.contiguous()  # channels_last weights are not
            for piece, view in shard.views(flat):
                files.read(kind, shard.parameters[piece.index].name, piece.start, view)
            tensor.copy_(flat)

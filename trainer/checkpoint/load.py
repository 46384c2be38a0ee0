"""Loads a checkpoint into an engine of any ZeRO stage and world size, or into a plain model."""

from __future__ import annotations

import logging
import socket
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bellwether.optimizers.registry import OPTIMIZERS
from bellwether.optimizers.rounding import COMPENSATION
from bellwether.optimizers.schedule_free import BETA1, evaluated_weights, with_beta1
from bellwether.optimizers.shards.layout import ShardLayout
from bellwether.trainer import run_paths
from bellwether.trainer.checkpoint import slices
from bellwether.trainer.checkpoint.carried import carried_slices
from bellwether.trainer.checkpoint.files import Files
from bellwether.trainer.checkpoint.format import Manifest, damage, newest
from bellwether.trainer.checkpoint.snapshot import whole_state
from bellwether.trainer.config import ConfigError
from bellwether.trainer.distributed import World, run_on_all_ranks, run_on_rank0
from bellwether.trainer.engine import Engine

log = logging.getLogger(__name__)

_MODEL = "restore model and data, or start a new run with another name=..."


def newest_intact(root: Path, world: World) -> tuple[Path | None, list[str]]:
    """The newest intact checkpoint, or None, and a message about each damaged one. Collective.

    A damaged checkpoint is renamed to ``step-....damaged``, so that training resumes from the one before it.

    Raises:
        ConfigError: if no intact checkpoint is left, or one has an unknown format. Training must not silently restart at
            step 0.
        RuntimeError: if a node cannot read files that rank 0 can read.
    """
    messages: list[str] = []
    while (path := run_on_rank0(world, lambda: newest(root))) is not None:
        problem = _problem(path, world)
        if problem is None:
            return path, messages
        if run_on_rank0(world, lambda: len(run_paths.checkpoints(root))) == 1:
            advice = "start a new run with another name=..., and there resume=PATH of an intact checkpoint"
            raise ConfigError("resume", str(path), f"no intact checkpoint is left: {problem}", advice)
        aside = run_on_rank0(world, lambda path=path: _set_aside(path))  # type: ignore[misc]
        messages.append(f"{path}: {problem}; renamed to {aside.name}, resuming from the checkpoint before it")
    return None, messages


def _set_aside(path: Path) -> Path:
    """Rename a damaged checkpoint, which may be the second one of its step."""
    names = (f"{path.name}.damaged{suffix}" for suffix in ("", *(f"-{n}" for n in range(2, 1000))))
    return path.rename(next(aside for name in names if not (aside := path.with_name(name)).exists()))


def _problem(path: Path, world: World) -> str | None:
    """The first problem of a checkpoint, or None. Each rank checks its share of the files. Collective."""
    content = run_on_rank0(world, lambda: _readable(path))
    if isinstance(content, str):
        return content
    manifest = Manifest.from_json(content)
    shares = [list(manifest.files)[rank :: world.size] for rank in range(world.size)]
    damages = run_on_all_ranks(world, lambda: _damage(path, manifest, shares[world.rank]))
    suspects = [(rank, damaged) for rank, damaged in enumerate(damages) if damaged is not None]
    if not suspects:
        return None
    rank, (name, problem, host) = suspects[0]
    # On a node where the file system is not mounted every file is missing, so rank 0 checks the file as well.
    if run_on_rank0(world, lambda: _damage(path, manifest, [name])) is None:
        raise RuntimeError(
            f"rank {rank} on {host} cannot read {path}, but rank 0 can: {problem}; is the file system mounted there?"
        )
    return problem


def _readable(path: Path) -> dict[str, Any] | str:
    """The content of the manifest, or why it cannot be read."""
    try:
        return Manifest.read(path).to_json()
    except ConfigError as error:
        if "of format" in error.problem:
            raise
        return error.problem


def _damage(path: Path, manifest: Manifest, names: Sequence[str]) -> tuple[str, str, str] | None:
    damaged = damage(path, manifest, names)
    return None if damaged is None else (*damaged, socket.gethostname())


def read_manifest(path: Path, world: World) -> Manifest:
    """The manifest of a checkpoint, which rank 0 reads for all. Collective."""
    return Manifest.from_json(run_on_rank0(world, lambda: Manifest.read(path).to_json()))


def load(
    path: Path,
    engine: Engine,
    world: World,
    verified: bool = False,
    new_phase: bool = False,
    data: str | None = None,
) -> Manifest:
    """Loads a checkpoint into an engine of any ZeRO stage and world size. Collective.

    Args:
        new_phase: the phase that saved it has ended. If the new one freezes other parameters, the weights are loaded, and the
            optimizer's state starts anew.
        data: fingerprint of the phase's data: state of streams of other data is not loaded.
        verified: whether `newest_intact` has compared the checksums already, which reads every file.

    Raises:
        ConfigError: if the model or the optimizer differs, or a file is missing or damaged.
    """
    problem = None if verified else _problem(path, world)
    if problem is not None:
        raise ConfigError("resume", str(path), problem, "resume from another checkpoint")
    manifest = read_manifest(path, world)
    frozen = dict(engine.frozen())
    thawed = new_phase and _trained(engine) != set(manifest.parameters)
    carried = carried_slices(engine, manifest, path, new_phase, data)
    wanted = list(_wanted(engine)) + [(name, start, len(part)) for name, start, part in carried]
    if thawed:
        wanted += [(name, 0, engine.elements(parameter)) for name, parameter in frozen.items()]
    with Files(path, slices.for_rank(path, manifest, world, wanted)) as files, torch.no_grad():
        run_on_all_ranks(
            world, lambda: _fill_weights(engine, files, manifest) if thawed else _fill(engine, files, manifest)
        )
        for name, parameter in frozen.items():
            with engine.gathered(parameter, modify=True):
                if parameter.numel():
                    _read_weights(files, manifest, name, 0, parameter.view(-1))
        run_on_all_ranks(world, lambda: files.read_all("carried", carried))
        _fill_buffers(engine, files, manifest, world)
    engine.publish_weights()
    if thawed:
        log.info("other parameters are frozen than in the phase before: the optimizer's state starts anew")
    else:
        engine.optimizer.load_scalars(manifest.scalars)
    engine.load_loss_scaler_state(manifest.loss_scaler)
    return manifest


def _states(engine: Engine, shard: ShardLayout, manifest: Manifest, path: str) -> list[str]:
    """Names of the state tensors of a shard, as saved. Checkpoints of older versions have the same for all parameters."""
    found = {tuple(manifest.parameters[p.name].get("states", manifest.states)) for p in shard.parameters}
    names = sorted({name for states in found for name in states})
    if len(found) > 1:
        named = f"{shard.parameters[0].name} ({len(shard.parameters)} parameters)"
        problem = f"{named}: they have different state there ({', '.join(names)}), and the optimizer updates all by one rule here"
        raise ConfigError(
            "resume", path, problem, "set the optimizer's options back, or start a new run with another name=..."
        )
    return names


def _wanted(engine: Engine) -> Iterator[tuple[str, int, int]]:
    """This rank's slices: parameter, offset, length."""
    for shard in engine.optimizer.shards:
        for part, view in shard.views(shard.tensor.detach()):
            yield shard.parameters[part.index].name, part.start, view.numel()


def _fill_buffers(engine: Engine, files: Files, manifest: Manifest, world: World) -> None:
    """Loads this rank's buffers or, from another number of ranks, the average over the old ones. Collective."""
    same = manifest.world_size == world.size

    def fill() -> None:
        if same:
            saved = files.buffers(f"rank-{world.rank:05d}.safetensors")
        else:
            saved = files.average_buffers(list(manifest.files))
        for name, buffer in engine.buffers():
            buffer.copy_(saved[name].view_as(buffer))

    if same:
        run_on_all_ranks(world, fill)
        return
    run_on_rank0(world, fill)
    for _, buffer in engine.buffers():
        dist.broadcast(buffer, 0)


class ExportedWeights:
    """The weights that an export of a checkpoint has: see `exported_weights`.

    Attributes:
        is_average: whether they are an average of the weights. The buffers then belong to the weights that were not averaged.
        buffers: by name, flattened: the average over the ranks.
    """

    def __init__(self, files: Files, manifest: Manifest) -> None:
        self._files, self._manifest = files, manifest
        # An average has state from the first step on, and a value from `averaging.start` on.
        begun = max((p["step"] or 0 for p in manifest.parameters.values()), default=0)
        self._has_average = "average" in manifest.states and begun >= manifest.scalars.get("average_start", 0)
        self.is_average = self._has_average or BETA1 in manifest.scalars
        self.buffers = files.average_buffers(list(manifest.files))

    def read(self, name: str, into: Tensor) -> None:
        """Fill a tensor with a parameter or buffer of the task.

        Raises:
            ConfigError: if the checkpoint does not contain it.
        """
        if name in self.buffers:
            into.copy_(self.buffers[name].view_as(into))
        elif self._has_average and name in self._manifest.parameters:
            self._files.read("average", name, 0, into.view(-1))
        else:
            _read_weights(self._files, self._manifest, name, 0, into.view(-1))


@contextmanager
def exported_weights(path: Path) -> Iterator[ExportedWeights]:
    """A checkpoint's fp32 weights and the average of the ranks' buffers, read one by one in one process.

    If the optimizer keeps an average of the weights (`bellwether.optimizers.WeightAverage`, `AdamWScheduleFree`), the weights are
    the average.
    """
    manifest = Manifest.read(path)
    with Files(path, slices.of_checkpoint(path, manifest)) as files, torch.no_grad():
        yield ExportedWeights(files, manifest)


def load_into_model(path: Path, task: nn.Module) -> bool:
    """Loads `exported_weights` into a whole model.

    Returns:
        whether an average was loaded. The buffers then belong to the weights that were not averaged.
    """
    with exported_weights(path) as weights:
        for name, parameter in task.named_parameters():
            weights.read(name, parameter)
        for name, buffer in task.named_buffers():
            if name in weights.buffers:
                weights.read(name, buffer)
        return weights.is_average


def _read_weights(files: Files, manifest: Manifest, name: str, start: int, into: Tensor) -> None:
    """Fills ``into`` with weights of a parameter, trained or frozen when they were saved.

    Of an optimizer that trains at other weights than it results in, these are the result.
    """
    saved = manifest.parameters.get(name)
    files.read("frozen" if saved is None else "weight", name, start, into)
    if saved is not None and BETA1 in manifest.scalars and "z" in saved["states"]:
        y, z = into.float(), torch.empty_like(into, dtype=torch.float32)
        if COMPENSATION in saved["states"]:
            files.read(COMPENSATION, name, start, z)
            y += z
        files.read("z", name, start, z)
        into.copy_(evaluated_weights(y, z, manifest.scalars[BETA1]))


def _trained(engine: Engine) -> set[str]:
    """The names of the parameters that this engine trains."""
    return {p.name for shard in engine.optimizer.shards for p in shard.parameters}


def _fill_weights(engine: Engine, files: Files, manifest: Manifest) -> None:
    """Loads the weights of this rank's slices, trained or frozen when they were saved, and no optimizer state."""
    ours = _trained(engine) | {name for name, _ in engine.frozen()}
    _check_names(ours, {*manifest.parameters, *manifest.frozen}, str(files.path))
    for shard in engine.optimizer.shards:
        flat = shard.tensor.detach().contiguous()
        for parameter_slice, view in shard.views(flat):
            _read_weights(files, manifest, shard.parameters[parameter_slice.index].name, parameter_slice.start, view)
        shard.tensor.detach().copy_(flat)


def _check_names(ours: Collection[str], saved: Collection[str], path: str) -> None:
    for name in sorted(set(saved) ^ set(ours)):
        side = "checkpoint" if name in saved else "model"
        raise ConfigError("resume", path, f"another model: parameter {name} is only in the {side}", _MODEL)


def _convert_beta1(engine: Engine, shard: ShardLayout, manifest: Manifest) -> None:
    """Another beta1 of Schedule-Free than in the checkpoint, as in a new phase, has another y for the same average."""
    old, new = manifest.scalars.get(BETA1), engine.optimizer.param_groups[0].get("betas", (None,))[0]
    z = engine.optimizer.state[shard.tensor].get("z")
    if old is not None and z is not None and old != new:
        shard.tensor.detach().copy_(with_beta1(shard.tensor.detach().to(z.dtype), z, old, new))


def _key_of(optimizer: str) -> str:
    """The name in a config of an optimizer's class."""
    return next((e.name for e in OPTIMIZERS.values() if e.target.endswith(f":{optimizer}")), optimizer.lower())


def _fill(engine: Engine, files: Files, manifest: Manifest) -> None:
    """Loads the weights and the optimizer state of this rank's slices."""
    saved, path = manifest.parameters, str(files.path)
    if manifest.optimizer != engine.optimizer.name:
        advice = f"set optimizer.name: {_key_of(manifest.optimizer)}, or start a new run with another name=..."
        raise ConfigError(
            "resume", path, f"contains the state of {manifest.optimizer}, not of {engine.optimizer.name}", advice
        )
    ours = {p.name: list(p.shape) for shard in engine.optimizer.shards for p in shard.parameters}
    _check_names(ours, saved, path)
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
            for kind in _states(engine, shard, manifest, path):
                dtype = engine.optimizer.state_dtype(shard.tensor, kind)
                tensors[kind] = state[kind] = torch.zeros_like(shard.tensor.detach(), dtype=dtype)
            for kind, size in whole_state(engine, shard).items():
                dtype = engine.optimizer.state_dtype(shard.tensor, kind)
                state[kind] = torch.zeros(size, dtype=dtype, device=shard.tensor.device)
                files.read_whole(kind, shard.parameters[0].name, state[kind])
        for kind, tensor in tensors.items():
            flat = tensor.contiguous()  # channels_last weights are not
            for parameter_slice, view in shard.views(flat):
                files.read(kind, shard.parameters[parameter_slice.index].name, parameter_slice.start, view)
            tensor.copy_(flat)
        _convert_beta1(engine, shard, manifest)

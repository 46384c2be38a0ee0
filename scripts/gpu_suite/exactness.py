"""The weights after some updates under ZeRO 0 to 3, against the same updates in a plain loop without any engine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bellwether.optimizers.param_groups import named
from scripts.gpu_suite.context import Context

ROOT = Path(__file__).resolve().parents[2]
UPDATES = 6
RULES = {
    "lamb": {"name": "lamb", "lr": 1e-2, "clip": 1.0},
    "adamw": {"name": "adamw", "lr": 1e-3, "clip": 1.0},
    "lars": {"name": "lars", "lr": 1.0, "clip": 0},
}
# Of the distance that the weights have gone. Gradients are summed in another order than in the plain loop, and Adam divides
# by their own size: a rounding error of 1e-7 grows a hundredfold in the elements whose gradient is nearly 0. An optimizer that
# computes its norms over the wrong slices is off by 1e-1.
TOLERANCE = 2e-3
STAGES = (0, 1, 2, 3)
# The softmax of attention does not depend on it: its gradient is rounding errors alone, which Adam scales up to full steps.
WITHOUT_GRADIENT = "attention.self.key.bias"


def one_process(context: Context) -> None:
    """All stages over NCCL in this process alone."""
    rules = ["lamb"] if context.dry else list(RULES)
    world = context.world
    for rule in rules:
        expected, start = plain(rule, context.dry, context.device)
        for stage in (0, 2, 3) if context.dry else STAGES:
            _compare(context, f"{rule}, ZeRO-{stage}, {torch.distributed.get_backend()}", expected, start,
                     sharded(rule, stage, context.dry, world))  # fmt: skip


def two_processes(context: Context) -> None:
    """The same over gloo in two processes that share the device. A stage that fails is reported, and the next one runs."""
    rules = ["lamb"] if context.dry else ["lamb", "adamw"]
    expected = {rule: plain(rule, context.dry, context.device) for rule in rules}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "scripts.gpu_suite.exactness",
        str(context.folder),
        "dry" if context.dry else "gpu",
        *rules,
    ]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": "0"}
    ranks = [subprocess.Popen(command, cwd=ROOT, env={**os.environ, **shared, "RANK": str(rank)}) for rank in range(2)]
    statuses = [rank.wait() for rank in ranks]
    for rule in rules:
        for stage in (1, 3) if context.dry else STAGES:
            file = context.folder / f"{rule}-{stage}.safetensors"
            name = f"{rule}, ZeRO-{stage}, two processes"
            if file.is_file():
                _compare(context, name, *expected[rule], load_file(file))
            else:
                error = file.with_suffix(".error")
                context.check(
                    name, False, error.read_text()[-300:] if error.is_file() else f"the processes ended with {statuses}"
                )


def _compare(
    context: Context, name: str, expected: dict[str, Tensor], start: dict[str, Tensor], found: dict[str, Tensor]
) -> None:
    error, worst = error_of(expected, start, found)
    context.row(run=name, **{"error": f"{error:.1e}", "worst parameter": worst})
    context.check(name, error <= TOLERANCE, f"{error:.1e} of the distance that the weights have gone")


def error_of(expected: dict[str, Tensor], start: dict[str, Tensor], found: dict[str, Tensor]) -> tuple[float, str]:
    """The largest distance of a parameter from the expected one, over the distance that it has gone, and its name.

    >>> zero, one = torch.zeros(2), torch.ones(2)
    >>> error_of({"w": one}, {"w": zero}, {"w": one * 1.5})
    (0.5, 'w')
    """
    if found.keys() != expected.keys():
        return float("inf"), "other names"
    errors = {}
    for name, value in expected.items():
        if name.endswith(WITHOUT_GRADIENT):
            continue
        gone = (value - start[name]).double().norm().item()
        error = (found[name] - value).double().norm().item()
        errors[name] = error / gone if gone else (0.0 if error == 0 else float("inf"))
    worst = max(errors, key=lambda name: errors[name])
    return errors[worst], worst


def plain(rule: str, dry: bool, device: torch.device) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights after the updates, and before: one process, whole batches, torch's clipping, our optimizer on whole tensors."""
    from bellwether.trainer import models
    from bellwether.trainer.optimization import make_optimizer
    from bellwether.trainer.param_groups import param_groups
    from scripts.gpu_suite import steps

    config = _config(rule, 0, dry)
    torch.manual_seed(config.seed)
    task = models.build(config.model, steps.dataset(config)).to(device)
    optimizer = make_optimizer(param_groups(task, config.optimizer), config, config.optimizer.lr)
    start = {name: p.detach().cpu().clone() for name, p in named(task)}
    for batch in _global_batches(config, device):
        loss = task(**batch)[0].mean()
        loss.backward()
        if config.optimizer.clip:
            torch.nn.utils.clip_grad_norm_(task.parameters(), config.optimizer.clip)
        optimizer.step()
        optimizer.zero_grad()
    return {name: p.detach().cpu().clone() for name, p in named(task)}, start


def sharded(rule: str, stage: int, dry: bool, world: Any) -> dict[str, Tensor]:
    """The weights after the updates under the engine. Collective."""
    from scripts.gpu_suite import steps

    with steps.engine(_raw(rule, stage, dry), world) as (built, config):
        micro = config.batch.micro
        for batch in _global_batches(config, world.device):
            parts = config.batch.global_ // (micro * world.size)
            built.train_step(
                {key: value[begin : begin + micro] for key, value in batch.items()}
                for begin in ((part * world.size + world.rank) * micro for part in range(parts))
            )
        weights = {}
        for name, parameter in named(built.task):
            with built.gathered(parameter):
                weights[name] = parameter.detach().cpu().clone()
    return weights


def _raw(rule: str, stage: int, dry: bool) -> dict[str, Any]:
    from scripts.gpu_suite import workloads

    return workloads.small_bert(dry, optimizer=RULES[rule], engine={"stage": stage})


def _config(rule: str, stage: int, dry: bool) -> Any:
    from bellwether.trainer.config import validate

    return validate({"name": "gpu-suite", "duration": "1000 steps", **_raw(rule, stage, dry)})


def _global_batches(config: Any, device: torch.device) -> Iterator[dict[str, Tensor]]:
    from scripts.gpu_suite import steps

    for seed in range(UPDATES):
        yield steps.random_batch(config, config.batch.global_, seed, device)


def _rank(folder: Path, dry: bool, rules: list[str]) -> None:
    """One of the two processes: each stage's weights go to a file of their own, an error to another."""
    from scripts.gpu_suite import host_collectives

    host_collectives.install(everything=dry)
    from bellwether.trainer.distributed import World
    from bellwether.trainer.libraries import import_deepspeed

    deepspeed = import_deepspeed()
    device = torch.device("cpu" if dry else "cuda:0")
    if not dry:
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("gloo")
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)
    rank = torch.distributed.get_rank()
    for rule in rules:
        for stage in (1, 3) if dry else STAGES:
            file = folder / f"{rule}-{stage}.safetensors"
            try:
                weights = sharded(rule, stage, dry, World(rank, 2, 0, device))
            except (
                Exception
            ) as error:  # by DeepSpeed or gloo, in any way; both processes fail alike, or the part's limit ends them
                file.with_suffix(".error").write_text(f"{type(error).__name__}: {error}")
                continue
            if rank == 0:
                save_file(weights, file)


if __name__ == "__main__":
    _rank(Path(sys.argv[1]), sys.argv[2] == "dry", sys.argv[3:])
    sys.stdout.flush()
    os._exit(0)

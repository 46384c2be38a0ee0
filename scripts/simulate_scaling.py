"""Simulates each rank of a very large run on one machine: the tables of docs/scaling.md.

    DS_ACCELERATOR=cpu .venv/bin/python scripts/simulate_scaling.py --write docs/scaling.md    # about 10 minutes, 12 GB
    DS_ACCELERATOR=cpu .venv/bin/python scripts/simulate_scaling.py --small                    # half a minute

DeepSpeed and FSDP2 are the real ones. With torch's fake process group, which has any size and whose collectives do nothing,
each process is one rank of many. Each engine is created in a separate forked process, so that none sees the state of another.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import logging
import multiprocessing
import os
import resource
import subprocess
import time
import traceback
import tracemalloc
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
import torch
import torch.distributed as dist
import transformers
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.testing._internal.distributed.fake_pg import FakeStore

from bellwether.optimizers import Lamb, attach, groups
from bellwether.optimizers.shards import deepspeed as deepspeed_shards
from bellwether.optimizers.shards import dtensor
from bellwether.optimizers.shards.layout import ShardLayout, local

ROOT = Path(__file__).resolve().parent.parent
WORLDS = (8, 64, 512, 4096)
ENGINES: dict[str, dict[str, Any]] = {
    "ZeRO-1": {"stage": 1},
    "ZeRO-2": {"stage": 2},
    "ZeRO-3": {"stage": 3},
    "ZeRO-3 in sub-groups": {"stage": 3},
    "FSDP2": {},
}
# The engines whose steps are computed for all ranks; the others shard in the same way.
LAYOUTS = ("ZeRO-1", "ZeRO-3", "FSDP2")
LARGEST_STEP = {"FSDP2": 512}  # a rank has a tensor for each parameter there, and 4,096 of them take too long

BEGIN, END = "<!-- written by scripts/simulate_scaling.py -->", "<!-- end -->"


@dataclass
class Truth:
    """One step of Lamb on whole parameters, without an engine. By name."""

    weights: dict[str, Tensor]
    gradients: dict[str, Tensor]
    moved: dict[str, Tensor]  # the weights after the step
    ratios: dict[str, float]
    options: dict[str, dict[str, Any]]  # of the param group

    @classmethod
    def of(cls, model: nn.Module) -> Truth:
        weights = {name: p.detach() for name, p in model.named_parameters()}
        generator = torch.Generator().manual_seed(1)
        gradients = {name: torch.randn(w.shape, generator=generator).mul_(1e-3) for name, w in weights.items()}
        options = {
            name: {key: value for key, value in group.items() if key != "params"}
            for group in groups(model)
            for name, _ in group["params"]
        }
        moved: dict[str, nn.Parameter] = {}
        ratios: dict[str, float] = {}
        for name, weight in weights.items():
            moved[name] = nn.Parameter(weight.clone())
            optimizer = Lamb([{"params": [(name, moved[name])], **options[name]}])
            _prime(optimizer, moved[name], gradients[name])
            optimizer.step()
            ratios |= optimizer.trust_ratios()
            moved[name].grad = None
        return cls(weights, gradients, {name: p.detach() for name, p in moved.items()}, ratios, options)


def _prime(optimizer: Lamb, tensor: Tensor, gradient: Tensor) -> None:
    """Set moments as in the middle of training: not zero, and computed from the weights, however they are sharded."""
    weights = tensor.detach()
    optimizer.state[tensor] = {"step": torch.tensor(4.0), "exp_avg": 0.1 * weights, "exp_avg_sq": weights.square()}
    tensor.grad = gradient


def bert(small: bool) -> nn.Module:
    """BERT-large with its two heads, random weights; or a tiny one."""
    torch.manual_seed(0)
    large = dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
    tiny = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=256, vocab_size=997)
    return transformers.BertForPreTraining(transformers.BertConfig(**(tiny if small else large)))


def some(world: int) -> list[int]:
    """The first rank, one in the middle, and the last."""
    return sorted({0, world // 2, world - 1})


# --- one rank, with a real engine --------------------------------------------------------------------------------


def as_rank(rank: int, world: int) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK="0", MASTER_ADDR="localhost", MASTER_PORT="1")
    dist.init_process_group("fake", rank=rank, world_size=world, store=FakeStore())


def one_rank(model: nn.Module, engine: str, world: int, rank: int) -> dict[str, Any]:
    """Create the engine as this rank, attach, run the step() calls of one update, and count."""
    as_rank(rank, world)
    if engine == "FSDP2":
        _fully_shard(model, world)
        optimizer = Lamb(groups(model))
        started = time.perf_counter()
        shards = optimizer.shards
        attached = time.perf_counter() - started
        python_bytes = _python_bytes(lambda: Lamb(groups(model)).shards)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        calls: list[Callable[[], Any]] = [optimizer.step]
    else:
        optimizer = Lamb(groups(model))
        made = _initialize(model, optimizer, engine, world)
        started = time.perf_counter()
        attach(made)
        attached = time.perf_counter() - started
        python_bytes = _python_bytes(lambda: attach(made))
        shards = optimizer.shards
        for shard in shards:
            shard.tensor.grad = torch.zeros_like(shard.tensor)
        # As the wrapper's step() for each group or sub-group, without its collectives for gradients.
        calls = [lambda i=i: made.optimizer._optimizer_step(i) for i in range(len(shards))]  # type: ignore[misc]
    collectives = [_collectives(call) for call in calls]
    moments = sum(local(t).nbytes for state in optimizer.state.values() for t in state.values() if t.dim())
    return {
        "shards": len(shards),
        "pieces": sum(len(shard.slices) for shard in shards),
        "weights": sum(local(shard.tensor).nbytes for shard in shards),
        "moments": moments,
        "calls": len(calls),
        "collectives": sum(map(len, collectives)),
        "most": max(map(len, collectives)),
        "bytes": sum(map(sum, collectives)),
        "attach": attached,
        "tables": python_bytes + _tensor_bytes(optimizer._tables),
        "cut": _fingerprint(shards),
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def _initialize(model: nn.Module, optimizer: Lamb, engine: str, world: int) -> Any:
    zero = dict(ENGINES[engine])
    if engine == "ZeRO-3 in sub-groups":  # about eight; their size is of a rank's part, so that the default makes one
        zero["sub_group_size"] = sum(p.numel() for p in model.parameters()) // (8 * world)
    config = {
        "train_batch_size": world,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": zero,
    }
    return deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]


def _fully_shard(model: Any, world: int) -> None:
    mesh = init_device_mesh("cpu", (world,))
    for layer in model.bert.encoder.layer:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def _collectives(call: Callable[[], Any]) -> list[int]:
    """Records the bytes of each all-reduce in a call. Fails on any other collective, as none is expected."""
    found: list[int] = []
    with mock.patch.object(dist, "all_reduce", lambda tensor, **_: found.append(tensor.nbytes)):
        call()
    return found


def _python_bytes(action: Callable[[], Any]) -> int:
    tracemalloc.start()
    kept = action()  # the memory of its result counts
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    del kept
    return taken


def _fingerprint(shards: Sequence[ShardLayout]) -> str:
    """A hash of the layout, to compare with that of another rank."""
    layout = [(local(s.tensor).numel(), s.slices, s.parameters, s.is_counted) for s in shards]
    return hashlib.sha256(repr(layout).encode()).hexdigest()[:12]


def _tensor_bytes(found: Any) -> int:
    if isinstance(found, Tensor):
        return found.nbytes
    if isinstance(found, dict):
        return sum(map(_tensor_bytes, found.values()))
    if isinstance(found, (list, tuple)):
        return sum(map(_tensor_bytes, found))
    return sum(_tensor_bytes(getattr(found, f.name)) for f in fields(found)) if is_dataclass(found) else 0


# --- all ranks, one after the other ------------------------------------------------------------------------------


def all_ranks(model: nn.Module, engine: str, world: int, truth: Truth) -> dict[str, Any]:
    """Compute every rank's shards as the engine does, check that they tile the model, and run one step of each."""
    as_rank(0, world)
    layouts = (_fsdp_layouts if engine == "FSDP2" else _zero_layouts)(model, engine, world)
    found: dict[str, Any] = {
        "pieces": sum(len(shard.slices) for shards in layouts for shard in shards),
        "idle": sum(not any(shard.slices for shard in shards) for shards in layouts),
        "cuts": {rank: _fingerprint(layouts[rank]) for rank in some(world)},
    }
    _check_tiles(layouts, truth)
    if world <= LARGEST_STEP.get(engine, world):
        found |= _steps(layouts, truth)
    return found


def _zero_layouts(model: nn.Module, engine: str, world: int) -> list[list[ShardLayout]]:
    """What `attach` finds on each rank, from the engine of rank 0: only the rank differs."""
    optimizer = Lamb(groups(model))
    made = _initialize(model, optimizer, engine, world)
    layouts = []
    for rank in range(world):
        with mock.patch.object(deepspeed_shards, "dist", SimpleNamespace(get_rank=lambda _, rank=rank: rank)):
            layouts.append(list(deepspeed_shards.attachment(made).shards))
    return layouts


class _Elsewhere:
    """A DTensor of another rank without its elements: of the rank that its mesh is set to."""

    def __init__(self, parameter: Any) -> None:
        self.device_mesh, self.placements, self.shape = parameter.device_mesh, parameter.placements, parameter.shape
        shape, _ = compute_local_shape_and_global_offset(self.shape, self.device_mesh, self.placements)
        self.local = torch.empty(shape, device="meta")

    def to_local(self) -> Tensor:
        return self.local


def _fsdp_layouts(model: nn.Module, engine: str, world: int) -> list[list[ShardLayout]]:
    _fully_shard(model, world)
    names = [pair for group in groups(model) for pair in group["params"]]
    meshes = {id(p.device_mesh): p.device_mesh for _, p in names}
    layouts = []
    for rank in range(world):
        for mesh in meshes.values():
            mesh._coordinate_on_dim = (rank,)
        layouts.append(dtensor.shards({_Elsewhere(p): name for name, p in names}))  # type: ignore[misc]
    return layouts


def _check_tiles(layouts: list[list[ShardLayout]], truth: Truth) -> None:
    """Each element of each parameter belongs to exactly one rank."""
    runs: dict[str, list[tuple[int, int]]] = {name: [] for name in truth.weights}
    for shards in layouts:
        for shard in shards:
            for piece in shard.slices:
                runs[shard.parameters[piece.index].name].append((piece.start, piece.length))
    for name, found in runs.items():
        end = 0
        for start, length in sorted(found):
            assert start == end, (
                f"{name}: element {min(start, end)} belongs to {'two ranks' if start < end else 'none'}"
            )
            end += length
        assert end == truth.weights[name].numel(), f"{name}: its end belongs to no rank"


def _steps(layouts: list[list[ShardLayout]], truth: Truth) -> dict[str, Any]:
    """The step() of each rank, twice: first to sum the inputs of the all-reduce, then with its result."""
    sums: list[Tensor] = []

    def give(tensor: Tensor, **_: Any) -> None:
        sums.append(tensor.clone()) if not sums else sums[0].add_(tensor)

    def take(tensor: Tensor, **_: Any) -> None:
        tensor.copy_(sums[0])

    flat = {name: (w.view(-1), truth.gradients[name].view(-1)) for name, w in truth.weights.items()}
    ratios: dict[str, float] = {}
    differ, worst = 0, 0.0
    for all_reduce in (give, take):
        for shards in layouts:
            mine = [_filled(shard, flat) for shard in shards]
            optimizer = Lamb([{"params": [s.tensor], **truth.options[s.parameters[0].name]} for s, _ in mine])
            optimizer.use_shards([shard for shard, _ in mine])
            for shard, gradient in mine:
                _prime(optimizer, shard.tensor, gradient)
            with mock.patch.object(dist, "all_reduce", all_reduce):
                optimizer.step()
            if all_reduce is give:
                continue
            assert not ratios or ratios == optimizer.trust_ratios(), "two ranks have different trust ratios"
            ratios = optimizer.trust_ratios()
            for shard, _ in mine:
                for piece, view in shard.views(shard.tensor.detach()):
                    wanted = truth.moved[shard.parameters[piece.index].name].view(-1)[piece.start :][: piece.length]
                    if not torch.equal(view, wanted):
                        off = (view - wanted).abs()
                        assert not off.isnan().any()
                        differ += int(off.count_nonzero())
                        worst = max(worst, float(off.max()))
    assert ratios.keys() == truth.ratios.keys()
    error = max(abs(ratios[name] / wanted - 1) for name, wanted in truth.ratios.items())
    # float64 sums in another order: about 1e-16 each. A rank omitted or counted twice is far larger.
    assert error < 1e-12, f"trust ratios are off by {error}"
    return {"error": error, "differ": differ, "worst": worst, "ratios": len(ratios)}


def _filled(shard: ShardLayout, flat: dict[str, tuple[Tensor, Tensor]]) -> tuple[ShardLayout, Tensor]:
    """A shard with its weights and gradients, and NaN in the padding."""
    weights, gradients = torch.full((2, local(shard.tensor).numel()), float("nan")).unbind()
    for piece in shard.slices:
        for target, source in zip((weights, gradients), flat[shard.parameters[piece.index].name], strict=True):
            target[piece.offset : piece.offset + piece.length] = source[piece.start : piece.start + piece.length]
    return replace(shard, tensor=weights), gradients


# --- the tables --------------------------------------------------------------------------------------------------


def apart(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Call a function in a forked process, which shares the model's memory and frees its own at exit."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def work() -> None:
        try:
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):  # suppress DeepSpeed's messages
                result = function(*arguments)
            sender.send(result)
        except BaseException:
            sender.send(traceback.format_exc())

    process = context.Process(target=work)
    process.start()
    sender.close()
    try:
        result = receiver.recv()
    except EOFError:
        result = f"{function.__name__}: the process died"
    process.join()
    if isinstance(result, str):
        raise RuntimeError(result)
    return result


Cuts = dict[tuple[str, int], dict[int, str]]  # engine and world -> rank -> fingerprint


def engine_table(model: nn.Module, worlds: tuple[int, ...], reduced: int) -> tuple[str, Cuts]:
    cuts: Cuts = {}
    rows = [
        ["engine", "ranks", "state a rank, MB", "shards", "pieces a rank", "step() calls", "all-reduces", "their bytes",
         "of the gradients'", "attach, ms", "our tables, KB"],
    ]  # fmt: skip
    for engine in ENGINES:
        for world in worlds:
            tried = []
            for rank in some(world):
                started = time.monotonic()
                tried.append(apart(one_rank, model, engine, world, rank))
                print(f"{engine}, rank {rank} of {world}: {time.monotonic() - started:.0f} s, {tried[-1]}", flush=True)
            cuts[engine, world] = {rank: t["cut"] for rank, t in zip(some(world), tried, strict=True)}
            # A collective that only some ranks enter would hang.
            assert len({(t["calls"], t["collectives"], t["bytes"]) for t in tried}) == 1
            assert all(t["most"] <= 1 for t in tried)
            first = tried[0]
            rows.append([
                engine, f"{world:,}", _span([(t["weights"] + t["moments"]) / 1e6 for t in tried], ",.2f"),
                str(first["shards"]), _span([t["pieces"] for t in tried], "d"), str(first["calls"]),
                str(first["collectives"]), f"{first['bytes']:,}", f"{first['bytes'] / reduced:.1e}",
                f"{1000 * max(t['attach'] for t in tried):.1f}", f"{max(t['tables'] for t in tried) / 1e3:,.0f}",
            ])  # fmt: skip
    return _markdown(rows), cuts


def step_table(model: nn.Module, worlds: tuple[int, ...], truth: Truth, cuts: Cuts) -> str:
    rows = [
        ["cut as", "ranks", "pieces of all ranks", "ranks without any", "each element on one rank", "trust ratios off by",
         "weights that differ", "by at most"],
    ]  # fmt: skip
    for engine in LAYOUTS:
        for world in worlds:
            started = time.monotonic()
            found = apart(all_ranks, model, engine, world, truth)
            print(f"{engine}, all {world} ranks: {time.monotonic() - started:.0f} s, {found}", flush=True)
            assert found["cuts"] == cuts[engine, world], "the engine of another rank cuts otherwise"
            if engine == "ZeRO-1":
                assert cuts["ZeRO-2", world] == cuts[engine, world]
            taken = "error" in found
            rows.append([
                engine, f"{world:,}", f"{found['pieces']:,}", f"{found['idle']:,}", "yes",
                f"{found['error']:.1e}" if taken else "not computed", f"{found['differ']:,}" if taken else "",
                f"{found['worst']:.1e}" if taken else "",
            ])  # fmt: skip
    return _markdown(rows)


def _span(values: list[Any], form: str) -> str:
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} - {high}"


def _markdown(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def main() -> None:
    parser = argparse.ArgumentParser(description="simulates the ranks of a very large run")
    parser.add_argument("--small", action="store_true", help="a tiny BERT and up to 64 ranks, to see that it runs")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the tables between the markers of this file")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    # GNU's OpenMP does not survive a fork; with one thread it is never started.
    torch.set_num_threads(1)
    started = time.monotonic()
    worlds = WORLDS[:2] if arguments.small else WORLDS
    model = bert(arguments.small)
    truth = Truth.of(model)
    numel = sum(w.numel() for w in truth.weights.values())
    engines, cuts = engine_table(model, worlds, 4 * numel)
    steps = step_table(model, worlds, truth, cuts)
    commit = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    text = "\n\n".join([
        f"{date.today().isoformat()}, commit {commit.stdout.strip() or 'unknown'}, DeepSpeed {deepspeed.__version__}, "
        f"torch {torch.__version__}, transformers {transformers.__version__}: BERT, {numel:,} elements in "
        f"{len(truth.weights)} parameters, {len(truth.ratios)} of them with a trust ratio. The script took "
        f"{(time.monotonic() - started) / 60:.0f} minutes on one thread.",
        engines,
        steps,
    ])  # fmt: skip
    print(f"\n{text}")
    if arguments.write:
        before, _, rest = arguments.write.read_text().partition(BEGIN)
        _, _, after = rest.partition(END)
        arguments.write.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


if __name__ == "__main__":
    main()

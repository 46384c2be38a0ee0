"""When gradients are reduced, in how many collectives, and in which type: counted in real process groups."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bellwether.trainer import communication
from bellwether.trainer.communication import Reduction, choose
from bellwether.trainer.config import validate
from bellwether.trainer.phases import Phase, plan
from tests.ranks import Ranks
from tests.tiers import covering

ONE_BUCKET = {"zero_optimization": {"reduce_bucket_size": 500_000_000, "overlap_comm": False}}


class Collectives(TorchDispatchMode):
    """Records each collective of more than a few numbers: name, elements, type, and the share of the gradients that were ready."""

    def __init__(self, ready: list[int], elements: int) -> None:
        super().__init__()
        self.seen: list[tuple[str, int, str, float]] = []
        self._ready, self._elements = ready, elements

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            tensors = [leaf for leaf in tree_leaves(args[0]) if isinstance(leaf, Tensor)]
            size = sum(tensor.numel() for tensor in tensors)
            if size > 1000:
                dtype = str(tensors[0].dtype).removeprefix("torch.")
                self.seen.append((func._opname.strip("_"), size, dtype, sum(self._ready) / self._elements))
        return func(*args, **(kwargs or {}))


def phase_of(stage: int, size: int, accumulation: int = 1, precision: str = "fp32", deepspeed: Any = None) -> Phase:
    raw = {
        "name": "x", "duration": "10 steps", "model": {"kind": "bert", "size": "mini"},
        "data": {"kind": "text", "vocabulary_size": 512, "sequence_length": 16}, "optimizer": {"name": "lamb", "lr": 0.01},
        "batch": {"global": 2 * accumulation * size, "micro": 2},
        "engine": {"stage": stage, "precision": precision, "deepspeed": deepspeed or {}},
    }  # fmt: skip
    return plan([validate(raw)], size, [100])[0]


def trained(
    stage: int, accumulation: int, precision: str, deepspeed: Any, steps: int = 2
) -> tuple[list[list[Any]], Tensor]:
    """The collectives of each micro-batch of the last step, and a weight after it. Called by all ranks together."""
    from bellwether.trainer import models
    from bellwether.trainer.distributed import World
    from bellwether.trainer.engine import build
    from tests.experiments.planner.truth import data_of

    rank, size = dist.get_rank(), dist.get_world_size()
    phase = phase_of(stage, size, accumulation, precision, deepspeed)
    torch.manual_seed(0)
    task = models.build(phase.config.model, data_of(phase.config))
    ready: list[int] = []
    elements = sum(p.numel() for p in task.parameters())
    for parameter in task.parameters():  # before DeepSpeed's own hooks
        parameter.register_post_accumulate_grad_hook(lambda p: ready.append(p.numel()))
    engine = build(task, phase, World(rank, size, rank, torch.device("cpu")))
    batch = phase.config.data.zeros(2)
    batch["input_ids"] = torch.randint(512, (2, 16), generator=torch.Generator().manual_seed(rank))
    micro_batches: list[list[Any]] = []
    for _ in range(steps):
        micro_batches = []
        for _ in range(accumulation):
            ready.clear()
            torch.manual_seed(rank)
            with Collectives(ready, elements) as collectives:
                engine.backward(engine.forward(batch)[0].mean())
            micro_batches.append(collectives.seen)
            engine.step()
    weight = task.model.bert.encoder.layer[0].output.dense.weight.detach().clone()
    engine.destroy()
    return micro_batches, weight


@covering(lambda stage, accumulation: (stage, accumulation) == (2, 2))
@pytest.mark.parametrize("ranks", [2], indirect=True)
@pytest.mark.parametrize(("stage", "accumulation"), [(1, 2), (2, 1), (2, 2)])
def test_first_collective_is_sent_before_a_quarter_of_the_gradients_is_ready(
    ranks: Ranks, stage: int, accumulation: int
) -> None:
    (found, weight), (others, _) = ranks.run(trained, stage, accumulation, "fp32", None)
    assert found == others  # all ranks send the same in the same order
    assert [bool(each) for each in found] == [stage == 2 or index == accumulation - 1 for index in range(accumulation)]
    reduced = found[-1]
    elements = sum(size for _, size, _, _ in reduced)
    assert {(name, dtype) for name, _, dtype, _ in reduced} == {("allreduce", "float32")}
    shares = [share for *_, share in reduced]
    assert shares[0] < 0.25
    assert shares == sorted(shares)
    assert shares[-1] == 1
    bucket = choose(stage, 4, elements, 2, on_gpu=False).bucket
    assert elements / bucket <= len(reduced) <= 2 * elements / bucket
    (once, expected), _ = ranks.run(trained, stage, accumulation, "fp32", ONE_BUCKET)
    assert [(len(each), share) for each in once for *_, share in each[:1]] == [(1, 1.0)] * (
        accumulation if stage == 2 else 1
    )
    assert torch.equal(weight, expected)  # of two ranks: sums of two numbers


@pytest.mark.full
@pytest.mark.parametrize("ranks", [2], indirect=True)
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("kind", [None, "fp32"])
def test_gradients_are_reduced_in_the_type_that_the_plan_names(ranks: Ranks, stage: int, kind: str | None) -> None:
    keys = {"communication_data_type": kind} if kind else {}
    plan_ = communication.description(phase_of(stage, 2, precision="bf16", deepspeed=keys))
    (found, _), _ = ranks.run(trained, stage, 1, "bf16", keys)
    sums = {dtype for name, _, dtype, _ in found[0] if name != "allgather_base"}
    if found[0]:  # stages 0 and 1 reduce in step()
        assert sums == {"float32" if kind else "bfloat16"}
    assert f" in {kind or 'bf16'}, once an update" in plan_


def test_buckets_and_overlap_follow_model_and_network() -> None:
    large, small = 335_000_000, 4_400_000
    assert choose(2, 2, large, 128) == choose(1, 2, large, 8) == Reduction(large // 8, True)
    assert choose(2, 2, large, 1) == Reduction(large, False)  # nothing is sent
    assert choose(2, 2, small, 8) == Reduction(small, False)  # sent in less time than a wait for the device takes
    assert choose(2, 2, 11_000_000, 8) == Reduction(11_000_000, False)
    assert choose(2, 2, 25_500_000, 128) == Reduction(2**22, True)
    assert choose(0, 2, large, 128) == Reduction(large, False)  # DeepSpeed reduces once, after the last gradient
    assert choose(3, 2, large, 8).overlap
    assert choose(3, 2, large, 1).overlap
    assert choose(2, 4, 10**10, 8).bucket == communication.MOST


@pytest.mark.parametrize("stage, size, accumulation, precision, expected", [
    (2, 4, 8, "bf16", "all-reduced in bf16, after each of 8 micro-batches (stage 1: once)"),
    (2, 4, 1, "bf16", "all-reduced in bf16, once an update"),
    (1, 4, 8, "fp16", "all-reduced in fp16, once an update"),
    (3, 4, 8, "fp32", "reduce-scattered in fp32, after each of 8 micro-batches"),
    (2, 1, 8, "fp32", "not reduced: there is one process"),
])  # fmt: skip
def test_plan_says_what_is_reduced_when(
    stage: int, size: int, accumulation: int, precision: str, expected: str
) -> None:
    assert communication.description(phase_of(stage, size, accumulation, precision)) == expected

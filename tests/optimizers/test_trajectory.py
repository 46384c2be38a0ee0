"""Distances, cosines and norms on shards against float64 on whole parameters, and interpolated weights."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bellwether.optimizers import SGD, Trajectory
from tests.optimizers import sharded
from tests.precision import skip_without
from tests.ranks import Ranks

STEPS = 4


def _walk(rule: str, zero: dict[str, Any], config: dict[str, Any]) -> tuple[list[Any], list[Any], list[float], bool]:
    ds_engine, optimizer = sharded.engine(rule, zero, **config)
    sharded.poison(optimizer)
    walk = Trajectory(optimizer)
    places, found = [sharded.owned(optimizer)], [walk.read()]
    for step in range(STEPS):
        walk.keep()
        sharded.feed(ds_engine, step)
        places.append(sharded.owned(optimizer))
        found.append(walk.read())
    losses = []
    batch = {k: torch.tensor(v) for k, v in sharded.targets(9).items()}
    before = [shard.tensor.detach().clone() for shard in optimizer.shards]
    with walk.between() as go, torch.no_grad():
        for share in (0.0, 0.25, 1.0):
            go(share)
            losses.append(float(ds_engine(batch)))
    same = all(
        torch.equal(a.nan_to_num(), s.tensor.nan_to_num()) for a, s in zip(before, optimizer.shards, strict=True)
    )
    with torch.no_grad():
        losses.append(float(ds_engine(batch)))
    ds_engine.destroy()
    return places, found, losses, same


def whole(results: list[Any], step: int) -> dict[str, np.ndarray]:
    """All trained parameters after a step, flat, in float64."""
    slices: dict[str, dict[int, np.ndarray]] = {}
    for places, *_ in results:
        for name, parts in places[step].items():
            slices.setdefault(name, {}).update(parts)
    return {name: np.concatenate([parts[start] for start in sorted(parts)]) for name, parts in slices.items()}


def loss(weights: dict[str, np.ndarray]) -> float:
    targets, total = sharded.targets(9), 0.0
    for name, target in targets.items():
        weight = weights.get(name, sharded.weights()[name].reshape(-1).astype(np.float64))
        total += (1 + (name == "tied")) * 0.5 * np.square(weight - target).sum(1).mean()
    return total


@pytest.mark.parametrize("ranks", [1, 2], indirect=True)
@pytest.mark.parametrize("stage, config", [
    (0, {}), (1, {}), (2, {}), (3, {}), (1, {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}),
])  # fmt: skip
def test_every_stage_measures_the_whole_model(ranks: Ranks, stage: int, config: dict[str, Any]) -> None:
    skip_without("bf16" if config else "fp32", ranks)
    results = ranks.run(_walk, "lookahead-lamb", {"stage": stage, "sub_group_size": 500}, config)
    flat = [np.concatenate([v for _, v in sorted(whole(results, step).items())]) for step in range(STEPS + 1)]
    updates = [after - before for before, after in itertools.pairwise(flat)]
    for _, found, losses, same in results:
        # Differences of fp32 weights have an error of 2^-24 each.
        assert (found[0].cosine, found[0].update_norm, found[0].distance) == (None, None, 0)
        assert found[1].cosine is None
        for step in range(1, STEPS + 1):
            assert found[step].distance == pytest.approx(np.linalg.norm(flat[step] - flat[0]), rel=1e-6)
            assert found[step].update_norm == pytest.approx(np.linalg.norm(updates[step - 1]), rel=1e-6)
            assert found[step].weight_norm == pytest.approx(np.linalg.norm(flat[step]), rel=1e-6)
            now, then = whole(results, step), whole(results, step - 1)
            for name, value in now.items():
                full = f"{name}.weight"
                assert found[step].weight_norms[full] == pytest.approx(np.linalg.norm(value), rel=1e-6)
                assert found[step].update_norms[full] == pytest.approx(np.linalg.norm(value - then[name]), rel=1e-6)
        for step in range(2, STEPS + 1):
            a, b = updates[step - 1], updates[step - 2]
            assert found[step].cosine == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-6)
        assert same
        assert losses[2] == losses[3]
        now, then = whole(results, STEPS), whole(results, STEPS - 1)
        # The weights of the model are bf16.
        rel = 1e-5 if not config else 2**-7
        for found_loss, share in zip(losses, (0.0, 0.25, 1.0), strict=False):
            at = {name: then[name] + share * (now[name] - then[name]) for name in now}
            assert found_loss == pytest.approx(loss(at), rel=rel)


def test_too_large_lr_has_cosine_minus_one() -> None:
    """Descent on x^2 / 2 with lr 1.5 bounces between the walls of the valley. `forget` frees the copies of the weights."""
    weight = nn.Parameter(torch.tensor([2.0]))
    optimizer = SGD([weight], lr=1.5)
    walk = Trajectory(optimizer)
    with pytest.raises(RuntimeError, match="keep"), walk.between():
        pass
    for _ in range(3):
        walk.keep()
        weight.grad = weight.detach().clone()
        optimizer.step()
    stride = walk.read()
    assert weight.item() == -0.25
    assert (stride.cosine, stride.update_norm, stride.distance) == (-1.0, 0.75, 2.25)
    walk.forget()
    assert walk.read().cosine is None

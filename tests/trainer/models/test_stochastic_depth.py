"""Stochastic depth: which branches a sample loses, and that nothing but its key decides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bellwether.trainer.config import ConfigErrors, validate
from bellwether.trainer.data import sampling
from bellwether.trainer.models import stochastic_depth
from bellwether.trainer.models.residual import blocks, branch
from bellwether.trainer.models.tasks import Task
from tests.trainer.runs import images

Make = Callable[..., Task]
MODELS: list[dict[str, Any]] = [
    {"kind": "cifar-resnet", "depth": 14},
    {"kind": "cifar-resnet", "depth": 14, "norm": "none"},
    {"kind": "wide-resnet", "depth": 16, "width": 1},
    {"kind": "resnet", "depth": 18},
    {"kind": "resnet", "depth": 50},
]
KEYS = torch.from_numpy(sampling.sample_keys(1, np.arange(2000)))


def batch(count: int = 8) -> dict[str, torch.Tensor]:
    pixels = torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return {"pixel_values": pixels, "labels": torch.zeros(count, dtype=torch.int64), "sample_keys": KEYS[:count]}


def test_random_numbers_are_those_of_the_data() -> None:
    wanted = sampling.uniform(sampling.random_bits(KEYS.numpy(), 40))
    for index in range(40):
        assert stochastic_depth.uniform(KEYS, index).tolist() == wanted[:, index].tolist()


@pytest.mark.parametrize("keys", MODELS, ids=str)
def test_branches_are_left_out_at_rates_that_grow_with_depth(make: Make, keys: dict[str, Any]) -> None:
    task = make(**keys, stochastic_depth=0.5)
    found = [branch(block) for block in blocks(task.model)]
    inputs = torch.ones(len(KEYS), 1, 1, 1)
    task._depth.start(KEYS)  # type: ignore[attr-defined, union-attr]
    kept = []
    for module in found:
        (hook,) = module._forward_hooks.values()
        factor = hook(module, (), inputs).flatten()
        values = factor.unique().tolist()
        kept.append(float((factor != 0).float().mean()))
        # Divided by the probability of being kept, so that the mean is the same.
        assert values[-1] == pytest.approx(1 / (1 - 0.5 * len(kept[1:]) / (len(found) - 1)))
        assert factor.mean() == pytest.approx(1, abs=5 * (values[-1] - 1) ** 0.5 / len(KEYS) ** 0.5 + 1e-6)
    wanted = np.linspace(1, 0.5, len(found))
    assert kept == pytest.approx(wanted, abs=5 * 0.5 / len(KEYS) ** 0.5)
    assert kept[0] == 1


@pytest.mark.parametrize("keys", MODELS, ids=str)
def test_a_sample_without_its_last_branch_is_its_shortcut(make: Make, keys: dict[str, Any]) -> None:
    task = make(**keys, stochastic_depth=0.999)
    last = blocks(task.model)[-1]
    seen: dict[str, torch.Tensor] = {}
    # A copy, as transformers' blocks add the shortcut in place.
    branch(last).register_forward_hook(lambda module, args, output: seen.update(branch=output.clone()))
    task.train()(**batch())
    rate = 0.999
    lost = (stochastic_depth.uniform(KEYS[:8] ^ stochastic_depth._KEY, len(blocks(task.model)) - 1) < rate).nonzero()
    assert len(lost) >= 7
    assert (seen["branch"][lost.flatten()] == 0).all()


def losses(task: Task, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return task(**inputs)[0].detach()


def test_a_sample_loses_the_same_branches_in_any_batch_and_none_in_evaluation(make: Make) -> None:
    # Without BatchNorm a sample does not depend on the others.
    task = make(kind="cifar-resnet", depth=20, norm="none", stochastic_depth=0.7)
    for parameter in task.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    plain = make(kind="cifar-resnet", depth=20, norm="none")
    plain.load_state_dict(task.state_dict())
    whole = losses(task.train(), batch())
    parts = [losses(task, {name: tensor[part] for name, tensor in batch().items()}) for part in (slice(5, 8), slice(5))]
    # Convolutions of other batch sizes may add in another order.
    torch.testing.assert_close(torch.cat([parts[1], parts[0]]), whole, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(losses(plain.train(), batch()), whole)
    torch.manual_seed(5)
    assert torch.equal(losses(task, batch()), whole)
    assert torch.equal(losses(task.eval(), batch()), losses(plain.eval(), batch()))


def test_activation_checkpointing_leaves_out_the_same_branches(make: Make) -> None:
    gradients = []
    for checkpointing in (False, True):
        task = make(kind="cifar-resnet", depth=14, stochastic_depth=0.6, checkpointing=checkpointing).train()
        task(**batch())[0].mean().backward()
        gradients.append([p.grad for p in task.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


def test_training_batches_without_keys_are_refused(make: Make) -> None:
    inputs = batch()
    del inputs["sample_keys"]
    with pytest.raises(ValueError, match="needs the keys of the samples"):
        make(kind="cifar-resnet", depth=14, stochastic_depth=0.6).train()(**inputs)


@pytest.mark.parametrize("value, message", [(1.0, "must be less than 1"), (-0.1, "must be greater than or equal to 0")])
def test_rates_out_of_range_are_refused(tmp_path: Path, value: float, message: str) -> None:
    with pytest.raises(ConfigErrors, match=rf"model.stochastic_depth: {value}: {message}"):
        validate(images(tmp_path, "x", model={"stochastic_depth": value}))

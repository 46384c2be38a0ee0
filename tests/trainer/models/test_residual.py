from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from bellwether.trainer.models.modeling_residual import BasicBlock, PreActivationBlock
from bellwether.trainer.models.norm import BatchNorm2d, norms
from bellwether.trainer.models.residual import blocks
from bellwether.trainer.models.tasks import Task

Make = Callable[..., Task]

SMALL: list[dict[str, Any]] = [
    {"kind": "cifar-resnet", "depth": 8},
    {"kind": "wide-resnet", "depth": 10, "width": 2},
    {"kind": "resnet", "depth": 18},
    {"kind": "resnet", "depth": 50},
]


def batch(size: int = 4, channels: int = 3, pixels: int = 32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "pixel_values": torch.randn(size, channels, pixels, pixels, generator=generator),
        "labels": torch.randint(10, (size,), generator=generator),
    }


@pytest.mark.parametrize("keys, classes, millions", [
    # He et al. 2015, table 6
    ({"kind": "cifar-resnet", "depth": 20}, 10, 0.27), ({"kind": "cifar-resnet", "depth": 32}, 10, 0.46),
    ({"kind": "cifar-resnet", "depth": 44}, 10, 0.66), ({"kind": "cifar-resnet", "depth": 56}, 10, 0.85),
    ({"kind": "cifar-resnet", "depth": 110}, 10, 1.7),
    # Zagoruyko and Komodakis 2016, table 4 and table 5; the fourth is the model of the AdamW articles
    ({"kind": "wide-resnet", "depth": 40, "width": 4}, 10, 8.9), ({"kind": "wide-resnet", "depth": 16, "width": 8}, 10, 11.0),
    ({"kind": "wide-resnet", "depth": 28, "width": 10}, 10, 36.5), ({"kind": "wide-resnet", "depth": 22, "width": 6}, 10, 9.7),
    # torchvision's, which are those of He et al. 2015, table 1
    ({"kind": "resnet", "depth": 18}, 1000, 11.7), ({"kind": "resnet", "depth": 34}, 1000, 21.8),
    ({"kind": "resnet", "depth": 50}, 1000, 25.6), ({"kind": "resnet", "depth": 101}, 1000, 44.5),
    ({"kind": "resnet", "depth": 152}, 1000, 60.2),
])  # fmt: skip
def test_parameter_counts_match_the_papers(make: Make, keys: dict[str, Any], classes: int, millions: float) -> None:
    with torch.device("meta"):
        model = make(**keys, classes=classes).model
    found = sum(p.numel() for p in model.parameters()) / 1e6
    assert round(found, 2 if millions < 1 else 1) == millions
    if keys["kind"] != "resnet":
        # 6n + 2 layers are 6n + 1 convolutions and the classifier; 6n + 4 are convolutions, 3 of them shortcuts.
        convolutions = sum(isinstance(m, nn.Conv2d) for m in model.modules())
        assert convolutions == keys["depth"] - (keys["kind"] == "cifar-resnet")


@pytest.mark.parametrize("keys", SMALL)
@pytest.mark.parametrize("channels, pixels", [(1, 8), (3, 33)])
def test_task_returns_the_loss_of_each_sample(make: Make, keys: dict[str, Any], channels: int, pixels: int) -> None:
    task = make(**keys, channels=channels).eval()
    given = batch(4, channels, pixels)
    losses, correct = task(**given)
    scores = task.model(given["pixel_values"]).logits
    assert scores.shape == (4, 10)
    assert losses.shape == (4,)
    assert losses.dtype == correct.dtype == torch.float32
    torch.testing.assert_close(losses, -scores.log_softmax(1)[range(4), given["labels"]])
    assert torch.equal(correct, (scores.argmax(1) == given["labels"]).float())
    alone, _ = task(**{name: value[:1] for name, value in given.items()})
    torch.testing.assert_close(alone, losses[:1], rtol=1e-4, atol=1e-5)


WITHOUT = [{**keys, "norm": "none"} for keys in SMALL[:2]]


@pytest.mark.parametrize("keys", WITHOUT)
def test_fixup_blocks_start_as_their_shortcut_and_learn(make: Make, keys: dict[str, Any]) -> None:
    task = make(**keys)
    assert not list(norms(task))
    found = blocks(task.model)
    for block in found:
        inputs = block.conv1.in_channels
        x = torch.rand(2, inputs, 8, 8)
        assert torch.allclose(block(x), shortcut(block, x))
        # He's standard deviation over the root of the number of blocks. The estimate from n samples has a relative error of 1 / sqrt(2 n).
        wanted = (2 / (9 * block.conv1.out_channels) / len(found)) ** 0.5
        assert block.conv1.weight.std().item() == pytest.approx(wanted, rel=5 / (2 * block.conv1.weight.numel()) ** 0.5)
    given = batch(16, pixels=8)
    losses, _ = task(**given)
    torch.testing.assert_close(losses, torch.full((16,), 10.0).log())  # no class is preferred
    # Samples are independent of each other: nothing is normalised over the batch.
    optimizer = torch.optim.Adam(task.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        task(**given)[0].mean().backward()
        optimizer.step()
    losses, _ = task(**given)
    assert losses.mean() < 0.5
    alone, _ = task(**{name: value[:1] for name, value in given.items()})
    torch.testing.assert_close(alone, losses[:1], rtol=1e-4, atol=1e-5)


def test_predicted_probabilities_of_views_are_averaged(make: Make) -> None:
    task = make(**SMALL[0]).eval()
    views = torch.stack([batch(4)["pixel_values"], batch(4)["pixel_values"].flip(3)], dim=1)
    labels = batch(4)["labels"]
    losses, correct = task(pixel_values=views, labels=labels)
    mean = sum(task.model(views[:, i]).logits.softmax(1) for i in range(2)) / 2
    torch.testing.assert_close(losses, -mean[range(4), labels].log())
    assert torch.equal(correct, (mean.argmax(1) == labels).float())


def test_cumulative_mean_of_statistics_matches_torch() -> None:
    """`recompute_batch_norm` uses this mean."""
    plain, own = nn.BatchNorm2d(3, momentum=None), nn.BatchNorm2d(3, momentum=None)
    BatchNorm2d.replace(own)
    for seed in range(3):
        x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(own(x), plain(x))
    torch.testing.assert_close(own.running_mean, plain.running_mean)
    torch.testing.assert_close(own.running_var, plain.running_var)


@pytest.mark.parametrize("keys", SMALL)
def test_zero_init_last_makes_each_block_its_shortcut(make: Make, keys: dict[str, Any]) -> None:
    for zero in (True, False):
        model = make(**keys, zero_init_last=zero).model
        found = blocks(model)
        assert len(found) == {8: 3, 10: 3, 18: 8, 50: 16}[keys["depth"]]
        for block in found:
            inputs = next(m for m in block.modules() if isinstance(m, nn.Conv2d)).in_channels
            x = torch.rand(2, inputs, 4, 4)  # not negative, as after a ReLU
            assert torch.allclose(block(x.clone()), shortcut(block, x), atol=1e-6) == zero
            weights = [norm.weight for norm in norms(getattr(block, "layer", block))]
            assert [bool(weight.any()) for weight in weights] == [True] * (len(weights) - 1) + [not zero]


def shortcut(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
    if isinstance(block, BasicBlock):
        x = x[:, :, :: block.stride, :: block.stride]
        return nn.functional.pad(x, (0, 0, 0, 0, 0, block.new_channels))
    if isinstance(block, PreActivationBlock):
        return x if block.shortcut is None else block.shortcut(torch.relu(block.bn1(x)))
    return torch.relu(block.shortcut(x))  # transformers'


@pytest.mark.parametrize("keys", SMALL)
def test_convolutions_use_he_initialization(make: Make, keys: dict[str, Any]) -> None:
    for name, module in make(**keys).model.named_modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            count = module.weight.numel()
            # The standard deviation of n normal samples has a relative error of 1 / sqrt(2 n); five of these.
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=5 / (2 * count) ** 0.5), name


@pytest.mark.parametrize("keys", SMALL[:3])
def test_activation_checkpointing_changes_neither_results_nor_running_statistics(
    make: Make, keys: dict[str, Any]
) -> None:
    results = []
    for checkpointing in (False, True):
        task = make(**keys, checkpointing=checkpointing, zero_init_last=False)
        calls: list[int] = []
        conv = next(m for m in blocks(task.model)[0].modules() if isinstance(m, nn.Conv2d))
        conv.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        for _ in range(2):
            task(**batch(2, pixels=16))[0].mean().backward()
        assert len(calls) == 2 * (1 + checkpointing)
        task.eval()(**batch(2, pixels=16))
        results.append((task.state_dict(), {name: p.grad for name, p in task.named_parameters()}))
    for a, b in zip(*results, strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(name.endswith("num_batches_tracked") and value == 2 for name, value in results[1][0].items())


@pytest.mark.parametrize("keys, dtype", [(SMALL[0], torch.float16), *((keys, torch.bfloat16) for keys in SMALL[:3])])
def test_statistics_stay_in_float32(make: Make, keys: dict[str, Any], dtype: torch.dtype) -> None:
    task = make(**keys).to(dtype)
    losses, _ = task(**batch(2, pixels=8 if dtype == torch.float16 else 32))  # a CPU convolves float16 slowly
    losses.mean().backward()
    assert losses.dtype == torch.float32
    assert {p.dtype for p in task.parameters()} == {dtype}
    found = list(norms(task))
    assert found
    assert all(m.running_mean.dtype == m.running_var.dtype == torch.float32 for m in found)
    assert all(m.running_mean.abs().sum() > 0 for m in found)


def test_casting_keeps_statistics_unrounded() -> None:
    norm = nn.BatchNorm2d(3)
    BatchNorm2d.replace(norm)
    exact = torch.tensor([1 / 3, 1e-9, 1e30])
    norm.running_mean.copy_(exact)
    for cast in (nn.Module.half, nn.Module.bfloat16, nn.Module.float):
        assert torch.equal(cast(norm).running_mean, exact)
    assert norm.to("meta").running_mean.device.type == "meta"

"""The output layer of masked language modelling: padding of the product, chunks, memory, and attention without a mask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from bellwether.optimizers import Lamb, groups
from bellwether.trainer.memory.live_bytes import LiveBytes
from bellwether.trainer.models import vocabulary
from bellwether.trainer.models.tasks import MaskedLanguageModelling, Task
from bellwether.trainer.models.vocabulary import VocabularyHead, chunks, padded
from tests.trainer.models.test_bert import batch

Make = Callable[..., Task]

# Losses of about ln 100; logits are summed over rows of another matrix shape, gradients in another order. bf16 has 8 bits.
TOLERANCES = {torch.float32: {"rtol": 1e-5, "atol": 1e-7}, torch.bfloat16: {"rtol": 2e-2, "atol": 1e-3}}


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of two rows of a vocabulary of 100."""
    monkeypatch.setattr(vocabulary, "KEPT", 0)
    monkeypatch.setattr(vocabulary, "CHUNK", 2 * 128)


def head(rows: int = 7, bias: bool = True, dtype: torch.dtype = torch.float32) -> tuple[VocabularyHead, Tensor, Tensor]:
    torch.manual_seed(3)
    layer = VocabularyHead(16, 100, bias=bias).to(dtype)
    return layer, torch.randn(1, rows, 16, dtype=dtype), torch.randint(100, (1, rows))


def result(layer: VocabularyHead, hidden: Tensor, labels: Tensor, plain: bool) -> list[Tensor]:
    """Losses, correctness and the gradients of a weighted sum of the losses."""
    layer.zero_grad()
    hidden = hidden.clone().requires_grad_()
    if plain:
        logits = layer(hidden).float().flatten(0, 1)
        losses, correct = functional.cross_entropy(logits, labels[0], reduction="none"), logits.argmax(1) == labels[0]
    else:
        with layer.losses_of(labels):
            losses, correct = layer(hidden)[0].unbind(1)
    (losses * torch.arange(1, 1 + len(losses))).sum().backward()
    assert hidden.grad is not None
    return [
        losses.detach(),
        correct.detach().float(),
        hidden.grad,
        *(p.grad for p in layer.parameters() if p.grad is not None),
    ]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("in_chunks", [False, True])
def test_losses_and_gradients_equal_those_of_plain_logits(
    in_chunks: bool, dtype: torch.dtype, bias: bool, request: pytest.FixtureRequest
) -> None:
    if in_chunks:
        request.getfixturevalue("small_chunks")
    layer, hidden, labels = head(bias=bias, dtype=dtype)
    padded_results, plain = (result(layer, hidden, labels, plain) for plain in (False, True))
    assert len(plain) == (5 if bias else 4)
    for ours, expected in zip(padded_results, plain, strict=True):
        assert ours.dtype == expected.dtype
        assert ours.shape == expected.shape
        torch.testing.assert_close(ours, expected, **TOLERANCES[dtype])


def test_vocabulary_of_a_multiple_of_64_has_the_bits_of_plain_logits() -> None:
    torch.manual_seed(3)
    layer, hidden, labels = VocabularyHead(16, 128), torch.randn(1, 7, 16), torch.randint(128, (1, 7))
    for ours, expected in zip(result(layer, hidden, labels, False), result(layer, hidden, labels, True), strict=True):
        assert torch.equal(ours, expected)


class Products(TorchDispatchMode):
    """Records the shapes of all matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
            self.shapes.append(tuple(size for each in args[-2:] for size in each.shape))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("in_chunks", [False, True])
def test_all_products_have_a_multiple_of_64_logits(in_chunks: bool, request: pytest.FixtureRequest) -> None:
    if in_chunks:
        request.getfixturevalue("small_chunks")
    layer, hidden, labels = head()
    with Products() as products:
        result(layer, hidden, labels, plain=False)
    assert len(products.shapes) == (4 * (1 + 3) if in_chunks else 3)  # a chunk's logits are computed twice
    assert all(128 in shape and 100 not in shape for shape in products.shapes)


def test_memory_of_logits_does_not_grow_with_the_micro_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = []
    for kept in (2**30, 2**15):
        monkeypatch.setattr(vocabulary, "KEPT", kept)
        monkeypatch.setattr(vocabulary, "CHUNK", 2**14)
        layer, hidden, labels = head(rows=2048)
        with LiveBytes([*layer.parameters(), hidden, labels]) as live:
            result(layer, hidden, labels, plain=False)
        peaks.append(live.peak)
    logits = 2048 * 128 * 4
    assert peaks[0] > 2 * logits
    assert peaks[1] < logits


def test_chunks_are_equal_parts_and_only_for_many_logits() -> None:
    assert chunks(1280, 30522) == [slice(0, 1280)]  # 64 samples of BERT-large at length 128
    parts = chunks(10240, 30522)  # 512 samples
    assert len(parts) == 5
    assert {part.stop - part.start for part in parts} == {2048}
    assert 2048 * padded(30522) <= vocabulary.CHUNK
    assert chunks(3, 2**40) == [slice(0, 1), slice(1, 2), slice(2, 3)]


def test_parameters_and_trust_ratios_are_those_of_the_unpadded_model(make: Make) -> None:
    ratios, weights = [], []
    for plain in (False, True):
        task = make("bert", size="tiny").eval()  # no dropout
        assert isinstance(task, MaskedLanguageModelling)
        if plain:
            task._head = ()
        assert task.model.get_output_embeddings().weight.shape == (100, 128)
        optimizer = Lamb(groups(task), lr=0.01, weight_decay=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            task(**batch())[0].mean().backward()
            optimizer.step()
        ratios.append(optimizer.trust_ratios())
        weights.append(task.state_dict())
    name = "model.bert.embeddings.word_embeddings.weight"
    assert ratios[0].keys() == ratios[1].keys()
    assert name in ratios[0]
    assert all(ratio == pytest.approx(ratios[1][key], rel=1e-3) for key, ratio in ratios[0].items())
    assert ratios[0][name] == pytest.approx(ratios[1][name], rel=1e-5)
    assert {key: value.shape for key, value in weights[0].items()} == {k: v.shape for k, v in weights[1].items()}


@pytest.mark.parametrize("packed", [False, True])
def test_attention_gets_a_mask_only_where_there_is_one(
    make: Make, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, masks = functional.scaled_dot_product_attention, []

    def attention(*args: Any, **kwargs: Any) -> Tensor:
        masks.append(kwargs.get("attn_mask", args[3] if len(args) > 3 else None))
        return original(*args, **kwargs)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", attention)
    documents = torch.zeros(3, 16, dtype=torch.int64)
    given = {"documents": documents, "position_ids": torch.arange(16).expand(3, 16)} if packed else {}
    make("bert", size="tiny")(**batch(), **given)
    assert len(masks) == 2
    assert all((mask is not None) == packed for mask in masks)

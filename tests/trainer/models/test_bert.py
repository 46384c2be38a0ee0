from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional

from bellwether.trainer.models.tasks import Task

Make = Callable[..., Task]


def batch(size: int = 3, length: int = 16, k: int = 2, vocabulary: int = 100) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "input_ids": torch.randint(vocabulary, (size, length), generator=generator),
        "masked_positions": torch.rand(size, length, generator=generator).argsort(1)[:, :k].sort(1).values,
        "labels": torch.randint(vocabulary, (size, k), generator=generator),
    }


def test_logits_at_masked_positions_equal_those_of_the_whole_sequence(make: Make) -> None:
    task, given = make("bert", size="tiny").eval(), batch()
    places = given["masked_positions"].unsqueeze(2).expand(-1, -1, 100)
    whole = task.model(given["input_ids"]).logits.gather(1, places)
    scores = task.logits(given["input_ids"], given["masked_positions"])
    torch.testing.assert_close(scores, whole, rtol=1e-6, atol=1e-6)  # the same sums over rows of another matrix shape
    losses, correct = task(**given)
    expected = functional.cross_entropy(whole.transpose(1, 2), given["labels"], reduction="none").mean(dim=1)
    torch.testing.assert_close(losses, expected)
    assert losses.shape == correct.shape == (3,)
    assert losses.dtype == correct.dtype == torch.float32
    best = {**given, "labels": whole.argmax(dim=2)}
    best["labels"][0, 0] += 1
    assert task(**best)[1].tolist() == [0.5, 1, 1]


def test_logits_are_computed_at_masked_positions_only(make: Make) -> None:
    task = make("bert", size="tiny")
    shapes = []
    task.model.cls.predictions.decoder.register_forward_hook(lambda module, args, out: shapes.append(out.shape))
    task(**batch())
    assert shapes == [(3, 2, 2)]  # losses and correctness in place of the logits


def test_output_weights_are_tied_to_the_word_embeddings(make: Make) -> None:
    model = make("bert", size="tiny").model
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    assert model.config._attn_implementation == "sdpa"
    assert model.config.type_vocab_size == 2
    assert model.config.vocab_size == 100


@pytest.mark.parametrize("size, millions", [
    ("tiny", 4.4), ("mini", 11.2), ("small", 28.8), ("medium", 41.4), ("base", 109.5), ("large", 335.2),
])  # fmt: skip
def test_parameter_counts_match_the_papers(make: Make, size: str, millions: float) -> None:
    # Devlin et al. 2018 (110 M, 340 M) and Turc et al. 2019, table 1. The head of masked language modelling has
    # about as many weights as the pooler that these counts contain.
    with torch.device("meta"):
        model = make("bert", size=size, vocabulary=30522).model
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)


def test_dropout_follows_the_config(make: Make) -> None:
    task, given = make("bert", size="tiny", dropout=0.0), batch()
    assert torch.equal(task(**given)[0], task(**given)[0])
    rates = {m.p for m in make("bert", size="tiny", dropout=0.3).modules() if isinstance(m, torch.nn.Dropout)}
    assert rates == {0.3}


def test_weights_are_a_function_of_the_seed(make: Make) -> None:
    a, b = make("bert", size="tiny").state_dict(), make("bert", size="tiny").state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_activation_checkpointing_changes_no_result(make: Make, dropout: float) -> None:
    gradients = []
    for checkpointing in (False, True):
        task = make("bert", size="tiny", dropout=dropout, checkpointing=checkpointing)
        calls: list[int] = []
        task.model.bert.encoder.layer[0].intermediate.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        torch.manual_seed(5)
        task(**batch())[0].mean().backward()
        assert len(calls) == 1 + checkpointing
        gradients.append({name: p.grad for name, p in task.named_parameters()})
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_cast_models_give_float32_losses(make: Make, dtype: torch.dtype) -> None:
    task = make("bert", size="tiny").eval()
    expected = task(**batch())[0]
    losses, correct = task.to(dtype)(**batch())
    assert losses.dtype == correct.dtype == torch.float32
    torch.testing.assert_close(losses, expected, rtol=0.02, atol=0)  # 8 bits of mantissa through two layers

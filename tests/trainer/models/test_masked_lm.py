"""Masked language modelling with any encoder of transformers: the head at masked positions only, tokenizer and length."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from bellwether.trainer.config import ConfigErrors, validate
from bellwether.trainer.models.tasks import GATHERED_HEADS, MaskedLanguageModelling, Task
from tests.tiers import covering
from tests.trainer.models import families
from tests.trainer.models.test_bert import batch

Make = Callable[..., Task]


def made(make: Make, family: str, **options: Any) -> MaskedLanguageModelling:
    task = make("masked-lm", config=families.keys(family, **options.pop("keys", {})), **options)
    assert isinstance(task, MaskedLanguageModelling)
    return task


def test_every_family_that_gathers_is_compared() -> None:
    assert {*families.ENCODERS, *families.OTHERS} == GATHERED_HEADS


@covering(lambda family: family in families.ENCODERS)
@pytest.mark.parametrize("family", [*families.ENCODERS, *families.OTHERS])
def test_loss_and_gradients_equal_those_of_the_whole_head(make: Make, family: str) -> None:
    results = []
    for gathers in (True, False):
        task = made(make, family).double().eval()  # no dropout
        task.gathers = gathers
        losses, correct = task(**batch(length=24))
        losses.mean().backward()
        results.append((losses, correct, {name: p.grad for name, p in task.named_parameters()}))
    (losses, correct, gradients), (expected, expected_correct, expected_gradients) = results
    torch.testing.assert_close(losses, expected)
    assert torch.equal(correct, expected_correct)
    for name, gradient in gradients.items():
        # Losses are float32 by contract, so gradients agree to its precision; rows are summed in another order.
        torch.testing.assert_close(
            gradient, expected_gradients[name], rtol=1e-5, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("family", families.ENCODERS)
def test_vocabulary_logits_are_computed_at_masked_positions_only(make: Make, family: str) -> None:
    task = made(make, family)
    shapes = []
    task.model.get_output_embeddings().register_forward_hook(lambda module, args, out: shapes.append(out.shape))
    task(**batch())
    assert shapes == [(3, 2, 2)]  # losses and correctness in place of the logits
    assert task.model(batch()["input_ids"]).logits.shape == (3, 16, 100)  # outside of the task, the model is as it was


@pytest.mark.parametrize("family", families.ENCODERS)
def test_activation_checkpointing_changes_no_result(make: Make, family: str) -> None:
    results = []
    for checkpointing in (False, True):
        task = made(make, family, checkpointing=checkpointing)
        torch.manual_seed(5)
        task(**batch())[0].mean().backward()
        results.append({name: p.grad for name, p in task.named_parameters() if p.grad is not None})
    assert results[0].keys() == results[1].keys()
    assert all(torch.equal(gradient, results[1][name]) for name, gradient in results[0].items())


def test_other_architectures_compute_all_logits_and_say_so(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "bellwether")
    task = make(
        "masked-lm",
        config={
            **families.keys("bert"),
            "model_type": "nystromformer",
            "segment_means_seq_len": 16,
            "num_landmarks": 4,
        },
    )
    assert task(**batch())[0].shape == (3,)
    assert caplog.messages[-1:] == [
        "the head of nystromformer computes the logits of all positions, not of the masked ones alone"
    ]


def config(**changes: Any) -> Any:
    raw: dict[str, Any] = {
        "name": "x", "duration": "1 steps", "model": {"kind": "masked-lm", "config": families.keys("bert")}, "data": {"kind": "text"},
        "batch": {"global": 2}, "optimizer": {"name": "lamb", "lr": 1e-3},
    }  # fmt: skip
    return validate({**raw, **changes})


def test_tokenizer_left_out_is_that_of_init(tmp_path: Any) -> None:
    model = {"kind": "masked-lm", "init": str(tmp_path)}
    assert config(model=model).data.tokenizer == str(tmp_path)
    assert config(model=model, data={"kind": "text", "tokenizer": "vocab.txt"}).data.tokenizer == "vocab.txt"
    assert config().data.tokenizer == "train"
    with pytest.raises(
        ConfigErrors, match=r"data.tokenizer: 'train': a new vocabulary does not fit pretrained weights"
    ):
        config(model=model, data={"kind": "text", "tokenizer": "train"})


@pytest.mark.parametrize(
    "family, longest", [("bert", 40), ("roberta", 39)]
)  # RoBERTa's first position is after the padding's
def test_sequence_longer_than_the_positions_is_refused(make: Make, family: str, longest: int) -> None:
    model = {"kind": "masked-lm", "config": families.keys(family, max_position_embeddings=40)}
    config(model=model, data={"kind": "text", "sequence_length": longest})
    with pytest.raises(ConfigErrors, match=f"{longest + 1} tokens do not fit the {longest} positions"):
        config(model=model, data={"kind": "text", "sequence_length": longest + 1})
    task = made(make, family, keys={"max_position_embeddings": 40})
    task(**batch(length=longest))
    with pytest.raises((IndexError, RuntimeError)):
        task(**batch(length=longest + 1))

"""Packed documents with attention inside each: as if each stood alone. And pairs of segments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional

from bellwether.trainer.config import ConfigErrors
from bellwether.trainer.config.schema import ModelConfig
from bellwether.trainer.data import Dataset
from bellwether.trainer.models import build
from bellwether.trainer.models.architecture import DOCUMENT_ATTENTION
from bellwether.trainer.models.tasks import MaskedLanguageModelling, Task
from tests.trainer.models import families
from tests.trainer.models.test_masked_lm import config

Make = Callable[..., Task]
LENGTHS = (9, 4, 11)


@pytest.mark.parametrize("family", sorted(DOCUMENT_ATTENTION))
def test_packed_documents_have_the_logits_of_each_alone(make: Make, family: str) -> None:
    task = make("masked-lm", config=families.keys(family))
    assert isinstance(task, MaskedLanguageModelling)
    task.double().eval()
    ids = torch.randint(5, 100, (2, sum(LENGTHS)), generator=torch.Generator().manual_seed(1))
    documents = torch.repeat_interleave(torch.arange(3), torch.tensor(LENGTHS)).expand(2, -1)
    places = torch.cat([torch.arange(n) for n in LENGTHS]).expand(2, -1)
    everywhere = torch.arange(sum(LENGTHS)).expand(2, -1)
    packed = task.logits(ids, everywhere, documents=documents, position_ids=places)
    alone = [task.logits(part, torch.arange(part.shape[1]).expand(2, -1)) for part in ids.split(LENGTHS, dim=1)]
    torch.testing.assert_close(packed, torch.cat(alone, dim=1))
    together = task.logits(ids, everywhere)
    assert not torch.allclose(packed, together)


def test_family_without_it_is_refused() -> None:
    for family, packing in (("deberta-v2", "separated"), ("bert", "documents")):
        config(model={"kind": "masked-lm", "config": families.keys(family)}, data={"kind": "text", "packing": packing})
    with pytest.raises(
        ConfigErrors,
        match=r"data.packing: 'documents': attention inside a document is not known for deberta-v2; write separated",
    ):
        config(
            model={"kind": "masked-lm", "config": families.keys("deberta-v2")},
            data={"kind": "text", "packing": "documents"},
        )


def pairs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "input_ids": torch.randint(5, 100, (3, 16), generator=generator),
        "masked_positions": torch.tensor([[1, 5], [2, 9], [3, 4]]), "labels": torch.tensor([[7, 8], [9, 10], [11, 12]]),
        "token_type_ids": (torch.arange(16) > 6).long().expand(3, -1), "next_sentence_label": torch.tensor([0, 1, 1]),
    }  # fmt: skip


@pytest.mark.parametrize("model", [
    {"kind": "bert", "size": "tiny"}, {"kind": "masked-lm", "config": families.keys("bert")}, {"kind": "masked-lm", "config": families.keys("ernie")},
], ids=["preset", "bert", "ernie"])  # fmt: skip
def test_loss_of_pairs_is_that_of_transformers(model: dict[str, Any]) -> None:
    torch.manual_seed(0)
    samples: Any = None
    data = Dataset(samples, samples, vocabulary_size=100, next_sentence=True)
    task = build(ModelConfig.model_validate(model), data).double().eval()
    given = pairs()
    losses, _ = task(**given)
    whole = task.model(given["input_ids"], token_type_ids=given["token_type_ids"])
    logits = whole.prediction_logits.gather(1, given["masked_positions"].unsqueeze(2).expand(-1, -1, 100))
    expected = functional.cross_entropy(logits.transpose(1, 2), given["labels"], reduction="none").mean(1)
    expected = expected + functional.cross_entropy(
        whole.seq_relationship_logits, given["next_sentence_label"], reduction="none"
    )
    torch.testing.assert_close(losses.double(), expected, rtol=1e-6, atol=1e-6)
    losses.mean().backward()
    assert task.model.cls.seq_relationship.weight.grad.abs().sum() > 0


def test_pairs_without_a_head_are_refused() -> None:
    with pytest.raises(ConfigErrors, match=r"data.next_sentence: True: transformers' roberta has no head for it"):
        config(
            model={"kind": "masked-lm", "config": families.keys("roberta")},
            data={"kind": "text", "next_sentence": True},
        )

"""Packed documents with attention inside each: as if each stood alone. And pairs of segments."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.nn.attention import flex_attention

from bellwether.trainer.config import ConfigErrors
from bellwether.trainer.config.schema import ModelConfig
from bellwether.trainer.data import Dataset
from bellwether.trainer.models import build, document_attention
from bellwether.trainer.models.architecture import DOCUMENT_ATTENTION
from bellwether.trainer.models.block_mask import document_mask
from bellwether.trainer.models.tasks import MaskedLanguageModelling, Task
from tests.ranks import Ranks
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


@pytest.fixture
def flex_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's flex_attention as plain tensor operations, with the backward pass that it refuses on the CPU."""
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *tensors: None)
    monkeypatch.setattr(document_attention, "_compiled", lambda: flex_attention.flex_attention)


@pytest.mark.parametrize(
    "family, lengths", [*((family, LENGTHS) for family in sorted(DOCUMENT_ATTENTION)), ("modernbert", (200, 30, 70))]
)
def test_flex_attention_has_the_results_and_gradients_of_the_dense_mask(
    make: Make, flex_on_cpu: None, monkeypatch: pytest.MonkeyPatch, family: str, lengths: tuple[int, ...]
) -> None:
    task = make("masked-lm", config=families.keys(family))
    assert isinstance(task, MaskedLanguageModelling)
    task.eval()
    ids = torch.randint(5, 100, (2, sum(lengths)), generator=torch.Generator().manual_seed(1))
    batch = {
        "documents": torch.repeat_interleave(torch.arange(3), torch.tensor(lengths)).expand(2, -1),
        "position_ids": torch.cat([torch.arange(n) for n in lengths]).expand(2, -1),
    }
    found = []
    for problem in ("it is asked for", None):
        monkeypatch.setattr(document_attention, "obstacle", lambda *args, problem=problem: problem)
        task.zero_grad()
        task._document_attention = document_attention.DocumentAttention(task.model)
        logits = task.logits(ids, torch.arange(0, sum(lengths), 3).expand(2, -1), **batch)
        logits.square().sum().backward()
        found.append([logits.detach(), *(p.grad for p in task.parameters() if p.grad is not None)])
    assert task.model.config._attn_implementation == document_attention.FLEX
    largest = max(float(dense.abs().max()) for dense in found[0])
    for dense, flex in zip(*found, strict=True):
        # Both in float32, whose sums of a few hundred terms they order differently. Some gradients are sums that cancel.
        torch.testing.assert_close(flex, dense, rtol=1e-4, atol=1e-6 * largest)


@pytest.mark.parametrize("window", [None, 1, 64, 128, 300])
@pytest.mark.parametrize("lengths", [(24,), (128, 128), (100, 300, 1, 240), (700,)], ids=str)
def test_blocks_are_those_that_documents_fill(lengths: tuple[int, ...], window: int | None) -> None:
    rows = torch.stack(
        [torch.repeat_interleave(torch.arange(len(n)), torch.tensor(n)) for n in (lengths, lengths[::-1])]
    )

    def dense(batch: Any, head: Any, query: Any, key: Any) -> Any:
        near = True if window is None else (query - key).abs() <= window
        return (rows[batch, query] == rows[batch, key]) & near

    length = rows.shape[1]
    ours, wanted = document_mask(rows, window), flex_attention.create_block_mask(dense, 2, None, length, length, "cpu")
    assert ours.shape == wanted.shape == (2, 1, length, length)
    for of in ("kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks"):
        assert torch.equal(getattr(ours, of), getattr(wanted, of)), of
    assert torch.equal(ours.to_dense(), wanted.to_dense())
    for of in ("kv", "full_kv"):
        for found, expected, counts in zip(
            *(getattr(mask, f"{of}_indices").flatten(0, 2) for mask in (ours, wanted)),
            getattr(wanted, f"{of}_num_blocks").flatten(),
            strict=True,
        ):
            assert torch.equal(found[:counts], expected[:counts])
    pairs_of_positions = torch.arange(length)
    given: Any = (torch.arange(2)[:, None, None], None, pairs_of_positions[:, None], pairs_of_positions[None])
    mask_mod: Any = ours.mask_mod
    assert torch.equal(mask_mod(*given), dense(*given))


def test_reasons_for_the_dense_mask_are_said(make: Make, flex_on_cpu: None, caplog: pytest.LogCaptureFixture) -> None:
    on_gpu: Any = SimpleNamespace(device=torch.device("cuda"))
    documents = torch.tensor([[0, 0, 1, 1]])
    bert = make("masked-lm", config=families.keys("bert")).model
    assert (
        document_attention.obstacle(bert, torch.float32, documents)
        == "torch's flex_attention has no backward pass on cpu"
    )
    found = document_attention.obstacle(bert, torch.float32, on_gpu)
    assert (
        found == "flex_attention has no dropout; it takes over where model.config has attention_probs_dropout_prob: 0"
    )
    modernbert = make("masked-lm", config=families.keys("modernbert")).model
    found = document_attention.obstacle(modernbert, torch.float32, on_gpu)
    assert found is not None
    assert found.startswith("flex_attention does not run here: AttributeError: ")  # which no tensor on a GPU has
    assert document_attention.difference(modernbert.config, torch.float32, documents) is None
    modernbert.has_compiled_layers = True
    found = document_attention.obstacle(modernbert, torch.float32, on_gpu)
    assert found == "engine.compile: layers has not been tried with flex_attention on a GPU"

    task: Any = make("masked-lm", config=families.keys("modernbert"))
    with caplog.at_level("INFO"):
        for _ in range(2):
            places = torch.arange(4)[None]
            task.logits(documents + 9, places, documents=documents, position_ids=places % 2)
    assert [line for line in caplog.messages if "inside documents" in line] == [
        "attention inside documents has a dense mask: torch's flex_attention has no backward pass on cpu"
    ]


def test_flex_attention_that_computes_something_else_is_not_used(
    make: Make, flex_on_cpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(document_attention, "document_mask", lambda documents: document_mask(documents * 0))
    config_ = make("masked-lm", config=families.keys("modernbert")).model.config
    found = document_attention.difference(config_, torch.float32, torch.tensor([[0, 0, 1, 1]]))
    assert found is not None
    assert found.startswith("flex_attention differs from it by ")


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


def test_loss_of_rows_that_mask_fewer_tokens_is_the_mean_over_these() -> None:
    torch.manual_seed(0)
    samples: Any = None
    section = ModelConfig.model_validate({"kind": "masked-lm", "config": families.keys("bert")})
    task = build(section, Dataset(samples, samples, vocabulary_size=100, next_sentence=True)).eval()
    given = pairs()
    few, _ = task(**{**given, "masked_positions": given["masked_positions"][:, :1], "labels": given["labels"][:, :1]})
    given["masked_positions"][:2, 1] = given["labels"][:2, 1] = 0
    both, correct = task(**given)
    counted, share = task(**given, masked_counts=torch.tensor([1, 1, 2]))
    torch.testing.assert_close(counted, torch.cat([few[:2], both[2:]]), rtol=1e-6, atol=1e-6)
    assert share[2] == correct[2]
    padded = {**given, "attention_mask": (torch.arange(16) < 9).long().expand(3, -1)}
    changed = {**padded, "input_ids": given["input_ids"].where(torch.arange(16) < 9, 7)}
    counts = torch.tensor([1, 1, 1])
    torch.testing.assert_close(task(**padded, masked_counts=counts)[0], task(**changed, masked_counts=counts)[0])


def test_pairs_without_a_head_are_refused() -> None:
    with pytest.raises(ConfigErrors, match=r"data.next_sentence: True: transformers' roberta has no head for it"):
        config(
            model={"kind": "masked-lm", "config": families.keys("roberta")},
            data={"kind": "text", "next_sentence": True},
        )


def agreed(*ranks_with_problem: int) -> str | None:
    rank = torch.distributed.get_rank()
    problem = f"of rank {rank}" if rank in ranks_with_problem else None
    return document_attention.of_all_ranks(problem, torch.device("cpu"))


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_ranks_take_the_dense_mask_together(ranks: Ranks) -> None:
    assert ranks.run(agreed) == [None, None]
    assert ranks.run(agreed, 1) == ["rank 1 cannot run flex_attention", "of rank 1"]
    assert ranks.run(agreed, 0, 1) == ["of rank 0", "of rank 1"]
    assert document_attention.of_all_ranks("without a process group", torch.device("cpu")) == "without a process group"

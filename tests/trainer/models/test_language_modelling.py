"""Language modelling with carried state: the same as one long sequence, however streams are split over micro-batches."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from bellwether.trainer.config.schema.evaluation import Evaluate
from bellwether.trainer.models.cache_pointer import CachePointer
from bellwether.trainer.models.language_modelling import LanguageModelling

VOCABULARY, HIDDEN = 11, 6


class TinyLanguageModel(nn.Module):
    """An LSTM with the interface of the recurrent language models."""

    def __init__(self, has_linear_head: bool = True) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, HIDDEN)
        self.lstm = nn.LSTM(HIDDEN, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, VOCABULARY)
        self.has_linear_head = has_linear_head

    def get_output_embeddings(self) -> nn.Module | None:
        return self.head if self.has_linear_head else None

    def initial_state(self, batch_size: int, device: Any = None, dtype: Any = None) -> dict[str, Tensor]:
        return {name: torch.zeros(batch_size, HIDDEN, device=device, dtype=dtype) for name in ("hidden", "cell")}

    def forward(self, input_ids: Tensor, state: dict[str, Tensor]) -> Any:
        before = (state["hidden"][None], state["cell"][None])
        hidden, (h, c) = self.lstm(self.embedding(input_ids), before)
        return SimpleNamespace(last_hidden_state=hidden, raw_hidden_state=hidden, state={"hidden": h[0], "cell": c[0]})

    def decode(self, hidden: Tensor) -> Tensor:
        return self.head(hidden)

    def regularisation(self, output: Any) -> Tensor:
        return output.raw_hidden_state.pow(2).mean(dim=(1, 2))


STREAMS, LENGTH, WINDOWS = 6, 5, 3


@pytest.fixture
def task() -> LanguageModelling:
    torch.manual_seed(0)
    return LanguageModelling(TinyLanguageModel())


@pytest.fixture
def tokens() -> Tensor:
    torch.manual_seed(1)
    return torch.randint(VOCABULARY, (STREAMS, LENGTH * WINDOWS + 1))


def batch(tokens: Tensor, window: int, streams: list[int]) -> dict[str, Tensor]:
    begin, end = window * LENGTH, (window + 1) * LENGTH
    return {
        "input_ids": tokens[streams, begin:end], "labels": tokens[streams, begin + 1 : end + 1],
        "streams": torch.tensor(streams), "starts": torch.full((len(streams),), window == 0),
    }  # fmt: skip


def of_one_sequence(task: LanguageModelling, tokens: Tensor, regularised: bool) -> Tensor:
    """Losses [streams, windows] of each whole stream at once, in float64."""
    model = task.model
    output = model(tokens[:, :-1], model.initial_state(STREAMS))
    log_probabilities = functional.linear(output.last_hidden_state, model.head.weight, model.head.bias).double()
    losses = functional.cross_entropy(log_probabilities.transpose(1, 2), tokens[:, 1:], reduction="none")
    losses = losses.reshape(STREAMS, WINDOWS, LENGTH).mean(2)
    if regularised:
        losses = losses + output.raw_hidden_state.reshape(STREAMS, WINDOWS, -1).pow(2).mean(2)
    return losses


@pytest.mark.parametrize("micro_batches", [[[0, 1, 2, 3, 4, 5]], [[0, 1], [2, 3], [4, 5]], [[5], [1, 2]]])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_windows_one_after_the_other_are_one_long_sequence(
    task: LanguageModelling, tokens: Tensor, micro_batches: list[list[int]], mode: str
) -> None:
    task.train(mode == "train")
    own = sorted(stream for streams in micro_batches for stream in streams)
    expected = of_one_sequence(task, tokens, regularised=mode == "train")
    task.carry(own, STREAMS, torch.device("cpu"))
    for _ in range(2):  # a second epoch begins from zero
        for window in range(WINDOWS):
            for streams in micro_batches:
                losses, correct = task(**batch(tokens, window, streams))
                assert torch.allclose(losses.double(), expected[streams, window], atol=1e-6)
                assert correct.shape == (len(streams),)
                if mode == "train":
                    losses.mean().backward()  # the gradient ends at the window


def test_an_evaluation_leaves_the_state_of_training(task: LanguageModelling, tokens: Tensor) -> None:
    streams = list(range(STREAMS))
    task.carry(streams, STREAMS, torch.device("cpu"))
    task(**batch(tokens, 0, streams))
    assert task.carried is not None
    before = {name: tensor.clone() for name, tensor in task.carried.tensors.items()}
    task.eval()
    for _ in range(2):
        task(**batch(tokens, 1, streams))
    task.train()
    assert all(torch.equal(before[name], tensor) for name, tensor in task.carried.tensors.items())
    assert any(tensor.abs().sum() > 0 for tensor in before.values())


def test_head_of_another_kind_computes_the_same_losses(task: LanguageModelling, tokens: Tensor) -> None:
    other = LanguageModelling(TinyLanguageModel(has_linear_head=False))
    other.load_state_dict(task.state_dict())
    given = batch(tokens, 0, list(range(STREAMS)))
    for ours, theirs in zip(task(**given), other(**given), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_slices_of_ranks_are_the_whole_state(task: LanguageModelling) -> None:
    whole = {name: torch.zeros(STREAMS * HIDDEN) for name in ("hidden", "cell")}
    for streams in ([0, 1, 4], [2, 3, 5]):
        task.carry(streams, STREAMS, torch.device("cpu"))
        assert task.carried is not None
        for table in task.carried.tensors.values():
            table.copy_(torch.tensor(streams)[:, None].expand(-1, HIDDEN))
        slices = list(task.carried.slices())
        assert len(slices) == 4  # two runs of streams in each tensor
        for name, start, values in slices:
            whole[name][start : start + len(values)] = values
    assert task.carried is not None
    assert task.carried.shapes() == {"hidden": [STREAMS, HIDDEN], "cell": [STREAMS, HIDDEN]}
    assert all(torch.equal(v.view(STREAMS, HIDDEN)[:, 0], torch.arange(6.0)) for v in whole.values())


def test_cache_pointer_goes_on_from_window_to_window(task: LanguageModelling, tokens: Tensor) -> None:
    keys = {"window": 7, "theta": 0.5, "share": 0.2}
    task.prepare_evaluation(Evaluate(cache_pointer=keys))
    assert task.further_losses == ("cache",)
    task.eval()
    model = task.model
    hidden = model(tokens[:, :-1], model.initial_state(STREAMS)).last_hidden_state
    losses = functional.cross_entropy(model.head(hidden).transpose(1, 2), tokens[:, 1:], reduction="none")
    pointer = CachePointer(**keys)
    expected, _ = pointer.losses(losses, hidden, tokens[:, 1:], pointer.empty(hidden))
    for _ in range(2):  # a second evaluation begins with an empty cache
        for window in range(WINDOWS):
            for streams in ([0, 1], [2, 3, 4, 5]):
                found = task(**batch(tokens, window, streams))[2]
                wanted = expected[streams, window * LENGTH : (window + 1) * LENGTH].mean(1, keepdim=True)
                assert torch.allclose(found, wanted, atol=1e-5)
    assert len(task.train()(**batch(tokens, 0, [0]))) == 2
    assert task.results(0.0, math.log(2)) == {"perplexity": 1.0, "perplexity_cache": pytest.approx(2.0)}

"""Parallel streams of tokens: which tokens a step sees, on any number of ranks, and what is left over or refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bellwether.trainer.config import ConfigError, ConfigErrors
from bellwether.trainer.data import arranged, load, stream_samples
from bellwether.trainer.data.loader import evaluation_batches, train_batches
from bellwether.trainer.data.packing import Stream, ends_path
from bellwether.trainer.data.stream_samples import StreamSamples
from bellwether.trainer.data.summary_lines import lines
from bellwether.trainer.data.token_stream import TokenStreamData
from bellwether.trainer.data.window_lengths import MOST_ABOVE, WindowLengths, draw, mean_length
from tests.trainer.labelled import save_tokenizer

TOKENS = 1000


@pytest.fixture
def samples(tmp_path: Path) -> StreamSamples:
    """Windows of 7 of the tokens 0, 1, 2, ..."""
    np.arange(TOKENS, dtype=np.uint16).tofile(tmp_path / "train.bin")
    np.array([TOKENS], dtype=np.int64).tofile(ends_path(tmp_path / "train.bin"))
    return StreamSamples(Stream(tmp_path / "train.bin", "uint16"), 7)


def batches(samples: StreamSamples, micro: int, world_size: int, start: int = 0, steps: int = 50) -> list[list[Any]]:
    """The batches of each rank, of a global batch of 12."""
    return [
        list(
            train_batches(
                samples, seed=1, start=start, steps=steps, global_batch=12, micro=micro, accumulation=12 // micro // world_size,
                rank=rank, world_size=world_size, workers=0,
            )
        )
        for rank in range(world_size)
    ]  # fmt: skip


@pytest.mark.parametrize(("micro", "world_size"), [(12, 1), (2, 1), (3, 2), (1, 4)])
def test_a_step_sees_the_same_windows_on_any_number_of_ranks(
    samples: StreamSamples, micro: int, world_size: int
) -> None:
    predicted = (TOKENS - 1) // 12  # of each stream
    windows = predicted // 7
    found = batches(samples, micro, world_size, steps=windows + 2)
    accumulation = 12 // micro // world_size
    for step in range(windows + 2):
        parts = [each for rank in found for each in rank[step * accumulation : (step + 1) * accumulation]]
        window = step % windows  # the streams begin again
        whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        order = whole["streams"].argsort()
        assert whole["streams"][order].tolist() == list(range(12))
        expected = torch.arange(12)[:, None] * predicted + window * 7 + torch.arange(7)
        assert torch.equal(whole["input_ids"][order], expected)
        assert torch.equal(whole["labels"][order], expected + 1)
        assert bool(whole["starts"].all() if window == 0 else not whole["starts"].any())
    for rank in found:  # each rank keeps its streams
        assert len({tuple(batch["streams"].tolist()) for batch in rank}) == accumulation


def test_window_lengths_are_drawn_once_for_the_loop_and_the_loader(
    samples: StreamSamples, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[WindowLengths] = []

    def counted(*args: Any) -> WindowLengths:
        made.append(WindowLengths(*args))
        return made[-1]

    monkeypatch.setattr(stream_samples, "WindowLengths", counted)
    of_loop = replace(samples, varies=True).arranged(12, 1)
    assert of_loop.lr_factor(0) > 0
    assert len(list(batches(of_loop, 12, 1, steps=3)[0])) == 3
    assert len(made) == 1


def test_first_token_of_a_step_is_that_of_its_window(samples: StreamSamples) -> None:
    of_twelve = samples.arranged(12, 1)
    begins = [int(batch["input_ids"][0, 0]) for batch in batches(samples, 12, 1, steps=15)[0]]
    assert [of_twelve.first_token(step) for step in range(15)] == begins


def test_streams_continue_at_any_step(samples: StreamSamples) -> None:
    (whole,), (rest,) = batches(samples, 12, 1, steps=15), batches(samples, 12, 1, start=9 * 12, steps=6)
    for a, b in zip(whole[9:], rest, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_an_epoch_is_all_windows_and_the_rest_is_counted(samples: StreamSamples) -> None:
    of_twelve = samples.arranged(12, 0)
    assert (len(of_twelve), of_twelve.left_over) == (12 * 11, 999 - 12 * 11 * 7)
    assert len(arranged(samples, 12)) == 12 * 11
    with pytest.raises(ConfigError, match=r"batch\.global: 143: the text has 1,000 tokens.*write at most 142"):
        samples.arranged(143, 0)
    assert len(samples.arranged(142, 0)) == 142


@pytest.mark.parametrize(("micro", "world_size"), [(10, 1), (4, 1), (2, 2), (4, 3), (1, 4)])
def test_held_out_streams_are_whole_and_stay_on_a_rank(samples: StreamSamples, micro: int, world_size: int) -> None:
    held_out = StreamSamples(samples.stream, 7, 10, ragged=True)
    assert held_out.left_over == 9
    seen: dict[int, list[int]] = {}
    owner: dict[int, int] = {}
    counts, total = set(), 0.0
    for rank in range(world_size):
        found = list(evaluation_batches(held_out, limit=None, micro=micro, rank=rank, world_size=world_size, workers=0))
        counts.add(len(found))
        for batch in found:
            total += float(batch["weight"].sum())
            for row, (stream, weight) in enumerate(
                zip(batch["streams"].tolist(), batch["weight"].tolist(), strict=True)
            ):
                if weight:
                    assert owner.setdefault(stream, rank) == rank
                    assert weight == pytest.approx(batch["input_ids"].shape[1] / 7)
                    seen.setdefault(stream, []).extend(batch["input_ids"][row].tolist())
                    assert torch.equal(batch["labels"][row], batch["input_ids"][row] + 1)
    assert len(counts) == 1
    assert dict(sorted(seen.items())) == {stream: list(range(stream * 99, (stream + 1) * 99)) for stream in range(10)}
    assert total == pytest.approx(990 / 7)


def test_a_limit_takes_the_first_windows_of_each_stream(samples: StreamSamples) -> None:
    held_out = StreamSamples(samples.stream, 7, 10, ragged=True)
    found = list(evaluation_batches(held_out, limit=25, micro=10, rank=0, world_size=1, workers=0))
    assert [batch["input_ids"][1].tolist() for batch in found] == [list(range(99, 106)), list(range(106, 113))]


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., TokenStreamData]:
    text = ["a b c d", "a b c", "a b <unk> E", "a, b"] * 20 + ["once twice", "twice"]
    (tmp_path / "text.txt").write_text("\n".join(text))
    (tmp_path / "held.txt").write_text("b c a zzz a b c\n")

    def make(**keys: Any) -> TokenStreamData:
        defaults = {"source": str(tmp_path / "text.txt"), "validation": str(tmp_path / "held.txt")}
        return TokenStreamData(
            kind="token-stream", cache=str(tmp_path / "cache"),
            **{**defaults, "length": 4, "validation_streams": 2, "max_unknown": 1.0, **keys},
        )  # fmt: skip

    return make


def test_the_vocabulary_is_the_frequent_words_of_the_training_text(config: Callable[..., TokenStreamData]) -> None:
    data = load(config())
    assert data.tokenizer.convert_ids_to_tokens(range(data.vocabulary_size or 0)) == [
        "<unk>", "<eos>", "b", "a", "c", "E", "a,", "d",
    ]  # fmt: skip
    assert isinstance(data.validation, StreamSamples)
    stream = data.validation.stream
    read = data.tokenizer.convert_ids_to_tokens(stream.read(np.arange(len(stream))))
    assert read == ["b", "c", "a", "<unk>", "a", "b", "c", "<eos>"]
    assert data.summary is not None
    assert "(token-stream)" in lines(data.summary)[0]
    assert data.summary.held_out["validation"].unknown_tokens == 1
    by_punctuation = load(config(words="punctuation", minimum_count=1, lowercase=True)).tokenizer
    assert {",", "e", "once"} <= set(by_punctuation.get_vocab())


def test_text_that_cannot_be_streams_is_refused(
    config: Callable[..., TokenStreamData], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ConfigError, match=r"data\.validation_streams: 8: the held-out text has 8 tokens"):
        load(config(validation_streams=8))
    with pytest.raises(ConfigError, match=r"data\.minimum_count: 1000: no word occurs 1,000 times"):
        load(config(minimum_count=1000))
    with pytest.raises(
        ConfigErrors, match=r"are \[UNK\].*; lower data\.minimum_count, split text .*, choose another"
    ) as refused:
        load(config(minimum_count=60, max_unknown=0.05))
    assert "data.source" in str(refused.value)
    with pytest.raises(ConfigError, match=r"data\.length: 5000: the text does not fill one window"):
        load(config(length=5000))
    with pytest.raises(ValueError, match="words: belongs to tokenizer: words"):
        config(tokenizer="train", words="punctuation")


def test_a_given_tokenizer_ends_documents_with_its_separator(
    config: Callable[..., TokenStreamData], tmp_path: Path
) -> None:
    save_tokenizer(tmp_path / "tokenizer")
    data = load(config(tokenizer=str(tmp_path / "tokenizer")))
    assert isinstance(data.train, StreamSamples)
    assert data.train.stream.separator == data.tokenizer.sep_token_id


@pytest.mark.full
@pytest.mark.process
def test_workers_prepare_the_same_windows(samples: StreamSamples) -> None:
    given: dict[str, Any] = {
        "seed": 1,
        "start": 24,
        "steps": 3,
        "global_batch": 12,
        "micro": 3,
        "accumulation": 2,
        "rank": 1,
    }
    alone, with_workers = (list(train_batches(samples, **given, world_size=2, workers=n)) for n in (0, 2))
    assert len(alone) == 6
    for a, b in zip(alone, with_workers, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_start_inside_a_step_is_no_start(samples: StreamSamples) -> None:
    with pytest.raises(ValueError, match="sample 5 is inside a step of 12 streams"):
        batches(samples, 12, 1, start=5, steps=1)


def test_lengths_of_windows_have_the_distribution_of_the_paper() -> None:
    lengths = np.array(draw(3, 70, range(20_000)))
    halved = lengths < 52
    assert halved.mean() == pytest.approx(0.05, abs=0.01)
    for part, mean in ((lengths[~halved], 69.5), (lengths[halved], 34.5)):  # numbers are cut to integers
        assert part.mean() == pytest.approx(mean, abs=0.5)
        assert part.std() == pytest.approx(5, abs=0.5)
    assert lengths.mean() == pytest.approx(mean_length(70), abs=0.7)
    assert lengths.max() <= 70 + MOST_ABOVE
    assert min(draw(3, 8, range(2000))) == 5


@pytest.mark.parametrize(("micro", "world_size"), [(12, 1), (3, 2)])
def test_windows_of_varying_length_follow_one_another(tmp_path: Path, micro: int, world_size: int) -> None:
    count = 30_000
    np.arange(count, dtype=np.uint16).tofile(tmp_path / "train.bin")
    np.array([count], dtype=np.int64).tofile(ends_path(tmp_path / "train.bin"))
    samples = StreamSamples(Stream(tmp_path / "train.bin", "uint16"), 70, varies=True)
    predicted, steps = (count - 1) // 12, 80
    found = [rank[:: 12 // micro // world_size] for rank in batches(samples, micro, world_size, steps=steps)]
    begins = [0]
    for step in range(steps):
        lengths = {rank[step]["input_ids"].shape[1] for rank in found}
        assert len(lengths) == 1
        (length,) = lengths
        batch = found[0][step]
        assert batch["input_ids"][0].tolist() == list(range(begins[-1], begins[-1] + length))
        assert bool(batch["starts"].all()) == (begins[-1] == 0)
        assert samples.arranged(12, 1).lr_factor(step) == length / 70
        assert samples.arranged(12, 1).first_token(step) == begins[-1]
        begins.append((begins[-1] + length) % predicted)
    assert begins.count(0) == 3, "the streams begin again where they end"
    assert len(samples.arranged(12, 1)) == 12 * round(predicted / mean_length(70))
    later = batches(samples, 12, 1, start=50 * 12, steps=1)[0][0]
    assert later["input_ids"][0, 0] == begins[50]

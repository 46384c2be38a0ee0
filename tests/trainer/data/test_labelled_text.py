"""Labelled text: what a batch holds, how classes are numbered, and what is refused or counted."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Features, Value
from pydantic import ValidationError

from bellwether.trainer import data
from bellwether.trainer.config import ConfigError
from bellwether.trainer.config.errors import ConfigErrors
from bellwether.trainer.data import labelled_samples
from bellwether.trainer.data.labelled_text import LabelledText
from bellwether.trainer.data.loader import train_batches
from tests.trainer.labelled import topics, write


@pytest.fixture
def make(tmp_path: Path, tokenizer: Path) -> Callable[..., LabelledText]:
    def config(rows: list[dict[str, Any]], held_out: list[dict[str, Any]] | None = None, **keys: Any) -> LabelledText:
        features = keys.pop("features", None)
        files = {"source": write(tmp_path / "train.parquet", rows, features)}
        if held_out is not None:
            files["validation"] = write(tmp_path / "dev.parquet", held_out)
        defaults = {
            "tokenizer": str(tokenizer),
            "cache": str(tmp_path / "cache"),
            "max_overlap": 1.0,
            "sequence_length": 16,
        }
        return LabelledText(kind="labelled-text", **{**files, **defaults, **keys})

    return config


def rows_of(labels: list[Any], text: str = "w1 w2 w3") -> list[dict[str, Any]]:
    return [{"text": f"{text} w{index}", "label": label} for index, label in enumerate(labels)]


def test_batch_of_pairs_is_padded_to_a_multiple_of_eight(make: Callable[..., LabelledText]) -> None:
    rows = [{"a": "w1 w2", "b": "w3", "label": "no"}, {"a": "w4", "b": "w5 w6 w7 w8 w9 w10", "label": "yes"}]
    dataset = make(rows, rows, text_columns=["a", "b"]).load()
    assert dataset.labels == ["no", "yes"]
    batch = dataset.train.batch([0, 1], [0, 0])
    word = 4  # before the first one there are 5 special tokens
    short = [2, word + 2, word + 3, 3, word + 4, 3]
    long = [2, word + 5, 3, *(word + 1 + w for w in range(5, 11)), 3]
    assert batch["input_ids"].tolist() == [short + [0] * 10, long + [0] * 6]
    assert batch["attention_mask"].tolist() == [[1] * 6 + [0] * 10, [1] * 10 + [0] * 6]
    assert batch["token_type_ids"].tolist() == [[0] * 4 + [1] * 2 + [0] * 10, [0] * 3 + [1] * 7 + [0] * 6]
    assert batch["labels"].tolist() == [0, 1]
    assert dataset.train.batch([0], [0])["input_ids"].shape == (1, 8)


def test_of_a_pair_the_longer_text_is_cut_first(make: Callable[..., LabelledText]) -> None:
    rows = [{"a": " ".join(["w1"] * 30), "b": "w2 w3", "label": str(n)} for n in range(2)]
    dataset = make(rows, rows, text_columns=["a", "b"]).load()
    ids = dataset.train.batch([0], [0])["input_ids"][0].tolist()
    assert ids == [2, *[6] * 11, 3, 7, 8, 3]
    assert dataset.summary is not None
    assert "2 texts longer than data.sequence_length: cut to 16 tokens" in map(str, dataset.summary.source.findings)


CLASSES: list[tuple[list[Any], list[str]]] = [
    (["b", "a", "b", "c"], ["a", "b", "c"]),
    ([10, 2, 10, 1], ["1", "2", "10"]),  # by number, not by text
    ([True, False, True, True], ["false", "true"]),
    (["1", "0", "0", "1"], ["0", "1"]),
    (["01", "1", "2", "1"], ["01", "1", "2"]),  # leading zeros are part of a name
    ([0, 5, 7, 5], ["0", "5", "7"]),
    (["NA", "null", "None", "NA"], ["NA", "None", "null"]),  # pandas would read nulls
    ([10**18, 1, 10**18, 1], ["1", "1000000000000000000"]),
]


@pytest.mark.parametrize(("labels", "names"), CLASSES)
def test_classes_have_a_fixed_order(make: Callable[..., LabelledText], labels: list[Any], names: list[str]) -> None:
    dataset = make(rows_of(labels), rows_of(labels)).load()
    assert dataset.labels == names
    found = dataset.train.batch(range(4), range(4))["labels"]
    assert [names[i] for i in found] == [
        str(label).lower() if isinstance(label, bool) else str(label) for label in labels
    ]


def test_class_label_feature_keeps_the_order_of_the_file(make: Callable[..., LabelledText]) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["negative", "neutral", "positive"])})
    config = make(rows_of([2, 0, 2, 1, 0]), features=features, validation_share=0.2)
    assert config.load().labels == ["negative", "neutral", "positive"]


def test_class_of_the_file_without_rows_is_refused(make: Callable[..., LabelledText]) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["negative", "neutral", "positive"])})
    config = make(rows_of([2, 0, 2, 0, 0]), features=features, validation_share=0.2)
    with pytest.raises(
        ConfigErrors, match=r"1 of 3 classes have no rows: neutral; add rows, or write data\.allow_empty"
    ):
        data.load(config)
    assert data.load(config.model_copy(update={"allow_empty_classes": True})).classes == 3
    config = make(rows_of(["a"] * 30 + ["b"]), validation_share=0.9)
    summary = data.load(config.model_copy(update={"max_overlap": 1.0})).summary
    assert summary is not None
    assert "1 classes whose rows are all held out: not trained on (b)" in map(str, summary.source.findings)


def test_labels_of_a_regression_are_numbers(make: Callable[..., LabelledText]) -> None:
    dataset = make(rows_of([0, 3, 5]), rows_of([1.5, 2.25, 4.0]), task="regression").load()
    assert dataset.classes is None
    assert dataset.labels is None
    assert dataset.train.batch([0, 1], [0, 0])["labels"].dtype == torch.float32
    assert dataset.validation.batch([1, 2], [0, 0])["labels"].tolist() == [2.25, 4.0]


GOOD = rows_of(["a", "b"])
REFUSED: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, Any], str]] = {
    "column": (GOOD, GOOD, {"text_columns": ["sentence"]}, r"data\.text_columns: 'sentence': .*train\.parquet has no column 'sentence'; it has: text, label"),
    "label column": (GOOD, rows_of(["a"]), {"label_column": "y"}, r"data\.label_column: 'y': .*train\.parquet has no column 'y'"),
    "no text": ([{"text": ["w1"], "label": "a"}, {"text": ["w2"], "label": "b"}], GOOD, {}, r"has no rows with text; 2 unreadable rows"),
    "missing label": (rows_of(["a", "b", None]), GOOD, {}, r"train\.parquet, row 3 has no label \(None\)"),
    "unlabelled": (rows_of([0, 1]), rows_of([1, -1]), {}, r"dev\.parquet, row 2 has no label \(-1\)"),
    "new class": (GOOD, rows_of(["a", "b", "c"]), {}, r"dev\.parquet, row 3 holds 'c', which is no class of the training data: a, b"),
    "fractions": (rows_of([0.5, 1.5]), GOOD, {}, r"holds fractions, not classes; write data\.task: regression"),
    "one class": (rows_of(["a", "a"]), GOOD, {}, r"data\.label_column: 'label': has one class, 'a'"),
    "lists": (rows_of([["a"], ["b"]]), GOOD, {}, "holds lists, not one label a row"),
    "bytes": (rows_of([b"a", b"b"]), GOOD, {}, "holds values of type bytes, not one label a row"),
    "objects": (rows_of([{"a": 1}, {"a": 2}]), GOOD, {}, "holds objects, not one label a row"),
    "dates": (rows_of([date(2026, 1, 1), date(2026, 1, 2)]), GOOD, {}, "holds values of type date, not one label"),
    "whole fractions": (rows_of([0.0, 1.0]), GOOD, {}, "holds fractions, not classes"),
    "nulls alone": (rows_of([None, None]), GOOD, {}, "has no labels"),
    "empty label": (rows_of(["a", "", "b"]), GOOD, {}, r"row 2 has no label \(''\)"),
    "another case": (GOOD, rows_of(["A", "b"]), {}, "row 1 holds 'A', which is no class of the training data: a, b"),
    "another form of Unicode": (rows_of(["caf\u00e9", "b"]), rows_of(["cafe\u0301"]), {}, "row 1 holds .* which is no class"),
    "true for 1": (rows_of([0, 1]), rows_of([True]), {}, "row 1 holds True, which is no class"),
    "beyond float32": (rows_of([1.0, 1e39]), rows_of([1.0]), {"task": "regression"}, "row 2 holds 1e[+]39, not a number"),
    "infinity": (rows_of([1.0, float("inf")]), rows_of([1.0]), {"task": "regression"}, "row 2 holds inf, not a number"),
    "decimal comma": (rows_of(["1.0", "0,5"]), rows_of(["1"]), {"task": "regression"}, "row 2 holds '0,5', not a number"),
    "words": (GOOD, GOOD, {"task": "regression"}, r"train\.parquet, row 1 holds 'a', not a number"),
    "nan": (rows_of([1.0, float("nan")]), rows_of([1.0, 2.0]), {"task": "regression"}, r"train\.parquet, row 2 holds nan, not a number"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_bad_labels_and_columns_are_refused(make: Callable[..., LabelledText], case: str) -> None:
    rows, held_out, keys, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message):
        make(rows, held_out, **keys).load()


def test_config_needs_a_tokenizer_and_distinct_columns(make: Callable[..., LabelledText]) -> None:
    with pytest.raises(ValidationError, match=r"tokenizer: none is named, and no model\.init"):
        make(GOOD, tokenizer="init")
    with pytest.raises(ValidationError, match="text_columns: 'text' is named twice"):
        make(GOOD, text_columns=["text", "text"])


def test_empty_texts_and_classes_are_counted(make: Callable[..., LabelledText]) -> None:
    rows = [{"text": "", "label": "a"}, {"text": None, "label": "b"}, {"text": "w1", "label": "a"}]
    summary = make(rows, GOOD).load().summary
    assert summary is not None
    assert summary.source.classes == {"a": 2, "b": 1}
    assert any(str(found).startswith("2 empty texts: kept") for found in summary.source.findings)
    assert summary.rows_held_out == {"validation": 2}


def batches_of(
    samples: labelled_samples.LabelledSamples, world: int, micro: int, steps: int
) -> list[list[dict[str, torch.Tensor]]]:
    """The micro-batches of each rank, for a global batch of 32."""
    return [
        list(
            train_batches(
                samples, seed=1, start=7, steps=steps, global_batch=32, micro=micro, accumulation=32 // micro // world, rank=rank,
                world_size=world, workers=0,
            )
        )
        for rank in range(world)
    ]  # fmt: skip


def test_micro_batches_are_of_like_length_and_the_global_batch_is_the_same(make: Callable[..., LabelledText]) -> None:
    train = make(topics(90), sequence_length=40).load().train
    assert isinstance(train, labelled_samples.LabelledSamples)

    def texts(batches: list[dict[str, torch.Tensor]]) -> list[tuple[int, ...]]:
        return sorted(tuple(row[row != 0].tolist()) for batch in batches for row in batch["input_ids"])

    def tokens(ranks: list[list[dict[str, torch.Tensor]]]) -> int:
        return sum(batch["input_ids"].numel() for batches in ranks for batch in batches)

    whole = batches_of(train, 1, 32, 5)
    for world, micro in ((1, 4), (2, 4), (4, 2)):
        split = batches_of(train, world, micro, 5)
        each = 32 // micro // world
        for step in range(5):
            of_step = [batch for rank in split for batch in rank[step * each : (step + 1) * each]]
            assert texts(of_step) == texts(whole[0][step : step + 1])
        real = int(np.sum([(b["input_ids"] != 0).sum() for rank in split for b in rank]))
        assert tokens(split) < 1.3 * real < tokens(whole)


CSV = 'text,label\nw1 w2,yes\nNA,no\n"w3, w4",NULL\n'
FILES: dict[str, tuple[str, dict[str, Any]]] = {
    "a.csv": (CSV, {}),
    "a.tsv": ("text\tlabel\nw1 w2\tyes\nNA\tno\nw3, w4\tNULL\n", {}),
    "a.jsonl": ('{"text": "w1 w2", "label": "yes"}\n{"text": "NA", "label": "no"}\n{"text": "w3, w4", "label": "NULL"}\n', {}),
    "a.json": ('[{"text": "w1 w2", "label": "yes"}, {"text": "NA", "label": "no"}, {"text": "w3, w4", "label": "NULL"}]', {}),
    # The sentences of GLUE's CoLA have no header.
    "cola.tsv": ("gj04\tyes\t\tw1 w2\ngj04\tno\t*\tNA\ngj04\tNULL\t\tw3, w4\n", {"column_names": ["source", "label", "star", "text"]}),
    "quotes.tsv": ('text\tlabel\nw1 w2\tyes\nNA\tno\n"w3, w4\tNULL\n', {}),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_files_of_every_format_hold_the_same_rows(tmp_path: Path, tokenizer: Path, name: str) -> None:
    """Words such as NA and NULL are text and classes, not missing values."""
    content, keys = FILES[name]
    (tmp_path / name).write_text(content)
    config = LabelledText(
        kind="labelled-text", source=str(tmp_path / name), validation=str(tmp_path / name), tokenizer=str(tokenizer),
        cache=str(tmp_path / "cache"), max_overlap=1.0, max_unknown=1.0, **keys,
    )  # fmt: skip
    dataset = config.load()
    assert dataset.labels == ["NULL", "no", "yes"]
    assert dataset.train.batch([0, 1, 2], [0] * 3)["labels"].tolist() == [2, 1, 0]
    assert dataset.train.batch([0], [0])["input_ids"][0, :4].tolist() == [2, 6, 7, 3]
    assert len(dataset.train) == 3


def test_numbers_in_text_files_are_classes_in_the_order_of_numbers_or_values(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\nw1,10\nw2,9\nw3,-1\n")
    common = {"source": str(tmp_path / "a.csv"), "validation": str(tmp_path / "a.csv"), "tokenizer": str(tokenizer)}
    common |= {"cache": str(tmp_path / "cache"), "max_overlap": 1.0}
    assert LabelledText(kind="labelled-text", **common).load().labels == ["-1", "9", "10"]
    regression = LabelledText(kind="labelled-text", task="regression", **common).load()
    assert regression.train.batch([0, 1, 2], [0] * 3)["labels"].tolist() == [10.0, 9.0, -1.0]


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + bytes(200) + b"PAR1"], ids=["empty", "cut", "damaged"])
def test_damaged_parquet_file_is_named(tmp_path: Path, tokenizer: Path, content: bytes) -> None:
    (tmp_path / "a.parquet").write_bytes(content)
    config = LabelledText(
        kind="labelled-text", source=str(tmp_path / "a.parquet"), tokenizer=str(tokenizer), cache=str(tmp_path / "cache")
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"data\.source: .*a\.parquet cannot be read: is "):
        config.load()

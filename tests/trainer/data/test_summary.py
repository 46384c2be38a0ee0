from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bellwether.cli import main
from bellwether.trainer.config.errors import ConfigErrors
from bellwether.trainer.data import load
from bellwether.trainer.data.summary import DataSummary, SourceSummary, refusals
from bellwether.trainer.data.summary_lines import lines
from bellwether.trainer.data.text import TextData
from bellwether.trainer.data.tokenizer import SPECIAL

Config = Callable[..., TextData]

THAI = ["สวัสดี", "ครับ", "ภาษา", "ไทย", "บ้าน", "แมว", "หมา"]


def words(count: int, first: int = 0) -> list[str]:
    return [f"number {i} and some more words of line {i * i}" for i in range(first, first + count)]


@pytest.fixture
def vocabulary(tmp_path: Path) -> Path:
    file = tmp_path / "vocabulary.txt"
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789"]
    file.write_text("\n".join([*SPECIAL, *letters, *("##" + c for c in letters)]) + "\n")
    return file


def test_summary_counts_what_was_read(tmp_path: Path, text_config: Config, vocabulary: Path) -> None:
    folder = tmp_path / "texts"
    (folder / ".git").mkdir(parents=True)
    (folder / ".git" / "a.txt").write_text("hidden")
    (folder / "README.md").write_text("not read")
    (folder / "deep").mkdir()
    (folder / "deep" / "b.txt").write_text("\n".join(words(50, 100)))
    (folder / "a.txt").write_text("\n".join([*words(100), *words(3)]) + "\n")
    config = text_config(source=str(folder), tokenizer=str(vocabulary), cache=str(tmp_path / "cache"))
    summary = load(config).summary
    assert summary is not None
    value = summary.to_json()
    assert (value["files_read"], value["files_ignored"]) == (2, {".md": 1})
    assert (value["rows"], value["documents"], value["rows_train"], value["rows_held_out"]["validation"]) == (
        153, 153, 145, 8,
    )  # fmt: skip
    assert value["duplicates_train"] + value["duplicates_held_out"] == 3
    assert (value["longest"], value["shortest"]) == (len(words(150)[149]), len(words(1)[0]))
    assert value["unknown_share"] == 0
    assert value["tokens"] == sum(len(c.replace(" ", "")) for c in [*words(50, 100), *words(100), *words(3)])
    assert sum(value["histogram"].values()) == 153
    assert [(f["what"], f["count"]) for f in value["findings"]] == [
        ("text files of lines", 2), ("hidden folders", 1)
    ]  # fmt: skip
    text = "\n".join(lines(summary))
    assert "README.md" in text
    assert str(folder / ".git") in text

    (folder / "more.log").write_text("comes later")
    found = load(config).summary
    assert found is not None
    assert found.source.files_ignored == {".md": 1, ".log": 1}, (
        "what is not read is listed anew, without preparing again"
    )
    assert len(list((tmp_path / "cache").glob("tokens-*/key.json"))) == 1


@pytest.mark.parametrize("keys, message", [
    ({}, r"data.source: .*thai.txt': 100.0% of the tokens are \[UNK\].*data.max_unknown; it is 0.05"),
    ({"source": "plain.txt", "validation": "thai.txt"}, r"data.validation: '.*thai.txt': 100.0% of the tokens are \[UNK\]"),
    ({"source": "plain.txt", "validation": "plain.txt"}, "data.validation: 300 of 300 held-out rows .100.0%. are training"),
    ({"max_unknown": 1.0}, None),
    ({"source": "plain.txt", "validation": "plain.txt", "max_overlap": 1.0}, None),
    ({"source": "plain.txt"}, None),
])  # fmt: skip
def test_counts_beyond_a_limit_are_refused(
    tmp_path: Path, text_config: Config, vocabulary: Path, keys: dict[str, Any], message: str | None
) -> None:
    (tmp_path / "thai.txt").write_text("\n".join(f"{a} {b} {c}" for a in THAI for b in THAI for c in THAI))
    (tmp_path / "plain.txt").write_text("\n".join(words(300)))
    keys = {"source": "thai.txt", "tokenizer": str(vocabulary), "cache": "cache", "sequence_length": 8, **keys}
    local = {k: str(tmp_path / v) if k in ("source", "validation", "cache") else v for k, v in keys.items()}
    config = text_config(**local)
    if message is None:
        load(config)
        return
    with pytest.raises(ConfigErrors, match=message):
        load(config)
    assert config.load().summary is not None, "the limits are no part of what is prepared"


def test_class_without_images_is_refused() -> None:
    from bellwether.trainer.data.images import ImageData

    summary = DataSummary("images", "cats", SourceSummary(classes={"cat": 3, "dog": 0}, classes_empty=["dog"]))
    (error,) = refusals(summary, ImageData(kind="images"))
    assert str(error).startswith("data.source: 'cats': 1 of 2 classes have no images: dog; add images, or write")
    assert not refusals(summary, ImageData(kind="images", allow_empty_classes=True))


def test_duplicate_images_are_counted(tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image

    from bellwether.trainer.data.images import ImageData

    for name, seeds in (("train", [0, 1, 2, 0]), ("held_out", [1, 5])):
        for label in ("cat", "dog"):
            (tmp_path / name / label).mkdir(parents=True)
            for index, seed in enumerate(seeds):
                pixels = np.random.default_rng((seed, len(label), label == "cat")).integers(0, 255, (8, 8, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / name / label / f"{index}.png")
    config = ImageData(
        kind="images", source=str(tmp_path / "train"), validation=str(tmp_path / "held_out"),
        cache=str(tmp_path / "cache"), size=8,
    )  # fmt: skip
    summary = config.load().summary
    assert summary is not None
    assert summary.source.classes == {"cat": 4, "dog": 4}
    assert (summary.duplicates_train, summary.duplicates_held_out) == (2, 2)
    assert [error.key for error in refusals(summary, config)] == ["data.validation"]


def test_parts_of_a_source_are_added() -> None:
    whole, part = SourceSummary(), SourceSummary(rows=2, shortest=3, longest=9, classes={"a": 2}, modes={"L": 2})
    part.note("empty rows", "left out", "a.txt, line 3")
    part.ignore(Path("x/README.md"))
    for _ in range(2):
        whole.add(part)
    assert (whole.rows, whole.shortest, whole.longest, whole.classes, whole.modes) == (4, 3, 9, {"a": 4}, {"L": 4})
    assert (whole.files_ignored, whole.findings[0].count) == ({".md": 2}, 2)
    assert SourceSummary.from_json(json.loads(json.dumps(whole.to_json()))) == whole


def test_command_prints_the_summary_and_what_a_run_would_refuse(
    tmp_path: Path, vocabulary: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thai.txt").write_text("\n".join(f"{a} {b} {c}" for a in THAI for b in THAI for c in THAI))
    overrides = [f"data.source={tmp_path}/thai.txt", f"data.tokenizer={vocabulary}", f"data.cache={tmp_path}/cache"]
    assert main(["data", "bert-tiny", "data.sequence_length=8", *overrides, "--json"]) == 2
    out, err = capfd.readouterr()
    value = json.loads(out)
    assert {
        "files_read",
        "files_ignored",
        "documents",
        "tokens",
        "unknown_share",
        "classes",
        "classes_empty",
    } <= value.keys()
    assert {"duplicates_train", "duplicates_held_out", "rotated", "transparent", "undecodable"} <= value.keys()
    assert value["unknown_share"] == 1.0
    assert "100.0% of the tokens are [UNK]" in err
    assert main(["data", "bert-tiny", "data.sequence_length=8", *overrides, "data.max_unknown=1"]) == 0
    assert "343 documents" in capfd.readouterr().out

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from bellwether.cli import main
from bellwether.trainer import report
from bellwether.trainer.data.labelled_text import LabelledText
from bellwether.trainer.data.labelled_tokens import LabelledTokens
from bellwether.trainer.data.question_answering import QuestionAnswering
from bellwether.trainer.metrics import read
from tests.ranks import Ranks
from tests.trainer.labelled import entities, save_pretrained, save_tokenizer, squad, topics, write
from tests.trainer.runs import run_config, text


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_each_set_of_held_out_data_is_evaluated(ranks: Ranks, workspace: Path) -> None:
    lines = (workspace / "corpus.txt").read_text().split("\n")
    sets = {}
    for name, part in (("one", lines[:200]), ("two", lines[200:300])):
        (workspace / f"{name}.txt").write_text("\n".join(" ".join(reversed(line.split())) for line in part))
        sets[name] = str(workspace / f"{name}.txt")
    raw = text(workspace, "sets", data={"validation": sets}, duration="2 steps")
    ranks.run(run_config, raw)
    run = Path(raw["runs"]) / raw["name"]
    line = read(run).eval[-1]
    assert line["loss"] == line["loss_one"] != line["loss_two"]
    assert 0 < line["loss_two"] < 20
    assert "accuracy_two" in line
    report.write(run)
    assert "loss, two" in (run / "report.html").read_text()


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_each_set_of_labelled_text_has_scores_of_its_own(
    ranks: Ranks, workspace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As GLUE's MNLI, matched and mismatched; the first set decides the best checkpoint."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")  # or DeepSpeed, first imported here, prints what it found
    init = save_pretrained(workspace / "pretrained")
    files = {
        name: write(workspace / f"{name}.parquet", topics(n, seed))
        for name, n, seed in (("train", 60, 0), ("near", 21, 1), ("far", 30, 2))
    }
    raw = text(
        workspace,
        "labelled-sets",
        duration="4 steps",
        optimizer={"lr": 5e-3},
        evaluate={"every": "2 steps", "best": "matthews"},
    )
    raw["evaluate"].pop("limit")
    raw["model"] = {"kind": "sequence-classifier", "init": str(init)}
    raw["data"] = {
        "kind": "labelled-text", "source": files["train"], "validation": {"near": files["near"], "far": files["far"]},
        "cache": str(workspace / "cache"), "sequence_length": 24, "workers": 0,
    }  # fmt: skip
    ranks.run(run_config, raw)
    run = Path(raw["runs"]) / raw["name"]
    lines = read(run).eval
    for line in lines:
        for key in ("loss", "accuracy", "f1_macro", "matthews"):
            assert line[key] == line[f"{key}_near"]
            assert np.isfinite(line[f"{key}_far"])
    best = max(lines, key=lambda line: line["matthews_near"])
    assert main(["evaluate", str(run), "--json", "--device", "cpu"]) == 0
    found = json.loads(capsys.readouterr().out)
    for key in ("loss", "accuracy_far", "matthews_far", "matthews_near"):
        assert found[key] == pytest.approx(best[key], abs=1e-5), key
    report.write(run)
    page = (run / "report.html").read_text()
    assert "matthews, far" in page
    assert json.loads((run / "data.json").read_text())[0]["rows_held_out"] == {"near": 21, "far": 30}


def questions(file: Path, count: int, seed: int) -> str:
    file.write_text(json.dumps(squad(count, seed)))
    return str(file)


KINDS: dict[str, Any] = {
    "texts": (LabelledText, "labelled-text", lambda file, n, seed: write(file.with_suffix(".parquet"), topics(n, seed))),
    "words": (LabelledTokens, "labelled-tokens", lambda file, n, seed: write(file.with_suffix(".parquet"), entities(n, seed))),
    "questions": (QuestionAnswering, "question-answering", lambda file, n, seed: questions(file.with_suffix(".json"), n, seed)),
}  # fmt: skip


@pytest.mark.parametrize("case", KINDS)
def test_a_set_holds_and_scores_what_it_does_alone(tmp_path: Path, case: str) -> None:
    make, kind, make_file = KINDS[case]
    save_tokenizer(tmp_path / "tokenizer")
    files = [make_file(tmp_path / name, n, seed) for name, n, seed in (("train", 40, 0), ("a", 10, 1), ("b", 12, 2))]
    keys = {
        "kind": kind,
        "source": files[0],
        "tokenizer": str(tmp_path / "tokenizer"),
        "cache": str(tmp_path / "cache"),
        "sequence_length": 32,
    }
    keys |= {"stride": 8} if case == "questions" else {}
    both = make(**keys, validation={"a": files[1], "train": files[2]}).load()
    rng = np.random.default_rng(0)
    assert list(both.held_out) == ["a", "train"]
    for name, file in (("a", files[1]), ("train", files[2])):
        alone = make(**keys, validation=file).load()
        rows = np.arange(len(alone.validation))
        ours = both.held_out[name].batch(rows, rows)
        for key, value in alone.validation.batch(rows, rows).items():
            assert value.equal(ours[key]), key
        shape = {"texts": (len(rows), 3), "words": (len(rows), 32), "questions": (len(rows), 5)}[case]
        predictions = rng.integers(0, 3, shape).astype("int64" if case == "words" else "float64")
        assert alone.score is not None
        assert both.set_scores[name](predictions, rows) == alone.score(predictions, rows)


@pytest.mark.parametrize("name", ["macro", "macro_b", "averaged", "a b"])
def test_names_that_are_those_of_other_results_are_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="cannot name held-out data"):
        LabelledText(kind="labelled-text", source="a.tsv", tokenizer="t", validation={name: "b.tsv"})

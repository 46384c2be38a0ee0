"""`bellwether predict` for words and questions beside transformers' own inference, on small models with random weights."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers
from pyarrow import parquet

from bellwether.cli import main
from bellwether.trainer.inference import exported
from bellwether.trainer.models.question_answering import MAY_BE_EMPTY
from tests.trainer.labelled import WORDS, save_tokenizer

TAGS = ["O", "B-PER", "I-PER"]
PIECES = ["new", "york", "##er", "##s"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A token classifier ``words`` and a question answering model ``questions``, as transformers saves them."""
    folder = tmp_path_factory.mktemp("models")
    vocabulary = {
        token: index for index, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *PIECES])
    }
    torch.manual_seed(0)
    for name, model, labels in (
        ("words", transformers.BertForTokenClassification, TAGS),
        ("questions", transformers.BertForQuestionAnswering, ["LABEL_0", "LABEL_1"]),
    ):
        config = transformers.BertConfig(
            vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
            max_position_embeddings=64, initializer_range=0.3, id2label=dict(enumerate(labels)),
            label2id={label: i for i, label in enumerate(labels)},
        )  # fmt: skip
        model(config).save_pretrained(folder / name)
        transformers.BertTokenizerFast(vocab=vocabulary).save_pretrained(folder / name)
    return folder


def sentences(count: int, longest: int) -> list[list[str]]:
    rng = random.Random(0)
    return [[rng.choice([*WORDS, "new", "yorkers"]) for _ in range(rng.randrange(1, longest))] for _ in range(count)]


def predict(
    folder: Path, rows: list[dict[str, Any]] | str, workspace: Path, *options: str, suffix: str = ".jsonl"
) -> Any:
    data = workspace / ("data.jsonl" if isinstance(rows, list) else "data.txt")
    data.write_text("".join(json.dumps(row) + "\n" for row in rows) if isinstance(rows, list) else rows)
    output = workspace / f"out{suffix}"
    output.unlink(missing_ok=True)
    assert (
        main(["predict", str(folder), "--data", str(data), "--output", str(output), "--device", "cpu", *options]) == 0
    )
    text = output.read_text()
    return [json.loads(line) for line in text.splitlines()] if suffix == ".jsonl" else text


def test_words_have_the_tags_of_transformers_pipeline(folders: Path, tmp_path: Path) -> None:
    given = sentences(20, 12)
    found = predict(folders / "words", [{"tokens": words} for words in given], tmp_path, "--batch", "7")
    assert [row["tokens"] for row in found] == given
    pipeline = transformers.pipeline("token-classification", model=str(folders / "words"), device="cpu")
    seen = set()
    for row, words in zip(found, given, strict=True):
        pieces = pipeline(words, is_split_into_words=True, ignore_labels=[])
        pieces = pieces[0] if isinstance(pieces[0], list) else pieces
        firsts = [piece for piece in pieces if not piece["word"].startswith("##")]
        assert row["prediction"] == [piece["entity"] for piece in firsts]
        assert row["probability"] == pytest.approx([piece["score"] for piece in firsts], abs=1e-5)
        seen |= set(row["prediction"])
    assert len(seen) > 1


def test_each_word_of_a_long_sentence_has_a_tag(folders: Path, tmp_path: Path) -> None:
    long, short = sentences(1, 2)[0] * 100, ["w1", "w2"]
    rows = [{"tokens": long}, {"tokens": []}, {"tokens": short}]
    found = predict(folders / "words", rows, tmp_path, "--sequence-length", "16")
    assert [len(row["prediction"]) for row in found] == [100, 0, 2]
    assert all(tag in TAGS for row in found for tag in row["prediction"])
    # Within one window, as without windows.
    alone = predict(folders / "words", [{"tokens": short}], tmp_path, "--sequence-length", "16")
    assert found[2]["prediction"] == alone[0]["prediction"]


def test_words_are_read_and_written_as_in_conll(folders: Path, tmp_path: Path) -> None:
    text = predict(folders / "words", "w1\nw2\n\nyorkers\n", tmp_path, suffix=".txt")
    with_tags = predict(folders / "words", "w1 X O\nw2 Y I-PER\n\nyorkers Z O\n", tmp_path, suffix=".txt")
    lines = [line.split() for line in text.splitlines()]
    assert [line[:1] for line in lines] == [["w1"], ["w2"], [], ["yorkers"], []]
    assert all(line[1] in TAGS for line in lines if line)
    assert with_tags == text


def contexts(count: int, length: int) -> list[dict[str, Any]]:
    rng = random.Random(1)
    return [
        {"id": f"q{i}", "question": "w0 w1", "context": " ".join(rng.choice(WORDS) for _ in range(length + i))}
        for i in range(count)
    ]


def best_of_transformers(
    folder: Path, row: dict[str, Any], length: int, max_answer: int, empty: bool
) -> dict[str, Any]:
    """The answer by transformers' decoding of logits, in windows as run_qa.py makes them, over which the sum of logits decides."""
    from transformers.pipelines.document_question_answering import select_starts_ends

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(folder).eval()
    encoded = tokenizer(
        row["question"], row["context"], truncation="only_second", max_length=length, stride=14,
        return_overflowing_tokens=True, return_offsets_mapping=True,
    )  # fmt: skip
    best: dict[str, Any] = {"score": -np.inf}
    none = np.inf
    for index, ids in enumerate(encoded["input_ids"]):
        types = torch.tensor([encoded["token_type_ids"][index]])
        with torch.no_grad():
            output = model(torch.tensor([ids]), token_type_ids=types)
        first, last = output.start_logits[0].numpy(), output.end_logits[0].numpy()
        none = min(none, float(first[0] + last[0]))
        mask = np.array([number != 1 for number in encoded.sequence_ids(index)], dtype=np.int64)
        mask[0] = 0  # [CLS] has a part in the softmax
        starts, ends, scores, _ = select_starts_ends(
            first, last, mask, np.ones((1, len(ids)), dtype=np.int64), 1e6, 1, True, max_answer
        )
        score = float(first[starts[0]] + last[ends[0]])
        if score > best["score"]:
            offsets = encoded["offset_mapping"][index]
            begin, end = offsets[starts[0]][0], offsets[ends[0]][1]
            best = {
                "score": score,
                "probability": float(scores[0]),
                "start": begin,
                "end": end,
                "prediction": row["context"][begin:end],
            }
    if empty and none > best["score"]:
        best |= {"prediction": "", "start": None, "end": None}
    return {**best, **({"no_answer_score": none} if empty else {})}


@pytest.mark.parametrize("empty", [False, True], ids=["always-answered", "may-be-empty"])
def test_answers_are_those_of_transformers_decoding(folders: Path, tmp_path: Path, empty: bool) -> None:
    rows = contexts(12, 10) + [{**row, "id": f"long{i}"} for i, row in enumerate(contexts(8, 45))]
    given = folders / "questions"
    config = json.loads((given / "config.json").read_text())
    folder = tmp_path / "model"
    folder.mkdir()
    for file in given.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "config.json").write_text(json.dumps({**config, MAY_BE_EMPTY: empty}))
    stored = [{**row, "answers": []} for row in rows]
    run = ("--sequence-length", "28", "--batch", "5")
    found = predict(folder, stored, tmp_path, *run)
    assert [row["id"] for row in found] == [row["id"] for row in rows]
    for answer, row in zip(found, rows, strict=True):
        wanted = best_of_transformers(folder, row, 28, 30, empty)
        for key in ("score", "probability", "no_answer_score"):
            assert answer.get(key) == pytest.approx(wanted.get(key), rel=1e-4), key
        for key in ("prediction", "start", "end"):
            assert answer[key] == wanted[key], key
    if empty:
        assert 0 < sum(row["prediction"] == "" for row in found) < len(found)
        assert all(row["prediction"] for row in predict(folder, stored, tmp_path, *run, "--empty-answers", "no"))


def test_answers_are_written_as_the_official_script_reads_them(folders: Path, tmp_path: Path) -> None:
    paragraphs = [
        {"context": row["context"], "qas": [{"id": row["id"], "question": row["question"]}]} for row in contexts(3, 10)
    ]
    data = tmp_path / "squad.json"
    data.write_text(json.dumps({"data": [{"title": "t", "paragraphs": paragraphs}]}))
    output = tmp_path / "answers.json"
    assert (
        main(["predict", str(folders / "questions"), "--data", str(data), "--output", str(output), "--device", "cpu"])
        == 0
    )
    answers = json.loads(output.read_text())
    assert list(answers) == ["q0", "q1", "q2"]
    assert all(answers[row["id"]] in row["context"] for row in contexts(3, 10))


def test_tables_of_questions_need_no_ids_and_answers(folders: Path, tmp_path: Path) -> None:
    (tmp_path / "asked.csv").write_text(
        "context,question\n" + "".join(f"{r['context']},{r['question']}\n" for r in contexts(2, 9))
    )
    parquet.write_table(pa.Table.from_pylist(contexts(2, 9)), tmp_path / "asked.parquet")
    for name, with_id in (("asked.csv", False), ("asked.parquet", True)):
        output = tmp_path / f"{name}.jsonl"
        assert (
            main(
                [
                    "predict",
                    str(folders / "questions"),
                    "--data",
                    str(tmp_path / name),
                    "--output",
                    str(output),
                    "--device",
                    "cpu",
                ]
            )
            == 0
        )
        assert [("id" in json.loads(line)) for line in output.read_text().splitlines()] == [with_id] * 2


def test_questions_of_which_some_have_ids_are_one_table(folders: Path, tmp_path: Path) -> None:
    data = tmp_path / "some.jsonl"
    rows = [{key: value for key, value in row.items() if key != "id" or row["id"] == "q1"} for row in contexts(2, 9)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = tmp_path / "some.csv"
    arguments = ["predict", str(folders / "questions"), "--data", str(data), "--output", str(output), "--device", "cpu"]
    assert main(arguments) == 0
    lines = output.read_text().splitlines()
    assert lines[0].split(",")[:2] == ["id", "question"]
    assert [line.split(",")[0] for line in lines[1:]] == ["", "q1"]


def test_folder_from_elsewhere_is_scored(folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = sentences(9, 12)
    predicted = predict(folders / "words", [{"tokens": words} for words in given], tmp_path)
    data = tmp_path / "labelled.jsonl"
    data.write_text(
        "".join(json.dumps({"tokens": row["tokens"], "ner_tags": row["prediction"]}) + "\n" for row in predicted)
    )
    capsys.readouterr()
    assert main(["evaluate", str(folders / "words"), "--data", str(data), "--json", "--device", "cpu"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert (scores["accuracy"], scores["f1"], scores["examples"]) == (1, 1, 9)
    assert set(scores["classes"]) == set(TAGS)


@pytest.mark.parametrize("family", ["roberta", "distilbert"])
def test_texts_longer_than_a_folder_from_elsewhere_has_positions_are_cut(
    tmp_path: Path, family: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """RoBERTa's positions begin behind its padding token. Its folder has no token types either."""
    from tests.trainer.models import families

    folder = tmp_path / family
    size = len(save_tokenizer(folder))
    changes: dict[str, Any] = {"max_position_embeddings": 42 if family == "roberta" else 40}
    changes |= {"pad_token_id": 1} if family == "roberta" else {}
    keys = families.keys(family, vocab_size=size, id2label={0: "no", 1: "yes"}, label2id={"no": 0, "yes": 1}, **changes)
    config = transformers.AutoConfig.for_model(**keys)
    transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    given = [{"text": "w1 " * 300}, {"text": "w" * 5000}, {"text": "w1"}]
    data = tmp_path / "scored.jsonl"
    data.write_text("".join(json.dumps({**row, "label": "yes"}) + "\n" for row in given))
    with caplog.at_level("INFO"):
        found = predict(folder, given, tmp_path)
    assert "sequences have 40 tokens, for which the model has positions" in caplog.messages
    assert [row["prediction"] in ("no", "yes") for row in found] == [True] * 3
    capsys.readouterr()
    assert main(["evaluate", str(folder), "--data", str(data), "--json", "--device", "cpu"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["accuracy"] == pytest.approx(np.mean([row["prediction"] == "yes" for row in found]))
    assert main(["evaluate", str(folder), "--data", str(data), "--sequence-length", "41"]) == 2
    assert "--sequence-length: 41: the model has positions for 40 tokens" in capsys.readouterr().err


def test_questions_longer_than_the_positions_are_read_in_shorter_windows(folders: Path, tmp_path: Path) -> None:
    context = " ".join(WORDS * 5)
    found = predict(folders / "questions", [{"question": "w1 w2", "context": context}], tmp_path)
    assert context[found[0]["start"] : found[0]["end"]] == found[0]["prediction"]


REFUSED: dict[str, tuple[str, str, list[str], str]] = {
    "folder of the output": ("words", '{"tokens": ["w1"]}\n', ["--output", "OUT/x.jsonl"], "there is no folder"),
    "text for a tagger": ("words", '{"tokens": "w1 w2"}\n{"tokens": ["w1"]}\n', [], r"line 1: tokens holds no list of words"),
    "column": ("words", '{"words": ["w1"]}\n', [], r"has no column 'tokens'; it has: words"),
    "two columns": ("words", '{"tokens": ["w1"]}\n', ["--text-columns", "a,b"], "a token classifier reads one column"),
    "table of words": ("words", '{"tokens": ["w1"]}\n', ["--output", "OUT.csv"], "write one of .jsonl, .txt, .parquet"),
    "words on lines": ("words", '{"tokens": ["w1", "w2 w3"]}\n', ["--output", "OUT.txt"], "the word 'w2 w3' would be none, or several"),
    "no context": ("questions", '{"question": "w1"}\n', [], "has no question and context"),
    "paragraphs": ("questions", '{"paragraphs": ["w1"]}\n', [], "paragraphs is no list of objects"),
    "no ids": ("questions", '{"question": "w1", "context": "w2"}\n', ["--output", "OUT.json"], "the questions have no ids"),
    "columns of questions": ("questions", '{"question": "w1", "context": "w2"}\n', ["--text-columns", "x"], "leave it out"),
    "empty answers": ("words", '{"tokens": ["w1"]}\n', ["--empty-answers", "no"], "this model answers no questions"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_predicted_is_refused(
    folders: Path, tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name, content, options, message = REFUSED[case]
    (tmp_path / "data.jsonl").write_text(content)
    options = [option.replace("OUT", str(tmp_path / "out")) for option in options]
    output = [] if "--output" in options else ["--output", str(tmp_path / "out.jsonl")]
    arguments = ["predict", str(folders / name), "--data", str(tmp_path / "data.jsonl"), *output, *options]
    assert main([*arguments, "--device", "cpu"]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))


def test_other_data_are_read_as_in_the_last_phase(tmp_path: Path) -> None:
    """Of a run whose sequences grew: its export was trained last, and evaluated, on the longer ones."""
    (tmp_path / "export").mkdir()
    (tmp_path / "train.csv").touch()
    (tmp_path / "config.yaml").write_text(
        "name: run\nduration: 2 steps\nmodel: {kind: sequence-classifier, init: anywhere}\n"
        f"data: {{kind: labelled-text, source: {tmp_path}/train.csv, validation: first.csv, tokenizer: {tmp_path}, sequence_length: 16}}\n"
        "batch: {global: 8, micro: 4}\noptimizer: {name: adamw, lr: 1e-3}\n"
        "phases: [{}, {data: {sequence_length: 48, validation: last.csv}}]\n"
    )
    for folder in (tmp_path, tmp_path / "export"):
        assert exported.keys_of_run(folder, "labelled-text", ["sequence_length"]) == {"sequence_length": 48}
        assert exported.held_out_of(folder) == "last.csv"

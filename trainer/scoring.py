"""``bellwether evaluate`` and ``bellwether predict``: what they print and write."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bellwether.trainer import run_paths
from bellwether.trainer.config import ConfigError
from bellwether.trainer.data import rows as rows_of_data

if TYPE_CHECKING:
    from bellwether.trainer.inference import ImageClassifier, Predictor

log = logging.getLogger(__name__)

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
# Formats of output by the task of the model.
_SUFFIXES = {
    "ForSequenceClassification": (".jsonl", ".csv", ".tsv", ".parquet"),
    "ForTokenClassification": (".jsonl", ".txt", ".parquet"),
    "ForQuestionAnswering": (".jsonl", ".json", ".csv", ".tsv", ".parquet"),
    "ForImageClassification": (".jsonl", ".csv", ".tsv", ".parquet"),
}


def evaluate(
    model: str, data: str | None, columns: Mapping[str, object], batch: int, device: str, *, as_json: bool
) -> int:
    """Print the scores of a model. Returns the exit status for the shell.

    Args:
        model: a run directory, an export, or a folder with a model.
        data: labelled data; None: the held-out data of the run.
        columns: keys of `LabelledText` that take precedence over those of the run.
        device: ``cpu``, ``cuda`` or ``auto``.

    Raises:
        ConfigError: if the model or the data cannot be read.
    """
    from bellwether.trainer import inference

    folder = Path(model).expanduser()
    task = inference.task_of(folder, inference.PREDICTORS)
    if task is not None and data is None:
        data = inference.held_out_of(folder)
    if task is not None and data is not None:
        results = inference.PREDICTORS[task].load(folder, data, **columns).results(batch, _device(device))
    elif columns:
        problem = "is scored on the held-out data of its run" if task else "holds no model fine-tuned on text"
        raise ConfigError("RUN_OR_FOLDER", model, problem, f"leave out {', '.join(columns)}")
    else:
        results = inference.results_of_run(folder, data, batch, _device(device))
    if as_json:
        print(json.dumps({**results.scores, **({"classes": results.classes} if results.classes else {})}, indent=1))
        return 0
    width = max(map(len, [*results.scores, *results.classes]))
    for name, value in results.scores.items():
        print(
            f"  {name.replace('_', ' '):<{width}}  {value:,}"
            if name == "examples"
            else f"  {name.replace('_', ' '):<{width}}  {value:.4f}"
        )
    if results.classes:
        print(f"\n  {'class':<{width}}  precision  recall      f1  examples")
        for name, row in results.classes.items():
            print(
                f"  {name:<{width}}  {row['precision']:9.4f}  {row['recall']:6.4f}  {row['f1']:6.4f}  {row['examples']:8,}"
            )
    return 0


def predict(
    model: str,
    data: str,
    output: str,
    columns: Mapping[str, object],
    batch: int,
    device: str,
    empty_answers: bool | None = None,
) -> int:
    """Write the predictions for a file of texts, sentences or questions, or for images. Returns the exit status for the shell.

    Args:
        empty_answers: whether a question answering model may find that a text has no answer; None: if it was trained on such texts.

    Raises:
        ConfigError: if the model or the data cannot be read, or the output exists or has no known suffix.
    """
    from bellwether.trainer import inference

    folder, file = Path(model).expanduser(), Path(output).expanduser()
    task = inference.task_of(folder, _SUFFIXES)
    if task is None:
        inference.export_of(folder)
        advice = "name a classifier of texts, words or images, or a question answering model"
        raise ConfigError("RUN_OR_FOLDER", model, "holds no model that was fine-tuned to predict something", advice)
    suffix = file.suffix.lower()
    if suffix not in _SUFFIXES[task]:
        advice = f"write one of {', '.join(_SUFFIXES[task])}"
        raise ConfigError(
            "--output", output, f"predictions of this model are not written as {suffix or 'plain'} files", advice
        )
    if file.exists():
        raise ConfigError("--output", output, "exists", "name a new file")
    if not file.parent.is_dir():
        raise ConfigError("--output", output, f"there is no folder {file.parent}", "make it, or name another file")
    predictor = _predictor(task, folder, data, columns)
    if empty_answers is not None:
        if not isinstance(predictor, inference.QuestionAnswerer):
            raise ConfigError("--empty-answers", None, "this model answers no questions", "leave it out")
        predictor.may_be_empty = empty_answers
    rows = list(predictor.predictions(batch, _device(device)))
    with run_paths.replacing(file) as partial:
        _write(partial, suffix, rows)
    print(f"{len(rows):,} predictions: {file}")
    return 0


def _predictor(task: str, folder: Path, data: str, columns: Mapping[str, object]) -> Predictor | ImageClassifier:
    from bellwether.trainer import inference

    if task != inference.ImageClassifier.architecture:
        return inference.PREDICTORS[task].load(folder, data, **columns)
    if columns:
        option = f"--{next(iter(columns)).replace('_', '-')}"
        raise ConfigError(option, None, "this model classifies images, which are files", "leave it out")
    return inference.ImageClassifier.load(folder, data)


def _device(name: str) -> str:
    import torch

    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def _write(file: Path, suffix: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows to a file.

    Raises:
        ConfigError: if questions are to be written by their ids, and one has none, or two have the same; if words are to be written on
            lines, and one is empty or has white space in it.
    """
    if suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    elif suffix == ".jsonl":
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    elif suffix == ".json":  # what the official script of SQuAD reads
        answers = {row.get("id"): row["prediction"] for row in rows}
        if None in answers or len(answers) < len(rows):
            problem = "the questions have no ids, or the same ones"
            raise ConfigError(
                "--output", str(file), problem, "write a .jsonl file, whose rows are in the order of the questions"
            )
        file.write_text(json.dumps(answers, ensure_ascii=False) + "\n", encoding="utf-8")
    elif suffix == ".txt":  # as CoNLL-2003
        sentences = [next(iter(row.values())) for row in rows]
        strange = next(
            (word for words in sentences for word in words if rows_of_data.split_line(f"{word} O") != [word, "O"]), None
        )
        if strange is not None:
            problem = f"the word {strange!r} would be none, or several, on its line"
            raise ConfigError("--output", str(file), problem, "write a .jsonl file")
        with file.open("w", encoding="utf-8") as stream:
            for words, row in zip(sentences, rows, strict=True):
                tags = row["prediction"]
                stream.writelines(f"{word} {tag or 'O'}\n" for word, tag in zip(words, tags, strict=True))
                stream.write("\n")
    else:
        with file.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]), delimiter=_DELIMITERS[suffix])
            writer.writeheader()
            writer.writerows(rows)

"""``bellwether evaluate`` and ``bellwether predict``: what they print and write."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bellwether.trainer import run_paths
from bellwether.trainer.config import ConfigError

log = logging.getLogger(__name__)

_WRITERS = {".csv": ",", ".tsv": "\t"}
_SUFFIXES = (".jsonl", *_WRITERS, ".parquet")


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
    is_classifier = inference.is_classifier(folder)
    if is_classifier and data is None:
        data = inference.held_out_of(folder)
    if is_classifier and data is not None:
        results = inference.Classifier.load(folder, data, **columns).results(batch, _device(device))
    elif columns:
        problem = "is scored on the held-out data of its run" if is_classifier else "holds no sequence classifier"
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


def predict(model: str, data: str, output: str, columns: Mapping[str, object], batch: int, device: str) -> int:
    """Write the predictions for a file of texts. Returns the exit status for the shell.

    Raises:
        ConfigError: if the model or the data cannot be read, or the output exists or has no known suffix.
    """
    from bellwether.trainer import inference

    file = Path(output).expanduser()
    if file.suffix.lower() not in _SUFFIXES:
        raise ConfigError(
            "--output", output, f"what is a {file.suffix or 'plain'} file?", f"write one of {', '.join(_SUFFIXES)}"
        )
    if file.exists():
        raise ConfigError("--output", output, "exists", "name a new file")
    classifier = inference.Classifier.load(Path(model).expanduser(), data, **columns)
    rows = list(classifier.predictions(batch, _device(device)))
    with run_paths.replacing(file) as partial:
        _write(partial, file.suffix.lower(), rows)
    print(f"{len(rows):,} predictions: {file}")
    return 0


def _device(name: str) -> str:
    import torch

    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def _write(file: Path, suffix: str, rows: Iterable[Mapping[str, Any]]) -> None:
    rows = list(rows)
    if suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    elif suffix == ".jsonl":
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    else:
        with file.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]), delimiter=_WRITERS[suffix])
            writer.writeheader()
            writer.writerows(rows)

"""bellwether predict on images: the classes that evaluation finds, for files without labels."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bellwether import cli
from bellwether.trainer import models
from bellwether.trainer.config import load, phases, to_yaml

CLASSES = ("cat", "dog", "owl")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on photographs of noise, with an export of a model that was never trained."""
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for name in CLASSES:
        (folder / "source" / name).mkdir(parents=True)
        for number in range(4):
            pixels = generator.integers(0, 256, (20 + 3 * number, 26, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "source" / name / f"{number}.png")
    run = folder / "runs/birds"
    run.mkdir(parents=True)
    (folder / "config.yaml").write_text(
        f"""
name: birds
runs: {folder}/runs
duration: 1 epochs
model: {{kind: cifar-resnet, depth: 8}}
data: {{kind: images, source: {folder}/source, size: 8, crop: resized, validation_share: 0.5, cache: {folder}/cache}}
batch: {{global: 4}}
optimizer: {{lr: 0.1}}
phases: [{{}}, {{data: {{size: 12}}}}]
"""
    )
    config = load(folder / "config.yaml")
    (run / "config.yaml").write_text(to_yaml(config))
    torch.manual_seed(0)
    task = models.build(config.model, phases(config)[-1].data.load())
    task.model.save_pretrained(run / "export")
    return run


def written(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_images_get_the_class_that_evaluation_finds(run: Path, tmp_path: Path) -> None:
    config = phases(load(run / "config.yaml"))[-1]
    dataset = config.data.load()
    task = models.build(config.model, dataset)
    task.model.load_state_dict(type(task.model).from_pretrained(run / "export").state_dict())
    task.model.eval()
    held_out = dataset.validation
    inputs = held_out.batch(range(len(held_out)), range(len(held_out)))["pixel_values"]
    assert inputs.shape[2:] == (12, 12)  # of the last phase
    with torch.no_grad():
        wanted = task.model(pixel_values=inputs).logits.softmax(dim=1).max(dim=1)
    source = run.parents[1] / "source"
    output = tmp_path / "predictions.csv"
    assert cli.main(["predict", str(run), "--data", str(source), "--output", str(output), "--batch", "5"]) == 0
    rows = {Path(row["file"]).relative_to(source).as_posix(): row for row in written(output)}
    assert list(rows) == sorted(f"{name}/{number}.png" for name in CLASSES for number in range(4))
    files = [held_out.encoded.name(int(row)) for row in held_out.rows]
    found = [rows["/".join(Path(file).parts[-2:])] for file in files]
    assert [row["prediction"] for row in found] == [CLASSES[i] for i in wanted.indices.tolist()]
    assert [float(row["probability"]) for row in found] == pytest.approx(wanted.values.tolist(), abs=1e-6)
    glob = tmp_path / "cats.jsonl"
    assert cli.main(["predict", str(run / "export"), "--data", f"{source}/cat/*", "--output", str(glob)]) == 0
    cats = [json.loads(line) for line in glob.read_text().splitlines()]
    assert [(row["file"], row["prediction"]) for row in cats] == [
        (row["file"], row["prediction"]) for name, row in rows.items() if name.startswith("cat/")
    ]


def test_what_cannot_be_predicted_is_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/a.png").write_bytes(b"no image")
    (tmp_path / "text").mkdir()
    (tmp_path / "text/a.txt").write_text("no image")
    shutil.copytree(run / "export", tmp_path / "alone")
    status, line = refused([str(tmp_path / "alone"), "--data", str(tmp_path)], tmp_path, capsys)
    assert (status, "belongs to no run on images" in line) == (2, True), line
    for data, options, words in [
        ("bad", [], "a.png cannot be decoded"),
        ("text", [], "no file in this folder is one of .png"),
        ("missing", [], "no such file, folder or glob"),
        ("bad", ["--text-columns", "a"], "--text-columns"),
        ("bad", ["--empty-answers", "no"], "this model answers no questions"),
    ]:
        status, line = refused([str(run), "--data", str(tmp_path / data), *options], tmp_path, capsys)
        assert (status, words in line) == (2, True), line
    assert not (tmp_path / "out.csv").exists()


def refused(arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    status = cli.main(["predict", *arguments, "--output", str(folder / "out.csv")])
    error = capsys.readouterr().err
    assert len([line for line in error.splitlines() if line.startswith("bellwether")]) == 1, error
    return status, error

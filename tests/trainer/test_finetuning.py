"""Fine-tuning on labelled text: whole runs on two ranks, their best checkpoint, and their scores without training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bellwether.cli import main
from bellwether.trainer import config as c
from bellwether.trainer.metrics import read
from tests.ranks import Ranks
from tests.tiers import covering
from tests.trainer.labelled import entities, save_pretrained, squad, topics, write
from tests.trainer.runs import images, last, losses, merged, run_config, tensors, text, weights


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretrained BERT, and labelled texts."""
    folder = tmp_path_factory.mktemp("finetuning")
    save_pretrained(folder / "pretrained")
    write(folder / "train.parquet", topics(200))
    write(folder / "dev.parquet", topics(61, seed=1))
    return folder


def config(given: Path, name: str, **changes: Any) -> dict[str, Any]:
    raw: dict[str, Any] = {
        "name": name,
        "runs": str(given / "runs"),
        "duration": "16 steps",
        "model": {"kind": "sequence-classifier", "init": str(given / "pretrained")},
        "data": {
            "kind": "labelled-text", "source": str(given / "train.parquet"), "validation": str(given / "dev.parquet"),
            "cache": str(given / "cache"), "sequence_length": 24, "workers": 0,
        },
        "batch": {"global": 32, "micro": 4},
        "optimizer": {"name": "adamw", "lr": 5e-3},
        "schedule": {"kind": "linear", "warmup": 0.1},
        "evaluate": {"every": "4 steps", "best": "matthews"},
        "log": {"every": "1 steps", "trackers": [], "report": False},
        "engine": {"stage": 2},
    }  # fmt: skip
    return merged(raw, changes)


def run_of(raw: dict[str, Any]) -> Path:
    return Path(raw["runs"]) / raw["name"]


def evaluate(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["evaluate", *arguments, "--json", "--device", "cpu"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@covering(lambda stage: stage == 2)
@pytest.mark.parametrize("stage", [0, 2, 3])
@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_fine_tuned_run_resumes_to_the_same_bits_and_is_scored_alike_without_an_engine(
    ranks: Ranks, given: Path, stage: int, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = config(given, f"whole-{stage}", engine={"stage": stage})
    ranks.run(run_config, whole)
    halves = config(given, f"halves-{stage}", engine={"stage": stage})
    ranks.run(run_config, {**halves, "stop_after": "6 steps"})
    ranks.run(run_config, halves)
    wanted, found = tensors(last(whole)), tensors(last(halves))
    assert wanted.keys() == found.keys()
    assert all(torch.equal(value, found[key]) for key, value in wanted.items())
    assert losses(whole) == losses(halves)

    history = read(run_of(whole))
    assert not any(
        "noise_scale" in line for line in history.train
    )  # micro-batches of like length are no random samples
    best = max(history.eval, key=lambda line: line["matthews"])
    assert best["matthews"] > 0.5
    scores = evaluate(capsys, str(run_of(whole)))
    assert scores["examples"] == 61
    for name in ("loss", "accuracy", "f1_macro", "matthews"):
        # The same weights, in batches of other lengths.
        assert scores[name] == pytest.approx(best[name], abs=1e-5), name
    assert list(scores["classes"]) == ["art", "news", "sport"]
    assert sum(row["examples"] for row in scores["classes"].values()) == 61


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_best_checkpoint_outlives_newer_ones_and_is_exported(ranks: Ranks, given: Path) -> None:
    """After its half-way point the run is made worse and worse by a rate that is far too high."""
    raw = config(
        given, "best", duration="12 steps", checkpoint={"every": "1 steps", "keep": 1}, optimizer={"lr": 3.0},
        schedule={"kind": "exponential", "start": 1e-3, "final": 1.0, "warmup": 0}, evaluate={"every": "2 steps", "best": "loss"},
    )  # fmt: skip
    ranks.run(run_config, {**raw, "stop_after": "7 steps"})
    ranks.run(run_config, raw)
    history = read(run_of(raw))
    best = min(history.eval, key=lambda line: line["loss"])
    kept = sorted(path.name for path in (run_of(raw) / "checkpoints").iterdir())
    assert best["step"] < 12
    assert kept == sorted({f"step-{best['step']:08d}", "step-00000012"})
    exported = _safetensors(run_of(raw) / "export/model.safetensors")
    saved = weights(run_of(raw) / "checkpoints" / f"step-{best['step']:08d}")
    assert np.array_equal(exported["classifier.weight"].ravel(), saved["model.classifier.weight"])


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_run_without_improvement_ends_early_and_is_finished(ranks: Ranks, given: Path) -> None:
    raw = config(
        given, "patience", optimizer={"lr": 1e-9}, evaluate={"every": "2 steps", "best": "accuracy", "patience": 2}
    )
    ranks.run(run_config, {**raw, "stop_after": "4 steps"})
    ranks.run(run_config, raw)
    history = read(run_of(raw))
    assert [line["step"] for line in history.eval] == [2, 4, 6]
    assert history.state == "finished"
    assert (run_of(raw) / "finished.json").exists()
    ranks.run(run_config, raw)
    assert len(read(run_of(raw)).eval) == 3


@pytest.mark.full
@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_score_of_two_classes_is_refused_at_the_first_evaluation_of_three(ranks: Ranks, given: Path) -> None:
    raw = config(given, "two-of-three", evaluate={"every": "2 steps", "best": None, "target": "f1 >= 0.9"})
    with pytest.raises(AssertionError, match=r"evaluate\.target.*name one of loss, accuracy, f1_macro, matthews"):
        ranks.run(run_config, raw)


@covering(lambda stage: stage == 2)
@pytest.mark.parametrize("stage", [0, 2, 3])
@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_layers_are_thawed_phase_by_phase(ranks: Ranks, given: Path, stage: int) -> None:
    head, upper = ["model.bert.*"], ["model.bert.embeddings.*", "model.bert.encoder.layer.0.*"]
    phases = [
        {"duration": "3 steps", "optimizer": {"freeze": head}},
        {"duration": "3 steps", "optimizer": {"freeze": upper}},
        {"duration": "3 steps", "optimizer": {"layer_decay": 0.5}},
    ]
    raw = config(given, f"thawed-{stage}", phases=phases, checkpoint={"keep": 9}, engine={"stage": stage})
    ranks.run(run_config, {**raw, "stop_after": "5 steps"})
    ranks.run(run_config, raw)
    start = _safetensors(given / "pretrained/model.safetensors")
    first, second, third = (run_of(raw) / f"checkpoints/step-{step:08d}" for step in (3, 6, 9))
    assert {name for name in weights(first) if "bert" in name} == set()
    for name, value in weights(first, "frozen").items():
        if name.removeprefix("model.") in start:
            assert np.array_equal(value, start[name.removeprefix("model.")].ravel()), name
    trained, frozen = weights(second), weights(second, "frozen")
    assert "model.bert.encoder.layer.1.output.dense.weight" in trained
    assert all(name.startswith(("model.bert.embeddings.", "model.bert.encoder.layer.0.")) for name in frozen)
    assert np.array_equal(
        frozen["model.bert.embeddings.word_embeddings.weight"], start["bert.embeddings.word_embeddings.weight"].ravel()
    )
    moved = weights(third)
    assert not np.array_equal(
        moved["model.bert.embeddings.word_embeddings.weight"], frozen["model.bert.embeddings.word_embeddings.weight"]
    )
    # The phase begins with the weights of the one before, and its first update is as small as its rate.
    assert np.abs(moved["model.classifier.weight"] - trained["model.classifier.weight"]).max() < 3 * 5e-3

    unbroken = {**raw, "name": f"unbroken-{stage}"}
    ranks.run(run_config, unbroken)
    assert losses(unbroken) == losses(raw)


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_recipe_for_images_trains_the_head_first(ranks: Ranks, given: Path, workspace: Path) -> None:
    """The phases of configs/finetune-image.yaml, on digits with a small pretrained ResNet of other classes."""
    from transformers import AutoImageProcessor, ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "depths": [1] * 4,
        "hidden_sizes": [8, 8, 16, 16],
        "embedding_size": 8,
        "layer_type": "basic",
    }
    ResNetForImageClassification(ResNetConfig(num_channels=1, num_labels=7, **sizes)).save_pretrained(given / "resnet")
    recipe = c.dump(c.load(Path(__file__).parents[2] / "configs/finetune-image.yaml"))
    phases = [{**phase, "duration": "3 steps"} for phase in recipe["phases"]]
    raw = images(
        workspace, "cars", phases=phases, optimizer=recipe["optimizer"], schedule=recipe["schedule"], checkpoint={"keep": 9},
        evaluate={"augment": 2, "best": "accuracy", "every": "3 steps", "limit": 20}, data={"size": 32}, engine={"stage": 1},
    )  # fmt: skip
    raw["model"] = {"kind": "image-classifier", "init": str(given / "resnet")}
    ranks.run(run_config, raw)
    processor = AutoImageProcessor.from_pretrained(run_of(raw) / "export")
    assert (processor.size["height"], tuple(processor.image_mean)) == (32, (0.3,))
    start = _safetensors(given / "resnet/model.safetensors")
    name = "resnet.encoder.stages.{}.layers.0.layer.0.convolution.weight"
    first, second, third = (run_of(raw) / f"checkpoints/step-{step:08d}" for step in (3, 6, 9))
    assert all("classifier" in key for key in weights(first))
    assert np.array_equal(weights(first, "frozen")[f"model.{name.format(3)}"], start[name.format(3)].ravel())
    moved = {stage: not np.array_equal(
        {**weights(second), **weights(second, "frozen")}[f"model.{name.format(stage)}"], start[name.format(stage)].ravel()
    ) for stage in (2, 3)}  # fmt: skip
    assert moved == {2: False, 3: True}
    assert not np.array_equal(weights(third)[f"model.{name.format(0)}"], start[name.format(0)].ravel())


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_regression_is_scored_by_correlation(ranks: Ranks, given: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = config(
        given, "regression", data={"task": "regression", "label_column": "score"}, evaluate={"every": "8 steps", "best": "pearson"}
    )  # fmt: skip
    ranks.run(run_config, raw)
    line = read(run_of(raw)).eval[-1]
    assert "accuracy" not in line
    assert line["pearson"] > 0.5
    best = max(read(run_of(raw)).eval, key=lambda line: line["pearson"])
    scores = evaluate(capsys, str(run_of(raw)), "--data", str(given / "dev.parquet"))
    assert scores["pearson"] == pytest.approx(best["pearson"], abs=1e-5)
    assert scores["spearman"] == pytest.approx(best["spearman"], abs=1e-5)
    assert "classes" not in scores


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_entities_are_found_and_a_resumed_run_ends_in_the_same_bits(
    ranks: Ranks, given: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = {"kind": "labelled-tokens", "source": write(given / "ner.parquet", entities(300)), "sequence_length": 24}
    data |= {"validation": write(given / "ner-dev.parquet", entities(41, seed=1))}
    raw = config(
        given, "entities", duration="40 steps", evaluate={"every": "20 steps", "best": "f1"}, optimizer={"lr": 1e-2}
    )
    raw["model"] = {**raw["model"], "kind": "token-classifier"}
    raw["data"] = {**raw["data"], **data}
    ranks.run(run_config, {**raw, "stop_after": "15 steps"})
    ranks.run(run_config, raw)
    line = read(run_of(raw)).eval[-1]
    assert line["f1"] > 0.8
    assert line["accuracy"] > 0.8
    whole = {**raw, "name": "entities-whole"}
    ranks.run(run_config, whole)
    assert losses(whole) == losses(raw)
    best = max(read(run_of(raw)).eval, key=lambda line: line["f1"])
    scores = evaluate(capsys, str(run_of(raw)))
    assert {key: scores[key] for key in ("f1", "accuracy", "examples")} == {
        key: pytest.approx(best[key], abs=1e-6) for key in ("f1", "accuracy", "examples")
    }


@covering(lambda without: without > 0)
@pytest.mark.parametrize("without", [0.0, 0.3], ids=["squad-1.1", "squad-2.0"])
@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_questions_are_answered_over_windows_and_a_resumed_run_ends_in_the_same_bits(
    ranks: Ranks, given: Path, without: float, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, count, seed in (("train", 250, 0), ("dev", 41, 1)):
        (given / f"squad-{without}-{name}.json").write_text(json.dumps(squad(count, seed, without)))
    raw = config(
        given, f"squad-{without}", duration="60 steps", evaluate={"every": "30 steps", "best": "f1"}, optimizer={"lr": 1e-2}
    )  # fmt: skip
    raw["model"] = {**raw["model"], "kind": "question-answering"}
    raw["data"] = {
        **raw["data"], "kind": "question-answering", "source": str(given / f"squad-{without}-train.json"),
        "validation": str(given / f"squad-{without}-dev.json"), "sequence_length": 32, "stride": 8, "max_answer": 4,
    }  # fmt: skip
    ranks.run(run_config, {**raw, "stop_after": "45 steps"})
    ranks.run(run_config, raw)
    line = read(run_of(raw)).eval[-1]
    assert line["examples"] > 41  # windows
    assert line["f1"] >= line["exact_match"]
    assert line["f1"] > 0.8
    whole = {**raw, "name": f"whole-squad-{without}"}
    ranks.run(run_config, whole)
    assert losses(whole) == losses(raw)
    best = max(read(run_of(raw)).eval, key=lambda line: line["f1"])
    scores = evaluate(capsys, str(run_of(raw)))
    assert {key: scores[key] for key in ("f1", "exact_match")} == {
        key: pytest.approx(best[key], abs=1e-6) for key in ("f1", "exact_match")
    }


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_predictions_are_a_row_for_each_text(ranks: Ranks, given: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = config(given, "predicted")
    ranks.run(run_config, raw)
    texts = [{"text": row["text"]} for row in topics(30, seed=2)]
    data = write(given / "unlabelled.parquet", texts)
    for suffix in (".jsonl", ".csv", ".tsv", ".parquet"):
        assert main(["predict", str(run_of(raw)), "--data", data, "--output", str(given / f"out{suffix}")]) == 0
    lines = [json.loads(line) for line in (given / "out.jsonl").read_text().splitlines()]
    assert [line["text"] for line in lines] == [row["text"] for row in texts]
    right = np.mean([line["prediction"] == row["label"] for line, row in zip(lines, topics(30, seed=2), strict=True)])
    assert right > 0.7
    assert all(1 / 3 <= line["probability"] <= 1 for line in lines)
    capsys.readouterr()
    assert main(["predict", str(run_of(raw)), "--data", data, "--output", str(given / "out.csv")]) == 2
    assert "--output: " in capsys.readouterr().err


@pytest.mark.parametrize("make", [text, images])
@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_runs_of_other_kinds_are_scored_as_in_training(
    ranks: Ranks, workspace: Path, make: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = make(workspace, f"scored-{make.__name__}", evaluate={"limit": None}, duration="3 steps")
    ranks.run(run_config, raw)
    line = read(run_of(raw)).eval[-1]
    scores = evaluate(capsys, str(run_of(raw)))
    assert scores == {
        "loss": pytest.approx(line["loss"], rel=1e-5),
        "accuracy": pytest.approx(line["accuracy"]),
        "examples": line["examples"],
    }


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_run_that_holds_out_a_share_is_scored_on_it(
    ranks: Ranks, given: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = config(given, "share", duration="4 steps", data={"validation": None, "validation_share": 0.2})
    ranks.run(run_config, raw)
    line = read(run_of(raw)).eval[-1]
    scores = evaluate(capsys, str(run_of(raw)))
    assert scores["examples"] == line["examples"] == 40
    assert {key: scores[key] for key in ("accuracy", "matthews")} == pytest.approx(
        {key: line[key] for key in ("accuracy", "matthews")}
    )
    assert sum(row["examples"] for row in scores["classes"].values()) == 40


def test_folder_without_a_model_is_refused(given: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(given / "runs"), "--data", str(given / "dev.parquet")]) == 2
    assert "RUN_OR_FOLDER: " in capsys.readouterr().err


def _safetensors(file: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    found: dict[str, np.ndarray] = load_file(file)
    return found

"""Whole runs on real process groups: bit-exact resume, any world size, phases, every precision, errors."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bellwether.trainer import checkpoint
from bellwether.trainer import config as c
from bellwether.trainer.checkpoint import Manifest
from bellwether.trainer.metrics import read
from tests.precision import is_supported, skip_without
from tests.ranks import Ranks
from tests.tiers import covering


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a small corpus and the cache of prepared data."""
    folder = tmp_path_factory.mktemp("workspace")
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnop", k=rng.randint(2, 7))) for _ in range(120)]
    lines = [" ".join(rng.choices(words, k=rng.randint(5, 40))) for _ in range(600)]
    (folder / "corpus.txt").write_text("\n".join(lines))
    return folder


def text(workspace: Path, name: str, **changes: Any) -> dict[str, Any]:
    raw: dict[str, Any] = {
        "name": name,
        "runs": str(workspace / "runs"),
        "duration": "8 steps",
        "model": {"kind": "bert", "size": "tiny", "dropout": 0.1},
        "data": {
            "kind": "text", "source": str(workspace / "corpus.txt"), "vocabulary_size": 200, "sequence_length": 16,
            "cache": str(workspace / "cache"), "workers": 0,
        },
        "batch": {"global": 16, "micro": 2},
        "optimizer": {"lr": 1e-2},
        "schedule": {"warmup": 0.25},
        "log": {"every": "1 steps", "trackers": [], "report": False},  # which takes longer than these runs
        "evaluate": {"limit": 10},
        "engine": {"stage": 2},
    }  # fmt: skip
    return merged(raw, changes)


def images(workspace: Path, name: str, **changes: Any) -> dict[str, Any]:
    raw = text(workspace, name)
    raw["model"] = {"kind": "cifar-resnet", "depth": 8}
    raw["data"] = {
        "kind": "images", "source": "digits", "size": 8, "mean": [0.3], "std": [0.3], "workers": 0, "cache": str(workspace / "cache"),
    }  # fmt: skip
    return merged(raw, changes)


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    return {**base, **{k: {**base[k], **v} if isinstance(v, dict) and k in base else v for k, v in over.items()}}


def _run(raw: dict[str, Any]) -> None:
    from bellwether.trainer import run
    from bellwether.trainer.distributed import World

    world = World(torch.distributed.get_rank(), torch.distributed.get_world_size(), 0, torch.device("cpu"))
    run.train(c.validate(raw), world)


def losses(raw: dict[str, Any]) -> list[float]:
    return [line["loss"] for line in _train_lines(raw)]


def _train_lines(raw: dict[str, Any]) -> list[dict[str, Any]]:
    return read(Path(raw["runs"]) / raw["name"]).train


def last(raw: dict[str, Any]) -> Path:
    path = checkpoint.newest(Path(raw["runs"]) / raw["name"] / "checkpoints")
    assert path is not None
    return path


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return {f"{file.name}:{k}": v for file in sorted(path.glob("*.safetensors")) for k, v in load_file(file).items()}


def weights(path: Path, wanted: str = "weight") -> dict[str, np.ndarray]:
    """Whole fp32 weights of a checkpoint, or another kind of tensor by parameter name."""
    pieces: dict[str, list[tuple[int, np.ndarray]]] = {}
    for key, value in tensors(path).items():
        kind, name, start = key.split(":", 1)[1].split("|")
        if kind == wanted:
            pieces.setdefault(name, []).append((int(start), value.numpy()))
    return {name: np.concatenate([v for _, v in sorted(parts, key=lambda p: p[0])]) for name, parts in pieces.items()}


@covering(lambda kind, stage: (kind == "images") == (stage % 2))
@pytest.mark.parametrize("ranks", [2], indirect=True)
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("kind", ["text", "images"])
def test_resume_is_bit_exact(ranks: Ranks, workspace: Path, kind: str, stage: int) -> None:
    """2n steps equal n steps, stop, resume, n steps, with evaluations and checkpoints at different times."""
    make = {"text": text, "images": images}[kind]
    whole = make(workspace, f"whole-{kind}-{stage}", engine={"stage": stage})
    halves = make(workspace, f"halves-{kind}-{stage}", engine={"stage": stage}, evaluate={"every": "3 steps"})
    ranks.run(_run, whole)
    ranks.run(_run, {**halves, "stop_after": "4 steps"})
    assert last(halves).name == "step-00000004"
    ranks.run(_run, halves)
    wanted, found = tensors(last(whole)), tensors(last(halves))
    assert last(halves).name == last(whole).name == "step-00000008"
    assert wanted.keys() == found.keys()
    for key, value in wanted.items():
        assert torch.equal(value, found[key]), key
    assert losses(halves) == losses(whole)
    assert len(losses(whole)) == 8
    noise = [[line.get("noise_scale_error") for line in _train_lines(raw)] for raw in (whole, halves)]
    assert noise[0] == noise[1]


TRAJECTORY = {"every": "1 steps", "interpolate": {"steps": [1, 6], "every": "4 steps", "points": 3}}


@covering(lambda kind, stage: (kind, stage) in {("text", 2), ("images", 3)})
@pytest.mark.parametrize("ranks", [2], indirect=True)
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("kind", ["text", "images"])
def test_trajectory_measurements_do_not_change_the_training(
    ranks: Ranks, workspace: Path, kind: str, stage: int
) -> None:
    """And the interpolated loss at the weights before the step is the training loss."""
    make = {"text": text, "images": images}[kind]
    plain, watched = (
        make(workspace, f"walk-{kind}-{stage}-{name}", engine={"stage": stage}, trajectory=trajectory)
        for name, trajectory in (("off", {}), ("on", TRAJECTORY))
    )
    ranks.run(_run, plain)
    ranks.run(_run, {**watched, "stop_after": "5 steps"})
    ranks.run(_run, watched)
    wanted, found = tensors(last(plain)), tensors(last(watched))
    assert wanted.keys() == found.keys()
    for key, value in wanted.items():
        assert torch.equal(value, found[key]), key
    assert losses(plain) == losses(watched)
    history = read(Path(watched["runs"]) / watched["name"])
    # After a resume, the weights before the first step are known, and those of the step before are not.
    assert [line["step"] for line in history.walk if line["cosine"] is None] == [1, 6]
    assert [line["step"] for line in history.between] == [1, 4, 6, 8]
    for line in history.between:
        assert len(line["losses"]) == 3
        assert line["losses"][0] == pytest.approx(losses(watched)[line["step"] - 1], rel=1e-6)
        assert line["losses"][1] != line["losses"][0]
    assert history.walk[-1]["distance"] > history.walk[0]["distance"] == pytest.approx(history.walk[0]["update_norm"])
    names = history.norms[-1]["update_norms"]
    # In the model's order: a layer's bias follows its weight, which is in another param group.
    order = list(names)
    weights = [name for name in order if name.endswith(".weight") and name.removesuffix("weight") + "bias" in names]
    assert [order[order.index(name) + 1] for name in weights] == [
        name.removesuffix("weight") + "bias" for name in weights
    ]
    assert sum(v**2 for v in names.values()) ** 0.5 == pytest.approx(history.walk[-1]["update_norm"], rel=1e-4)


@covering(lambda kind, stage: (kind, stage) in {("text", 3), ("images", 1)})
@pytest.mark.parametrize("ranks", [2], indirect=True)
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("kind", ["text", "images"])
def test_noise_scale_measurement_does_not_change_the_training(
    ranks: Ranks, workspace: Path, kind: str, stage: int
) -> None:
    precision = "bf16" if stage == 1 else "fp32"
    skip_without(precision, ranks)
    make = {"text": text, "images": images}[kind]
    found = []
    for watch in (True, False):
        raw = make(
            workspace, f"noise-{kind}-{stage}-{watch}", duration="12 steps", log={"noise_scale": watch},
            engine={"stage": stage, "activation_checkpointing": True, "precision": precision},
        )  # fmt: skip
        ranks.run(_run, raw)
        found.append(tensors(last(raw)))
        assert any("noise_scale_error" in line for line in _train_lines(raw)) == watch
    assert found[0].keys() == found[1].keys()
    for key, value in found[0].items():
        assert torch.equal(value, found[1][key]), key


@pytest.fixture(scope="module")
def alone(workspace: Path) -> dict[str, Any]:
    """A run on one process, with which the others are compared."""
    raw = text(workspace, "alone", model={"dropout": 0.0})
    one = Ranks(1)
    one.run(_run, raw)
    one.close()
    return raw


@covering(lambda stage, ranks: stage == 2 or (stage == 3 and ranks == 2))
@pytest.mark.parametrize("ranks", [2, 4], indirect=True)
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_losses_and_weights_are_the_same_at_any_world_size(
    ranks: Ranks, workspace: Path, alone: dict[str, Any], stage: int
) -> None:
    raw = text(
        workspace,
        f"world-{ranks.world_size}-{stage}",
        model={"dropout": 0.0},
        engine={"stage": stage},
        batch={"micro": 4},
    )
    ranks.run(_run, raw)
    assert losses(raw) == pytest.approx(losses(alone), rel=1e-5)
    # 10 held-out samples in batches of 4 on 2 or 4 ranks: the last batch is short or empty.
    ours, theirs = (read(Path(r["runs"]) / r["name"]).eval[-1] for r in (raw, alone))
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    assert (ours["accuracy"], ours["examples"]) == (pytest.approx(theirs["accuracy"]), 10)
    wanted = weights(last(alone))
    for name, found in weights(last(raw)).items():
        # Early Adam updates are about lr times the sign of tiny gradients: their last bit may move a weight by that much.
        assert np.linalg.norm(found - wanted[name]) < 1e-3 * np.linalg.norm(wanted[name]) + 1e-6, name


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_phases_change_batch_length_and_schedule(ranks: Ranks, workspace: Path) -> None:
    raw = text(
        workspace,
        "phases",
        phases=[
            {"duration": "4 steps"},
            {"duration": "4 steps", "batch": {"global": 8}, "data": {"sequence_length": 32}, "optimizer": {"lr": 2e-3}},
        ],
    )
    ranks.run(_run, raw)
    stopped = {**raw, "name": "phases-stopped"}
    for stop in ("3 steps", "5 steps", None):
        ranks.run(_run, {**stopped, "stop_after": stop})
    train = read(Path(raw["runs"]) / "phases").train
    assert [line["phase"] for line in train] == [0] * 4 + [1] * 4
    assert [line["samples"] for line in train] == [16, 32, 48, 64, 72, 80, 88, 96]
    assert [line["lr"] for line in train] == pytest.approx(
        [0.5e-2, 1e-2 * 5 / 6, 1e-2 / 2, 1e-2 / 6, 1e-3, 2e-3 * 5 / 6, 1e-3, 2e-3 / 6]
    )
    assert losses(stopped) == losses(raw)
    assert [line["step"] for line in read(Path(raw["runs"]) / "phases-stopped").end] == [3, 5, 8]


@covering(lambda stage: stage in (1, 3))
@pytest.mark.parametrize("ranks", [2], indirect=True)
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_bf16(ranks: Ranks, workspace: Path, stage: int) -> None:
    skip_without("bf16", ranks)
    raw = text(workspace, f"bf16-{stage}", engine={"stage": stage, "precision": "bf16"})
    ranks.run(_run, raw)
    found = losses(raw)
    assert all(np.isfinite(found))
    assert found[0] == pytest.approx(np.log(200), rel=0.1)
    assert found[-1] < found[0]
    assert all(v.dtype == torch.float32 for k, v in tensors(last(raw)).items() if "|weight" in f"|{k.split(':')[1]}")


@covering(lambda stage: stage in (0, 3))
@pytest.mark.parametrize("ranks", [2], indirect=True)
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_fp16_with_dynamic_loss_scale(ranks: Ranks, workspace: Path, stage: int) -> None:
    skip_without("fp16", ranks)
    # SGD, whose result depends on the scale of the gradient.
    raw = text(
        workspace, f"fp16-{stage}", engine={"stage": stage, "precision": "fp16"}, duration="12 steps",
        optimizer={"name": "sgd", "lr": 0.3},
    )  # fmt: skip
    ranks.run(_run, raw)
    assert losses(raw)[-1] < losses(raw)[0] - 0.05
    assert Manifest.read(last(raw)).loss_scaler["cur_scale"] > 1
    ranks.run(_run, {**raw, "name": f"{raw['name']}-halves", "stop_after": "6 steps"})
    ranks.run(_run, {**raw, "name": f"{raw['name']}-halves"})
    assert losses({**raw, "name": f"{raw['name']}-halves"}) == losses(raw)


RULES = {
    "lars": {"name": "lars", "lr": 20, "weight_decay": 1e-4, "nesterov": True, "trust_bounds": [0, 0.01]},
    "sgd": {"name": "sgd", "lr": 0.3, "weight_decay_mode": "independent", "weight_decay": 1e-4},
    "adam": {"name": "adam", "lr": 1e-3, "amsgrad": True},
    "radam": {"name": "radam", "lr": 1e-2, "trust_ratio": True, "weight_decay_mode": "prox", "weight_decay": 1e-4},
    "adamw": {"name": "adamw", "lr": 1e-3, "weight_decay_mode": "prox-metric", "kernel": "reference"},
    "lamb": {"name": "lamb", "lr": 1e-2, "prenormalize": True, "bias_correction": False, "trust_bounds": [0.01, 10]},
}


@covering(lambda rule: rule in ("lars", "swats"))
@pytest.mark.parametrize("ranks", [2], indirect=True)
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_trains_and_resumes_bit_exact(ranks: Ranks, workspace: Path, rule: str) -> None:
    is_independent_of_lr = RULES[rule].get("weight_decay_mode") in ("independent", "prox")
    raw = text(
        workspace, f"rule-{rule}", optimizer=RULES[rule], duration="12 steps",
        schedule={"momentum": [0.95, 0.85], "scale_decay": not is_independent_of_lr},
    )  # fmt: skip
    ranks.run(_run, raw)
    assert losses(raw)[-1] < losses(raw)[0] - 0.05
    halves = {**raw, "name": f"{raw['name']}-halves"}
    ranks.run(_run, {**halves, "stop_after": "6 steps"})
    ranks.run(_run, halves)
    assert losses(halves) == losses(raw)


@pytest.mark.parametrize("ranks", [2], indirect=True)
@pytest.mark.parametrize(
    "rule, decay, depends", [("adamw", "decoupled", False), ("adam", "l2", True), ("sgd", "l2", True)]
)
def test_loss_factor_changes_only_rules_that_depend_on_it(
    ranks: Ranks, workspace: Path, rule: str, decay: str, depends: bool
) -> None:
    """The factor is a power of two, so nothing is rounded, and eps is almost 0. The loss is logged without the factor."""
    found = []
    for factor in (1, 1024):
        raw = images(
            workspace, f"factor-{rule}-{factor}", duration="4 steps",
            model={"norm": "none"}, schedule={"warmup": 0, "kind": "constant"},
            optimizer={"name": rule, "weight_decay_mode": decay, "lr": 1e-3, "weight_decay": 0.1, "loss_factor": factor, "clip": 0}
            | ({"eps": 1e-30} if rule != "sgd" else {}),
        )  # fmt: skip
        ranks.run(_run, raw)
        found.append((losses(raw), _train_lines(raw)[0]["grad_norm"]))
    assert found[0][0][0] == found[1][0][0]
    assert found[1][1] == pytest.approx(1024 * found[0][1])
    assert (found[0][0] != pytest.approx(found[1][0], rel=1e-5)) == depends


AVERAGES = {
    "swa": ({"kind": "swa", "start": "3 steps", "every": "2 steps", "batch_norm": 64}, "lamb", "WeightAverage(Lamb)"),
    "ema": ({"kind": "ema", "start": 0.5, "decay": 0.5, "batch_norm": 64}, "swats", "WeightAverage(Swats(AdamW))"),
    "lookahead": ({"kind": "lookahead", "k": 3, "alpha": 0.8}, "sgd", "Lookahead(SGD)"),
}


@covering(lambda kind, stage: stage == (3 if kind == "swa" else 2))
@pytest.mark.parametrize("ranks", [2], indirect=True)
@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("kind", AVERAGES)
def test_averages_resume_bit_exact_and_are_exported(ranks: Ranks, workspace: Path, kind: str, stage: int) -> None:
    averaging, rule, name = AVERAGES[kind]
    whole, halves = (
        images(
            workspace, f"average-{kind}-{stage}-{part}", averaging=averaging, engine={"stage": stage},
            optimizer={"name": rule, "lr": 1e-2}, evaluate=evaluate,
        )
        for part, evaluate in (("whole", {"augment": 2}), ("halves", {"every": "1 steps"}))
    )  # fmt: skip
    ranks.run(_run, whole)
    ranks.run(_run, {**halves, "stop_after": "5 steps"})
    ranks.run(_run, halves)
    assert Manifest.read(last(whole)).optimizer == name
    wanted, found = tensors(last(whole)), tensors(last(halves))
    assert wanted.keys() == found.keys()
    for key, value in wanted.items():
        assert torch.equal(value, found[key]), key
    assert losses(halves) == losses(whole)
    line = read(Path(whole["runs"]) / whole["name"]).eval[-1]
    assert np.isfinite(line["loss_augmented"])
    assert line["loss_augmented"] != line["loss"]
    if kind == "lookahead":
        assert "loss_averaged" not in line
        return
    evaluations = read(Path(halves["runs"]) / halves["name"]).eval
    assert ["loss_averaged" in each for each in evaluations] == [
        step > (3 if kind == "swa" else 4) for step in range(1, 9)
    ]
    assert evaluations[-1]["loss_averaged"] == line["loss_averaged"] != line["loss"]
    exported = load_file(Path(whole["runs"]) / whole["name"] / "export" / "model.safetensors")
    averages = weights(last(whole), "average")
    assert averages
    for key, value in averages.items():
        assert np.array_equal(exported[key.removeprefix("model.")].numpy().ravel(), value), key
    assert all(value.abs().sum() > 0 for key, value in exported.items() if key.endswith("running_mean"))


@pytest.mark.parametrize("ranks", [2], indirect=True)
@pytest.mark.parametrize("make", [text, images])
def test_activation_checkpointing_does_not_change_the_training(ranks: Ranks, workspace: Path, make: Any) -> None:
    plain, again = make(workspace, f"plain-{make.__name__}"), make(workspace, f"recompute-{make.__name__}")
    again["engine"] = {**again["engine"], "activation_checkpointing": True}
    ranks.run(_run, plain)
    ranks.run(_run, again)
    assert losses(again) == pytest.approx(losses(plain), rel=1e-5)
    for key, value in tensors(last(plain)).items():
        if "|buffer" in f"|{key.split(':')[1]}":
            torch.testing.assert_close(tensors(last(again))[key], value)


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_run_directory_and_export(ranks: Ranks, workspace: Path) -> None:
    raw = images(workspace, "directory", checkpoint={"every": "2 steps", "keep": 2})
    ranks.run(_run, merged(raw, {"log": {"report": True}}))
    run = Path(raw["runs"]) / "directory"
    assert {p.name for p in run.iterdir()} >= {
        "config.yaml",
        "metrics.jsonl",
        "checkpoints",
        "export",
        "report.html",
        "logs",
    }
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["step-00000006", "step-00000008"]
    from transformers import AutoModelForImageClassification

    import bellwether.trainer.models.auto_classes  # noqa: F401  (registers CIFAR ResNets; else from_pretrained needs trust_remote_code)

    model = AutoModelForImageClassification.from_pretrained(run / "export")
    wanted = weights(run / "checkpoints" / "step-00000008")
    found = dict(model.named_parameters())
    assert {f"model.{n}" for n in found} == set(wanted)
    for name, parameter in found.items():
        assert np.array_equal(parameter.detach().numpy().ravel(), wanted[f"model.{name}"]), name
    history = read(run)
    assert set(history.train[-1]["trust_ratio"]) == {"min", "median", "max"}
    assert history.eval[-1]["examples"] == 10


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_precision_may_change_and_the_loss_scale_is_not_carried_over(ranks: Ranks, workspace: Path) -> None:
    skip_without("bf16", ranks)
    raw = text(workspace, "precision", duration="9 steps")
    for stop, precision in (("3 steps", "fp32"), ("6 steps", "bf16"), (None, "fp32")):
        ranks.run(_run, {**raw, "stop_after": stop, "engine": {"stage": 2, "precision": precision}})
        assert Manifest.read(last(raw)).loss_scaler == {}
    assert losses(raw)[-1] < losses(raw)[0]
    if ranks.run(is_supported, "fp16")[0]:
        half = {**raw, "name": "half", "engine": {"stage": 2, "precision": "fp16"}}
        ranks.run(_run, {**half, "resume": str(last({**raw})), "duration": "12 steps"})
        assert Manifest.read(last(half)).loss_scaler["cur_scale"] > 1


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_damaged_newest_checkpoint_is_skipped(ranks: Ranks, workspace: Path) -> None:
    whole = text(workspace, "undamaged")
    ranks.run(_run, whole)
    raw = text(workspace, "damaged", checkpoint={"every": "2 steps"})
    ranks.run(_run, {**raw, "stop_after": "6 steps"})
    file = last(raw) / "rank-00001.safetensors"
    file.write_bytes(file.read_bytes()[:-50])
    ranks.run(_run, raw)
    assert losses(raw) == losses(whole)
    assert (last(raw).parent / "step-00000006.damaged").is_dir()


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_nan_loss_ends_the_run_with_an_error(ranks: Ranks, workspace: Path) -> None:
    raw = text(workspace, "diverged", optimizer={"name": "adamw", "lr": 1e30, "clip": 0}, schedule={"warmup": 0})
    with pytest.raises(AssertionError, match=r"optimizer\.lr: 1e\+30: the loss is not a number at step"):
        ranks.run(_run, raw)
    assert not (Path(raw["runs"]) / "diverged" / "export").exists()


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_divergence_keeps_the_last_good_checkpoint_and_repeats_at_the_same_step(ranks: Ranks, workspace: Path) -> None:
    raw = text(
        workspace, "range", duration="40 steps", divergence=2.0, optimizer={"name": "sgd", "lr": 1e4, "clip": 0},
        schedule={"kind": "exponential", "start": 1e-6, "final": 1.0, "warmup": 0}, checkpoint={"every": "7 steps", "keep": 1},
    )  # fmt: skip
    ranks.run(_run, raw)
    run = Path(raw["runs"]) / "range"
    first, kept = read(run), last(raw)
    assert first.state == "diverged"
    assert 5 < first.train[-1]["step"] < 40
    assert first.train[-1]["loss"] > 2 * first.train[0]["loss"]
    assert Manifest.read(kept).place.step == (first.train[-1]["step"] - 1) // 7 * 7
    assert first.train[-1]["step"] - Manifest.read(kept).place.step > 1  # steps that are trained again
    assert not (run / "finished.json").exists()
    ranks.run(_run, raw)
    again = read(run)
    assert again.state == "diverged"
    assert [line["loss"] for line in again.train] == [line["loss"] for line in first.train]
    assert last(raw) == kept


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_resume_with_changed_data_is_refused(ranks: Ranks, workspace: Path) -> None:
    corpus = workspace / "growing.txt"
    corpus.write_bytes((workspace / "corpus.txt").read_bytes())
    raw = text(workspace, "growing", data={"source": str(corpus)}, stop_after="3 steps")
    ranks.run(_run, raw)
    corpus.write_text(corpus.read_text() * 2)
    with pytest.raises(AssertionError, match=r"data\.source.*the data has changed"):
        ranks.run(_run, {**raw, "stop_after": None})
    phase = {"data": {"source": str(workspace / "corpus.txt")}}
    with pytest.raises(AssertionError, match=r"phases\[1\]\.data.*vocabulary"):
        ranks.run(
            _run, {**raw, "name": "mixed", "phases": [{}, phase | {"data": {**phase["data"], "lowercase": False}}]}
        )


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_checkpoint_at_or_after_the_last_step_is_refused(ranks: Ranks, workspace: Path) -> None:
    first = text(workspace, "long-one")
    ranks.run(_run, first)
    for duration in ("8 steps", "5 steps"):
        raw = text(workspace, "short-one", duration=duration, resume=str(last(first)))
        with pytest.raises(AssertionError, match="the checkpoint is at step 8, this run ends at step"):
            ranks.run(_run, raw)


REJECTED_BY_DEEPSPEED: list[dict[str, Any]] = [
    {"zero_optimization": {"nope": 1}},
    {"zero_optimization": 5},
    {"zero_optimization": {"reduce_bucket_size": "big"}},
]


@pytest.mark.parametrize("ranks", [2], indirect=True)
@pytest.mark.parametrize("given", REJECTED_BY_DEEPSPEED, ids=str)
def test_keys_that_deepspeed_rejects_are_named(ranks: Ranks, workspace: Path, given: dict[str, Any]) -> None:
    raw = text(workspace, "refused", engine={"stage": 2, "deepspeed": given})
    with pytest.raises(AssertionError, match=r"engine\.deepspeed: .*DeepSpeed rejects it"):
        ranks.run(_run, raw)


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_engine_deepspeed_keys_reach_deepspeed(ranks: Ranks, workspace: Path) -> None:
    given = {"zero_optimization": {"offload_optimizer": {"device": "cpu"}, "round_robin_gradients": True}}
    raw = text(workspace, "passed-on", engine={"stage": 2, "deepspeed": given})
    plain = text(workspace, "not-passed-on", engine={"stage": 2})
    ranks.run(_run, raw)
    ranks.run(_run, plain)
    assert losses(raw) == pytest.approx(losses(plain), rel=1e-5)
    # With round_robin_gradients each rank holds other parameters.
    assert tensors(last(raw)).keys() != tensors(last(plain)).keys()


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_state_of_another_optimizer_is_refused(ranks: Ranks, workspace: Path) -> None:
    first = text(workspace, "lamb", stop_after="3 steps")
    ranks.run(_run, first)
    with pytest.raises(AssertionError, match=r"Lamb's, not AdamW's; set optimizer\.name: lamb"):
        ranks.run(_run, text(workspace, "adamw", resume=str(last(first)), optimizer={"name": "adamw"}))


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_other_batch_size_cannot_resume_between_its_steps(ranks: Ranks, workspace: Path) -> None:
    first = text(workspace, "first", stop_after="3 steps")
    ranks.run(_run, first)
    other = text(workspace, "other", batch={"global": 32}, resume=str(last(first)))
    with pytest.raises(AssertionError, match="resume with the batch size that it was made with"):
        ranks.run(_run, other)
    ranks.run(_run, text(workspace, "same", resume=str(last(first)), engine={"stage": 3}))
    assert len(losses(text(workspace, "same"))) == 5


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_target_ends_the_run_when_it_is_reached(ranks: Ranks, workspace: Path) -> None:
    """A restart does not train on, and a run with a changed target resumes."""
    easy = {"every": "1 steps", "target": "loss <= 1e9"}
    raw = text(workspace, "target", evaluate={"every": "3 steps", "target": "loss <= 1e9"})
    run = Path(raw["runs"]) / raw["name"]
    for _ in range(2):
        ranks.run(_run, raw)
        history = read(run)
        assert (history.state, history.train[-1]["step"], len(history.eval)) == ("reached", 3, 1)
        assert last(raw).name == "step-00000003"
    assert (run / "finished.json").exists()
    assert (run / "export" / "model.safetensors").exists()

    ranks.run(_run, merged(raw, {"evaluate": {**easy, "target": "loss <= 0.01"}}))
    assert read(run).state == "finished"
    assert last(raw).name == "step-00000008"


@pytest.mark.parametrize("ranks", [2], indirect=True)
@pytest.mark.parametrize("step", [4, 8])
def test_pending_evaluation_is_made_on_resume(ranks: Ranks, workspace: Path, step: int) -> None:
    """The run was killed between checkpoint and evaluation, in the middle or at the end."""
    raw = text(workspace, f"cut-{step}", evaluate={"every": "4 steps"}, checkpoint={"every": "4 steps"})
    raw |= {"stop_after": f"{step} steps"}
    ranks.run(_run, raw)
    run = Path(raw["runs"]) / raw["name"]
    whole = read(run).eval
    lines = [line for line in (run / "metrics.jsonl").read_text().splitlines() if f'"step": {step}' in line]
    cut = [line for line in lines if '"event": "eval"' in line or '"event": "end"' in line]
    assert len(cut) == 2
    text_ = (run / "metrics.jsonl").read_text()
    for line in cut:
        text_ = text_.replace(line + "\n", "")
    (run / "metrics.jsonl").write_text(text_)
    (run / "finished.json").unlink(missing_ok=True)
    ranks.run(_run, merged(raw, {"stop_after": "8 steps"}))
    history = read(run)
    assert [line["step"] for line in history.eval] == [4, 8]
    assert history.eval[: len(whole)] == [
        {**old, "time": new["time"]} for old, new in zip(whole, history.eval, strict=False)
    ]
    assert history.state == "finished"
    assert (run / "finished.json").exists()


@pytest.mark.parametrize(
    "text_, values, holds",
    [
        ("accuracy >= 0.5", {"accuracy": 0.5}, True),
        ("val/Loss<=2", {"loss": 2.1}, False),
        ("loss <= 2", {"loss": float("nan")}, False),
        ("loss <= 2", {}, False),
    ],
)
def test_target_holds(text_: str, values: dict[str, float], holds: bool) -> None:
    assert c.Target.parse(text_).holds(values) is holds


@pytest.mark.parametrize(
    "wrong", ["accuracy > 0.9", "loss <= e", "0.9", "perplexity <= 3", 0.9, "accuracy >= 90", "accuracy <= 0.9"]
)
def test_invalid_target_is_refused(workspace: Path, wrong: Any) -> None:
    with pytest.raises(c.ConfigErrors, match=r"evaluate\.target.*write 'accuracy >= 0\.9'"):
        c.validate(text(workspace, "wrong", evaluate={"target": wrong}))

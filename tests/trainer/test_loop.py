"""Whole runs on real process groups: bit-exact resume, any world size, phases, every precision."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bellwether.trainer.checkpoint import Manifest
from bellwether.trainer.metrics import read
from bellwether.trainer.step_metrics import StepMetrics
from tests.precision import is_supported, skip_without
from tests.ranks import Ranks
from tests.tiers import covering
from tests.trainer.runs import images, last, losses, merged, run_config, tensors, text, train_lines, weights


# test_checkpoint.py loads at stages 0 and 1 too.
@covering(lambda kind, stage: (kind, stage) in {("text", 2), ("images", 3)})
@pytest.mark.parametrize("ranks", [2], indirect=True)
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("kind", ["text", "images"])
def test_resume_is_bit_exact(ranks: Ranks, workspace: Path, kind: str, stage: int) -> None:
    """2n steps equal n steps, stop, resume, n steps, with evaluations and checkpoints at different times."""
    make = {"text": text, "images": images}[kind]
    whole = make(workspace, f"whole-{kind}-{stage}", engine={"stage": stage})
    halves = make(workspace, f"halves-{kind}-{stage}", engine={"stage": stage}, evaluate={"every": "3 steps"})
    ranks.run(run_config, whole)
    ranks.run(run_config, {**halves, "stop_after": "4 steps"})
    assert last(halves).name == "step-00000004"
    ranks.run(run_config, halves)
    wanted, found = tensors(last(whole)), tensors(last(halves))
    assert last(halves).name == last(whole).name == "step-00000008"
    assert wanted.keys() == found.keys()
    for key, value in wanted.items():
        assert torch.equal(value, found[key]), key
    assert losses(halves) == losses(whole)
    assert len(losses(whole)) == 8
    manifest = Manifest.read(last(whole))
    assert Manifest.read(last(halves)) == manifest
    assert manifest.noise["steps"] > 4, "of both halves"


TRAJECTORY = {"every": "1 steps", "interpolate": {"steps": [1, 6], "every": "4 steps", "points": 3}}


@covering(lambda kind, stage: (kind, stage) == ("text", 2))
@pytest.mark.parametrize("ranks", [2], indirect=True)
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("kind", ["text", "images"])
def test_trajectory_measurements_do_not_change_the_training(
    ranks: Ranks, workspace: Path, kind: str, stage: int
) -> None:
    """The interpolated loss at the weights before the step equals the training loss."""
    make = {"text": text, "images": images}[kind]
    plain, watched = (
        make(workspace, f"walk-{kind}-{stage}-{name}", engine={"stage": stage}, trajectory=trajectory)
        for name, trajectory in (("off", {}), ("on", TRAJECTORY))
    )
    ranks.run(run_config, plain)
    ranks.run(run_config, {**watched, "stop_after": "5 steps"})
    ranks.run(run_config, watched)
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


@covering(lambda kind, stage: (kind, stage) == ("images", 1))
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
        ranks.run(run_config, raw)
        found.append(tensors(last(raw)))
        assert any("noise_scale_error" in line for line in train_lines(raw)) == watch
    assert found[0].keys() == found[1].keys()
    for key, value in found[0].items():
        assert torch.equal(value, found[1][key]), key


@pytest.fixture(scope="module")
def alone(workspace: Path) -> dict[str, Any]:
    """A run on one process, with which the others are compared."""
    raw = text(workspace, "alone", model={"dropout": 0.0})
    one = Ranks(1)
    one.run(run_config, raw)
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
    ranks.run(run_config, raw)
    assert losses(raw) == pytest.approx(losses(alone), rel=1e-5)
    # 10 held-out samples in batches of 4 on 2 or 4 ranks: the last batch is short or empty.
    parallel, single = (read(Path(r["runs"]) / r["name"]).eval[-1] for r in (raw, alone))
    assert parallel["loss"] == pytest.approx(single["loss"], rel=1e-5)
    assert (parallel["accuracy"], parallel["examples"]) == (pytest.approx(single["accuracy"]), 10)
    wanted = weights(last(alone))
    for name, found in weights(last(raw)).items():
        # Early Adam updates are about lr times the sign of a tiny gradient, so rounding of the gradient can change a weight by lr.
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
    ranks.run(run_config, raw)
    stopped = {**raw, "name": "phases-stopped"}
    for stop in ("3 steps", "5 steps", None):
        ranks.run(run_config, {**stopped, "stop_after": stop})
    train = read(Path(raw["runs"]) / "phases").train
    assert [line["phase"] for line in train] == [0] * 4 + [1] * 4
    assert [line["samples"] for line in train] == [16, 32, 48, 64, 72, 80, 88, 96]
    assert [line["lr"] for line in train] == pytest.approx(
        [0.5e-2, 1e-2 * 5 / 6, 1e-2 / 2, 1e-2 / 6, 1e-3, 2e-3 * 5 / 6, 1e-3, 2e-3 / 6]
    )
    assert losses(stopped) == losses(raw)
    assert [line["step"] for line in read(Path(raw["runs"]) / "phases-stopped").end] == [3, 5, 8]


@covering(lambda stage: stage == 3)
@pytest.mark.parametrize("ranks", [2], indirect=True)
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_bf16(ranks: Ranks, workspace: Path, stage: int) -> None:
    skip_without("bf16", ranks)
    raw = text(workspace, f"bf16-{stage}", engine={"stage": stage, "precision": "bf16"})
    ranks.run(run_config, raw)
    found = losses(raw)
    assert all(np.isfinite(found))
    assert found[0] == pytest.approx(np.log(200), rel=0.1)
    assert found[-1] < found[0]
    assert all(v.dtype == torch.float32 for k, v in tensors(last(raw)).items() if "|weight" in f"|{k.split(':')[1]}")


@covering(lambda stage: stage == 2)
@pytest.mark.parametrize("ranks", [2], indirect=True)
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_fp16_with_dynamic_loss_scale(ranks: Ranks, workspace: Path, stage: int) -> None:
    skip_without("fp16", ranks)
    # SGD, whose result depends on the scale of the gradient.
    raw = text(
        workspace, f"fp16-{stage}", engine={"stage": stage, "precision": "fp16"}, duration="12 steps",
        optimizer={"name": "sgd", "lr": 0.1},
    )  # fmt: skip
    ranks.run(run_config, raw)
    assert losses(raw)[-1] < losses(raw)[0] - 0.05
    assert Manifest.read(last(raw)).loss_scaler["cur_scale"] > 1
    ranks.run(run_config, {**raw, "name": f"{raw['name']}-halves", "stop_after": "6 steps"})
    ranks.run(run_config, {**raw, "name": f"{raw['name']}-halves"})
    assert losses({**raw, "name": f"{raw['name']}-halves"}) == losses(raw)


@covering(lambda make: make is text)
@pytest.mark.parametrize("ranks", [2], indirect=True)
@pytest.mark.parametrize("make", [text, images])
def test_activation_checkpointing_does_not_change_the_training(ranks: Ranks, workspace: Path, make: Any) -> None:
    plain, again = make(workspace, f"plain-{make.__name__}"), make(workspace, f"recompute-{make.__name__}")
    again["engine"] = {**again["engine"], "activation_checkpointing": True}
    ranks.run(run_config, plain)
    ranks.run(run_config, again)
    assert losses(again) == pytest.approx(losses(plain), rel=1e-5)
    for key, value in tensors(last(plain)).items():
        if "|buffer" in f"|{key.split(':')[1]}":
            torch.testing.assert_close(tensors(last(again))[key], value)


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_run_directory_and_export(ranks: Ranks, workspace: Path) -> None:
    raw = images(workspace, "directory", checkpoint={"every": "2 steps", "keep": 2})
    ranks.run(run_config, merged(raw, {"log": {"report": True}}))
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


def _leave_early(raw: dict[str, Any], left: str) -> list[str]:
    """Train, where rank 0 exports when rank 1 has left; returns what it found."""
    from bellwether.trainer import run

    finish, found = run._finish, []

    def late(state: Any) -> None:
        deadline = time.monotonic() + 20
        while not Path(left).exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        found.append("rank 1 has left" if Path(left).exists() else "rank 1 waits")
        finish(state)

    run._finish = late
    try:
        run_config(raw)
    finally:
        run._finish = finish
    if torch.distributed.get_rank() == 1:
        Path(left).touch()
    return found


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_other_ranks_do_not_wait_for_export_and_report(ranks: Ranks, workspace: Path, tmp_path: Path) -> None:
    raw = images(workspace, "leaves", duration="1 steps")
    assert ranks.run(_leave_early, raw, str(tmp_path / "left")) == [["rank 1 has left"], []]
    run = Path(raw["runs"], raw["name"])
    assert (run / "export" / "model.safetensors").is_file()
    assert (run / "finished.json").is_file()
    assert json.loads((run / "logs" / "heartbeat.json").read_text())["ended"] == "finished"


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_precision_may_change_and_the_loss_scale_is_not_carried_over(ranks: Ranks, workspace: Path) -> None:
    skip_without("bf16", ranks)
    raw = text(workspace, "precision", duration="9 steps")
    for stop, precision in (("3 steps", "fp32"), ("6 steps", "bf16"), (None, "fp32")):
        ranks.run(run_config, {**raw, "stop_after": stop, "engine": {"stage": 2, "precision": precision}})
        assert Manifest.read(last(raw)).loss_scaler == {}
    assert losses(raw)[-1] < losses(raw)[0]
    if ranks.run(is_supported, "fp16")[0]:
        half = {**raw, "name": "half", "engine": {"stage": 2, "precision": "fp16"}}
        ranks.run(run_config, {**half, "resume": str(last({**raw})), "duration": "12 steps"})
        assert Manifest.read(last(half)).loss_scaler["cur_scale"] > 1


def _pauses(raw: dict[str, Any]) -> int:
    """Train; return how often the clock of the steps was paused, which on a GPU waits for the device."""
    original, paused = StepMetrics.paused, []

    def counted(self: StepMetrics) -> Any:
        paused.append(1)
        return original(self)

    StepMetrics.paused = counted  # type: ignore[method-assign]
    try:
        run_config(raw)
    finally:
        StepMetrics.paused = original  # type: ignore[method-assign]
    return len(paused)


@pytest.mark.parametrize("ranks", [1], indirect=True)
def test_steps_without_checkpoint_or_evaluation_do_not_wait_for_the_device(ranks: Ranks, workspace: Path) -> None:
    raw = text(workspace, "unpaused", checkpoint={"every": "4 steps"}, duration="8 steps")
    assert ranks.run(_pauses, raw) == [2]

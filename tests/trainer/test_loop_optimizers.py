"""Whole runs with every optimizer and every kind of averaging."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bellwether.trainer.checkpoint import Manifest
from bellwether.trainer.metrics import read
from tests.precision import skip_without
from tests.ranks import Ranks
from tests.tiers import covering
from tests.trainer.runs import images, last, losses, merged, run_config, tensors, text, train_lines, weights

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
    ranks.run(run_config, raw)
    assert losses(raw)[-1] < losses(raw)[0] - 0.05
    halves = {**raw, "name": f"{raw['name']}-halves"}
    ranks.run(run_config, {**halves, "stop_after": "6 steps"})
    ranks.run(run_config, halves)
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
        ranks.run(run_config, raw)
        found.append((losses(raw), train_lines(raw)[0]["grad_norm"]))
    assert found[0][0][0] == found[1][0][0]
    assert found[1][1] == pytest.approx(1024 * found[0][1])
    assert (found[0][0] != pytest.approx(found[1][0], rel=1e-5)) == depends


SIXTEEN_BITS = {
    1: {"name": "lamb", "lr": 1e-2, "kahan_sum": True},
    2: {"name": "adamw", "lr": 1e-3, "stochastic_rounding": True},
    3: {"name": "lamb", "lr": 1e-2, "kahan_sum": True},
}


@covering(lambda stage: stage == 1)
@pytest.mark.parametrize("ranks", [2], indirect=True)
@pytest.mark.parametrize("stage", SIXTEEN_BITS)
def test_bf16_weights_and_other_groups_resume(ranks: Ranks, workspace: Path, stage: int) -> None:
    """bf16 weights without fp32 masters, groups by layer; then a run with other groups continues from their checkpoint."""
    skip_without("bf16", ranks)
    engine = {"stage": stage, "precision": "bf16", "deepspeed": {"bf16": {"bf16_master_weights_and_grads": True}}}
    scaled = {"layer_decay": 0.5, "lr_scale": {"*.cls.*": 2.0}, "exclude": ["*.position_embeddings.*"]}
    raw = text(
        workspace,
        f"sixteen-bits-{stage}",
        duration="6 steps",
        engine=engine,
        optimizer={**SIXTEEN_BITS[stage], **scaled},
    )
    ranks.run(run_config, raw)
    halves = {**raw, "name": f"{raw['name']}-halves"}
    ranks.run(run_config, {**halves, "stop_after": "3 steps"})
    middle = last(halves)
    ranks.run(run_config, halves)
    assert losses(halves) == losses(raw)
    assert losses(raw)[-1] < losses(raw)[0]
    wanted, found = tensors(last(raw)), tensors(last(halves))
    assert all(torch.equal(value, found[key]) for key, value in wanted.items())
    weights_in_file = {value.dtype for key, value in wanted.items() if ":weight|" in key}
    assert weights_in_file == {torch.bfloat16}
    kept = [value for key, value in wanted.items() if ":kahan_comp|" in key]
    assert bool(kept) == ("kahan_sum" in SIXTEEN_BITS[stage]) == any(value.abs().sum() > 0 for value in kept)
    assert {group["lr_factor"] for group in read(last(raw).parent.parent).groups[-1]["groups"]} == {
        2.0,
        0.5,
        0.25,
        0.125,
    }
    peak = SIXTEEN_BITS[stage]["lr"]
    assert max(line["lr"] for line in train_lines(raw)) <= peak, "that of parameters without a factor is logged"
    # Other groups, with fp32 master weights, at another stage.
    plain = {key: SIXTEEN_BITS[stage][key] for key in ("name", "lr")}
    other = text(workspace, f"sixteen-bits-{stage}-other", duration="6 steps", optimizer=plain, resume=str(middle))
    ranks.run(run_config, other)
    assert [line["step"] for line in train_lines(other)] == [4, 5, 6]
    assert losses(other)[-1] < losses(raw)[0]


AVERAGES = {
    "swa": ({"kind": "swa", "start": "3 steps", "every": "2 steps", "batch_norm": 64}, "lamb", "WeightAverage(Lamb)"),
    "ema": ({"kind": "ema", "start": 0.5, "decay": 0.5, "batch_norm": 64}, "swats", "WeightAverage(Swats(AdamW))"),
    "lookahead": ({"kind": "lookahead", "k": 3, "alpha": 0.8}, "sgd", "Lookahead(SGD)"),
}


@covering(lambda stage: stage == 2)
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
    ranks.run(run_config, whole)
    ranks.run(run_config, {**halves, "stop_after": "5 steps"})
    ranks.run(run_config, halves)
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


def _loss_of_export(raw: dict[str, Any]) -> float:
    """The held-out loss of the model that a checkpoint results in, in one process."""
    from bellwether.trainer import checkpoint
    from bellwether.trainer.config import validate
    from bellwether.trainer.data import load
    from bellwether.trainer.data.loader import evaluation_batches
    from bellwether.trainer.models import build

    config = validate(raw)
    data = load(config.data)
    task = build(config.model, data)
    assert checkpoint.load_into_model(last(raw), task)
    task.eval()
    losses = []
    with torch.no_grad():
        for batch in evaluation_batches(
            data.validation, limit=config.evaluate.limit, micro=1, rank=0, world_size=1, workers=0
        ):
            losses.append(float(task(**{key: value for key, value in batch.items() if key != "weight"})[0]))
    return float(np.mean(losses))


SCHEDULE_FREE = {
    "optimizer": {"name": "schedule-free-adamw", "lr": 1e-2}, "schedule": {"kind": "constant", "warmup": 0.25},
    "averaging": {"batch_norm": 64},
}  # fmt: skip


@covering(lambda stage, precision: (stage, precision) == (2, "fp32"))
@pytest.mark.parametrize("ranks", [2], indirect=True)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_schedule_free_evaluates_and_exports_its_average(
    ranks: Ranks, workspace: Path, stage: int, precision: str
) -> None:
    skip_without(precision, ranks)
    make = images if stage == 2 else text  # one has BatchNorm, the other can be evaluated without its statistics
    whole, halves = (
        make(
            workspace, f"schedule-free-{stage}-{precision}-{part}", engine={"stage": stage, "precision": precision},
            evaluate=evaluate, duration="5 steps", **SCHEDULE_FREE,
        )
        for part, evaluate in (("whole", {}), ("halves", {"every": "1 steps"}))
    )  # fmt: skip
    ranks.run(run_config, whole)
    ranks.run(run_config, {**halves, "stop_after": "3 steps"})
    ranks.run(run_config, halves)
    assert Manifest.read(last(whole)).optimizer == "AdamWScheduleFree"
    wanted, found = tensors(last(whole)), tensors(last(halves))
    assert wanted.keys() == found.keys()
    for key, value in wanted.items():
        assert torch.equal(value, found[key]), key
    assert losses(whole) == losses(halves)
    exported = load_file(Path(whole["runs"]) / whole["name"] / "export" / "model.safetensors")
    y, z = (weights(last(whole), kind) for kind in ("weight", "z"))
    assert y.keys() == z.keys()
    for name in y:
        x = (y[name].astype(np.float64) - 0.1 * z[name]) / 0.9  # of y = 0.1 z + 0.9 x
        assert exported[name.removeprefix("model.")].numpy().ravel() == pytest.approx(x, abs=1e-6), name
        assert not np.array_equal(x, y[name])
    line = read(Path(whole["runs"]) / whole["name"]).eval[-1]
    assert "loss_averaged" not in line
    if make is text:
        # bf16 rounds the model's weights and activations to 8 bits.
        assert line["loss"] == pytest.approx(_loss_of_export(whole), abs=1e-5 if precision == "fp32" else 0.05)
    else:
        assert all(value.abs().sum() > 0 for key, value in exported.items() if key.endswith("running_mean"))


@covering(lambda: False)
@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_schedule_free_continues_its_average_with_another_beta1(ranks: Ranks, workspace: Path) -> None:
    """In a new phase, whose learning rate is too small to change the average much."""
    second = {"optimizer": {"betas": [0.5, 0.999], "lr": 1e-9}, "duration": "1 steps"}
    raw = text(workspace, "schedule-free-phases", phases=[{"duration": "5 steps"}, second], **SCHEDULE_FREE)
    one = {**raw, "name": "schedule-free-phase", "phases": [], "duration": "5 steps"}
    ranks.run(run_config, one)
    ranks.run(run_config, raw)
    y, z, old_y, old_z = (weights(last(of), kind) for of in (raw, one) for kind in ("weight", "z"))
    scalars = Manifest.read(last(raw)).scalars
    c = scalars["schedule_free_lr_max.0"] ** 2 / scalars["schedule_free_weight_sum.0"]
    assert 0.1 < c < 0.3
    for name in y:
        x, old_x = (y[name] - 0.5 * z[name]) / 0.5, (old_y[name] - 0.1 * old_z[name]) / 0.9
        assert x == pytest.approx((1 - c) * old_x + c * z[name], abs=1e-5), name


@covering(lambda kind: kind == "images")
@pytest.mark.parametrize("ranks", [2], indirect=True)
@pytest.mark.parametrize("kind", ["text", "images"])
def test_soap_resumes_bit_exact(ranks: Ranks, workspace: Path, kind: str) -> None:
    """Its eigenvectors are in the checkpoint."""
    whole, halves = (
        {"text": text, "images": images}[kind](
            workspace, f"soap-{kind}-{part}", engine={"stage": 0}, duration="6 steps",
            optimizer={"name": "soap", "lr": 3e-3, "precondition_frequency": 2, "max_precond_dim": 64},
        )
        for part in ("whole", "halves")
    )  # fmt: skip
    ranks.run(run_config, whole)
    ranks.run(run_config, {**halves, "stop_after": "3 steps"})
    ranks.run(run_config, halves)
    wanted, found = tensors(last(whole)), tensors(last(halves))
    assert wanted.keys() == found.keys()
    assert any(":GG_1|" in key for key in wanted)
    for key, value in wanted.items():
        assert torch.equal(value, found[key]), key
    assert min(losses(whole)[1:]) < losses(whole)[0]


@covering(lambda: False)
@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_soap_with_other_eigenvectors_is_refused(ranks: Ranks, workspace: Path) -> None:
    rule = {"name": "soap", "lr": 3e-3, "max_precond_dim": 64}
    raw = images(workspace, "soap-small", engine={"stage": 0}, duration="2 steps", optimizer=rule)
    ranks.run(run_config, raw)
    larger = {"optimizer": {"max_precond_dim": 4096, "precondition_1d": True}}
    with pytest.raises(Exception, match=r"does not contain (GG|Q)_"):
        ranks.run(run_config, merged({**raw, "name": "soap-large", "resume": str(last(raw))}, larger))

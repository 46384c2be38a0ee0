"""Whole runs with every technique at once, over phases of different image sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bellwether.trainer import config as c
from bellwether.trainer.metrics import read
from bellwether.trainer.phase_rows import rows
from bellwether.trainer.phases import plan
from tests.ranks import Ranks
from tests.trainer.runs import images, last, losses, run_config, tensors, weights


def everything(workspace: Path, name: str, **changes: Any) -> dict[str, Any]:
    """Phases of 8 and 12 pixels, 4 steps each. Without BatchNorm, whose statistics are those of a micro-batch."""
    raw = images(
        workspace, name, model={"norm": "none", "stochastic_depth": 0.4}, loss={"kind": "bce", "threshold": 0.2},
        data={
            "crop": "resized", "test_size": 10, "test_crop": 0.95, "randaugment": 6, "erase": 0.2, "mixup": 0.2, "cutmix": 1.0,
        },
        phases=[{"duration": "4 steps"}, {"duration": "4 steps", "data": {"size": 12}}],
    )  # fmt: skip
    return {**raw, **changes}


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_progressive_resizing_with_all_techniques_resumes_to_the_same_bits(ranks: Ranks, workspace: Path) -> None:
    whole, halves = everything(workspace, "whole-techniques"), everything(workspace, "halves-techniques")
    ranks.run(run_config, whole)
    ranks.run(run_config, {**halves, "stop_after": "6 steps"})
    ranks.run(run_config, halves)
    wanted, found = tensors(last(whole)), tensors(last(halves))
    assert wanted.keys() == found.keys()
    for key, value in wanted.items():
        assert torch.equal(value, found[key]), key
    assert losses(halves) == losses(whole)
    held_out = read(Path(whole["runs"]) / whole["name"]).eval
    # Binary cross-entropy of training is near ln 2 = 0.69, cross-entropy of held-out images near ln 10 = 2.3.
    assert losses(whole)[0] == pytest.approx(0.69, abs=0.15)
    assert [line["loss"] for line in held_out] == pytest.approx([2.3, 2.3], abs=0.4)


@pytest.mark.full
@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_losses_and_weights_are_the_same_at_any_world_size(ranks: Ranks, workspace: Path) -> None:
    alone, both = everything(workspace, "alone-techniques"), everything(workspace, "both-techniques")
    one = Ranks(1)
    one.run(run_config, alone)
    one.close()
    both["batch"] = {"global": 16, "micro": 4}
    ranks.run(run_config, both)
    # Rounding alone differs.
    assert losses(both) == pytest.approx(losses(alone), rel=1e-5)
    for name, value in weights(last(alone)).items():
        assert np.abs(weights(last(both))[name] - value).max() < 1e-4, name


def test_the_plan_names_every_technique(tmp_path: Path) -> None:
    phases = c.phases(c.validate(everything(tmp_path, "x")))
    first, second = (dict(rows(phase)) for phase in plan(phases, 1, [100, 100]))
    assert (
        first["images"]
        == "8 pixels, crop resized, flip, RandAugment 2 x 6 +- 0.5 of 50%, erase 20%, mixup 0.2 or cutmix 1"
    )
    assert second["images"].startswith("12 pixels")
    assert first["held-out"] == "10 pixels, the central 95.0%"
    assert first["loss"] == "bce, classes of a share above 0.2 present"
    assert first["depth"] == "stochastic, rate 0 to 0.4"


@pytest.mark.parametrize("name", ["resnet50-rsb-a3", "resnet50-lars-mlperf", "resnet50-18-epochs"])
def test_recipes(name: str) -> None:
    config = c.load(Path("configs") / f"{name}.yaml", [])
    planned = plan(c.phases(config), 8, [1_281_167] * max(1, len(config.phases)))
    epochs = {"resnet50-rsb-a3": 100, "resnet50-lars-mlperf": 44, "resnet50-18-epochs": 18}
    # MLPerf's 6,880 steps are 43.99 epochs; steps are rounded up.
    assert sum(phase.samples for phase in planned) / 1_281_167 == pytest.approx(epochs[name], abs=0.02)
    if name == "resnet50-18-epochs":
        first, second = planned
        assert second.lr == pytest.approx(first.lr * first.config.schedule.final)
        assert second.lr == pytest.approx(1.7 * 5 / 16)

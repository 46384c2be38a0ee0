"""A published recipe in a config: ``schedule: NAME``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bellwether.optimizers.recipes import RECIPES, recipe
from bellwether.trainer import config as c
from bellwether.trainer.config import ConfigErrors
from bellwether.trainer.phase_rows import notes, rows
from bellwether.trainer.phases import plan

BERT: dict[str, Any] = {
    "name": "x", "model": {"kind": "bert", "size": "tiny"}, "data": {"kind": "text"}, "batch": {"global": 512, "micro": 8},
    "schedule": "lamb-bert",
}  # fmt: skip
IMAGES: dict[str, Any] = {
    "name": "x", "model": {"kind": "resnet", "depth": 18}, "data": {"kind": "images"},
    "batch": {"global": 1024, "micro": 8}, "schedule": "goyal-resnet50",
}  # fmt: skip


def test_recipe_fills_in_keys_that_are_not_set() -> None:
    config = c.validate(BERT)
    assert (config.optimizer.name, config.optimizer.lr, config.optimizer.eps) == ("lamb", 6.25e-4, 1e-6)
    assert (config.schedule.kind, config.schedule.warmup.share) == ("linear", 1 / 320)
    assert str(config.duration) == "1000000 steps"
    assert config.schedule.recipe == "lamb-bert"
    assert c.validate(c.dump(config)) == config
    (phase,) = plan([config], 1, [100_000])
    assert ("schedule", "linear, on a curve from the start of the phase, as in lamb-bert") in rows(phase)
    assert notes(phase) == []


def test_keys_next_to_the_recipe_take_precedence() -> None:
    config = c.validate({**BERT, "duration": "10 steps", "optimizer": {"weight_decay": 0.1, "clip": 0}})
    assert (config.optimizer.weight_decay, config.optimizer.clip, config.optimizer.lr) == (0.1, 0, 6.25e-4)
    assert str(config.duration) == "10 steps"


def test_recipe_overrides_an_extended_file_but_not_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(
        """
name: base
duration: 3 epochs
model: {kind: bert, size: tiny}
data: {kind: text}
batch: {global: 512, micro: 8}
optimizer: {name: adamw, lr: 7, clip: 0.5}
scaling: {rule: linear, base_batch: 32}
schedule: {kind: cosine}
"""
    )
    (tmp_path / "child.yaml").write_text("extends: base.yaml\nschedule: lamb-bert\noptimizer: {weight_decay: 0.2}\n")
    config = c.load(tmp_path / "child.yaml")
    optimizer = config.optimizer
    assert (optimizer.name, optimizer.lr, optimizer.weight_decay, optimizer.clip) == ("lamb", 6.25e-4, 0.2, 0.5)
    assert config.scaling.rule == "none"
    assert str(config.duration) == "1000000 steps"
    config = c.load(tmp_path / "base.yaml", ["schedule=lamb-bert", "optimizer.lr=1e-3", "batch.global=2048"])
    assert (config.optimizer.name, config.optimizer.lr, config.batch.global_) == ("lamb", 1e-3, 2048)
    assert config.schedule.warmup.share == pytest.approx(1 / 80)


def test_phases_of_the_config_override_those_of_the_recipe() -> None:
    raw = {
        **BERT,
        "schedule": "nvidia-bert-large",
        "batch": {"global": 65536, "micro": 64},
        "phases": [{}, {"batch": {"micro": 16}}],
    }
    first, second = c.phases(c.validate(raw))
    assert (first.batch.global_, first.batch.micro, first.data.sequence_length) == (65536, 64, 128)  # type: ignore[union-attr]
    assert (second.batch.global_, second.batch.micro, second.data.sequence_length) == (32768, 16, 512)  # type: ignore[union-attr]
    assert (first.optimizer.lr, second.optimizer.lr) == (6e-3, 4e-3)
    assert (first.schedule.kind, first.schedule.power) == ("polynomial", 0.5)
    assert (first.optimizer.prenormalize, first.optimizer.clip) == (None, 1.0)
    parts = plan([first, second], 128, [10**6, 10**6])
    assert [part.steps for part in parts] == [7038, 1563]
    assert [notes(part) for part in parts] == [[], []]
    without = c.validate({**raw, "phases": []})
    assert len(c.phases(without)) == 2


def test_step_schedule_of_goyal() -> None:
    config = c.validate(IMAGES)
    (phase,) = plan([config], 1, [1024 * 10])
    assert phase.lr == pytest.approx(0.4)
    assert phase.milestones == (307_200, 614_400, 819_200)
    assert config.schedule.start == 0.25
    assert config.optimizer.nesterov
    assert phase.steps == 900


def test_batch_outside_the_published_range_is_noted() -> None:
    (phase,) = plan([c.validate({**BERT, "batch": {"global": 128, "micro": 8}, "duration": "10 steps"})], 1, [1000])
    assert any("its rule is extrapolated" in note for note in notes(phase))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_gives_a_valid_config(name: str) -> None:
    base = IMAGES if "resnet" in name else BERT
    raw = {
        **base,
        "schedule": name,
        "batch": {"global": recipe(name).published[-1], "micro": 8},
        "duration": "90 epochs",
    }
    config = c.validate(raw)
    assert c.validate(c.dump(config)) == config
    assert len(c.phases(config)) == len(recipe(name).at(config.batch.global_))
    assert config.optimizer.lr == recipe(name).at(config.batch.global_)[0].lr


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schedule": "lamb-brt"}, "schedule: 'lamb-brt': there is none; did you mean lamb-bert?"),
        ({"batch": {"global": "many"}}, "batch.global: 'many': schedule: lamb-bert needs the batch"),
        ({"batch": {}}, "batch.global: schedule"),
        ({"optimizer": {"name": "adamw"}}, "optimizer.name: 'adamw': schedule: lamb-bert is for lamb"),
        ({"scaling": {"rule": "sqrt", "base_batch": 32}}, "scaling.rule: 'sqrt': schedule: lamb-bert scales"),
        ({"schedule": "nvidia-bert-large", "phases": [{}]}, "has 2 phases"),
        ({"schedule": "nvidia-bert-large", "phases": [{}, 3]}, "phases"),
        ({"schedule": "linear"}, "or write schedule.kind: linear"),
        ({"schedule": {"recipe": "lamb"}}, "schedule: 'lamb': there is none"),
        ({"schedule": {"kind": "step"}}, "go with kind: step"),
        ({"schedule": {"milestones": [0.5]}}, "go with kind: step"),
        ({"optimizer": {"weight_decay": -1}}, "optimizer.weight_decay: -1"),
    ],
)  # fmt: skip
def test_key_that_contradicts_a_recipe_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        c.validate({**BERT, **changes})
    assert words in str(caught.value)


def test_milestones_must_ascend() -> None:
    raw = {
        **IMAGES,
        "duration": "9 epochs",
        "optimizer": {"lr": 1},
        "schedule": {"kind": "step", "milestones": [0.5, 0.2]},
    }
    with pytest.raises(c.ConfigError, match=r"milestones.*must be in ascending order"):
        plan([c.validate(raw)], 1, [10_000])


def test_recipe_as_a_key_of_the_schedule_section() -> None:
    config = c.validate({**BERT, "schedule": {"recipe": "lamb-bert", "warmup": 0.1, "final": 0.05}})
    assert (config.schedule.warmup.share, config.schedule.final, config.optimizer.lr) == (0.1, 0.05, 6.25e-4)


@pytest.mark.parametrize("order", [1, -1])
def test_recipe_and_schedule_key_on_one_command_line(tmp_path: Path, order: int) -> None:
    (tmp_path / "run.yaml").write_text(
        "{name: x, model: {kind: bert, size: tiny}, data: {kind: text}, batch: {global: 512}, optimizer: {lr: 1.0}, duration: 9 steps}"
    )
    overrides = ["schedule=lamb-bert", "schedule.final=0.05"]
    config = c.load(tmp_path / "run.yaml", overrides[::order])
    # A later override of a whole section replaces earlier overrides of its keys.
    assert (config.schedule.recipe, config.schedule.final) == ("lamb-bert", 0.05 if order == 1 else 0.0)
    assert config.optimizer.lr == 6.25e-4


CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize(
    ("file", "name", "batch"),
    [
        ("bert-base", "lamb-bert", 4096), ("bert-base", "lamb-bert", 32768), ("bert-base", "nvidia-bert-large", 65536),
        ("bert-tiny", "lamb-bert", 512), ("bert-large-64k", "nvidia-bert-large", 65536),
        ("bert-large-64k", "lamb-bert-76min", 65536), ("resnet50-imagenet-32k", "lamb-resnet50", 32768),
        ("resnet50-imagenet-32k", "goyal-resnet50", 8192),
    ],
)  # fmt: skip
def test_phases_of_a_shipped_config_follow_the_recipe(file: str, name: str, batch: int) -> None:
    config = c.load(CONFIGS / f"{file}.yaml", [f"schedule={name}", f"batch.global={batch}"])
    assert c.validate(c.dump(config)) == config
    settings = recipe(name).at(batch)
    parts = plan(c.phases(config), 1, [1_281_167] * len(settings))
    assert len(parts) == len(settings)
    for part, wanted in zip(parts, settings, strict=True):
        assert part.lr == wanted.lr
        assert part.split.global_batch == wanted.batch
        if wanted.warmup_fraction is not None:
            assert part.warmup / part.samples == pytest.approx(wanted.warmup_fraction, abs=1e-6)
        if wanted.warmup_epochs is not None:
            assert part.warmup / 1_281_167 == pytest.approx(wanted.warmup_epochs, abs=1e-4)
        if wanted.steps is not None:
            assert part.steps == wanted.steps
        assert part.config.schedule.kind == wanted.decay


def test_phases_of_an_extended_file_that_do_not_fit_the_recipe_are_refused() -> None:
    with pytest.raises(ConfigErrors, match=r"phases.*lamb-bert has 1 phase, these are 2.*write phases: \[\]"):
        c.load(CONFIGS / "bert-large-64k.yaml", ["schedule=lamb-bert"])
    config = c.load(CONFIGS / "bert-large-64k.yaml", ["schedule=lamb-bert", "phases=[]"])
    assert config.phases == []

"""The reference of config keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bellwether.trainer import config as c
from bellwether.trainer.config.reference import KeyInfo, keys

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("key", keys(), ids=lambda key: f"{key.path} {key.condition}".strip())
def test_every_key_has_type_default_and_description(key: KeyInfo) -> None:
    assert key.type
    assert key.description
    assert key.is_section == (key.default == "")


def test_sizes_and_times_have_a_unit() -> None:
    units = {key.path: key.unit for key in keys()}
    assert units["batch.global"] == "samples"
    assert units["engine.heartbeat"] == "seconds"
    assert units["duration"] == "samples, steps or epochs"
    assert units["schedule.warmup"] == "fraction of the phase; or samples, steps or epochs"
    pure = {
        "seed", "divergence", "optimizer.lr", "optimizer.betas", "optimizer.eps", "optimizer.weight_decay", "optimizer.momentum",
        "optimizer.trust_bounds", "optimizer.trust_coefficient", "optimizer.clip", "averaging.decay", "schedule.power", "schedule.warmup_power",
        "optimizer.adam_lr", "optimizer.adam_eps", "optimizer.ns_coefficients", "schedule.momentum", "model.depth", "model.width", "data.mean", "data.std",
        "data.randaugment", "data.randaugment_std", "data.mixup", "data.cutmix", "optimizer.r", "optimizer.weight_lr_power",
        "optimizer.shampoo_beta",
    }  # fmt: skip
    for key in keys():
        if "integer" in key.type or "number" in key.type:
            assert key.unit or key.path in pure, f"{key.path} has no unit"


def test_every_key_of_every_recipe_is_listed() -> None:
    known = {key.path for key in keys()}
    sections = {path.rpartition(".")[0] for path in known}

    def leaves(node: dict[str, Any], path: str = "") -> list[str]:
        # Below a key that is no section, the names are the user's: of held-out sets, and of a model's own config.
        return [
            leaf
            for key, value in node.items()
            for leaf in (leaves(value, f"{path}{key}.") if value and f"{path}{key}" in sections else [f"{path}{key}"])
        ]

    for file in CONFIGS.glob("*.yaml"):
        assert set(leaves(c.dump(c.load(file)))) <= known


def test_prefix_selects_a_section_a_key_or_what_begins_with_it() -> None:
    assert [key.path for key in keys("scaling")] == ["scaling", "scaling.rule", "scaling.base_batch", "scaling.warmup"]
    assert [key.path for key in keys("optimizer.weight_decay")] == ["optimizer.weight_decay"]
    assert [key.path for key in keys("optimizer.weight_de")] == [
        "optimizer.weight_decay",
        "optimizer.weight_decay_mode",
    ]
    assert keys("nothing") == []


@pytest.mark.parametrize(
    ("path", "type_", "default"),
    [
        ("name", "text", "required"),
        ("batch.micro", "integer > 0", "32"),
        ("optimizer.betas", "list of 2, each number >= 0, < 1 or null", "null"),
        ("evaluate.every", "duration or null", "null"),
        ("log.every", "duration", "10 steps"),
        ("engine.stage", "one of 0, 1, 2, 3", "2"),
        ("log.report", "true or false", "true"),
        ("phases", "list, each mapping", "[]"),
    ],
)
def test_types_and_defaults_read_as_in_yaml(path: str, type_: str, default: str) -> None:
    (key,) = keys(path)
    assert (key.type, key.default) == (type_, default)


def test_keys_of_one_kind_have_a_condition() -> None:
    conditions = {(key.path, key.condition) for key in keys()}
    assert ("model.size", "model.kind: bert") in conditions
    assert ("data.flip", "data.kind: images") in conditions
    assert ("data.cache", "") in conditions

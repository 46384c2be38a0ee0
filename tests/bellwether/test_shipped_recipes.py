"""Recipes found by name: ``bellwether train bert-tiny`` without a checkout."""

from __future__ import annotations

from pathlib import Path

import pytest

from bellwether.experiments.sweep.spec import read
from bellwether.trainer.config import ConfigError, ConfigErrors, load, shipped_recipes

ROOT = Path(__file__).parents[2]


def test_every_config_of_the_checkout_is_a_recipe() -> None:
    assert shipped_recipes() == sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))
    for name in shipped_recipes():
        assert load(name) == load(ROOT / "configs" / f"{name}.yaml")


def test_a_file_takes_precedence_over_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bert-tiny").write_text(f"extends: {ROOT}/configs/resnet-digits.yaml\nname: mine\n")
    assert load("bert-tiny").name == "mine"


def test_a_config_may_extend_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: bert-tiny\nname: mine\n")
    config = load(tmp_path / "mine.yaml", ["seed=7"])
    assert (config.name, config.seed) == ("mine", 7)
    assert config.optimizer == load("bert-tiny").optimizer


def test_sweeps_are_found_by_name() -> None:
    assert read("4-batch-bert") == read(ROOT / "configs/experiments/4-batch-bert.yaml")
    with pytest.raises(ConfigError, match=r"'4-batch': cannot be read: No such file.*4-batch-bert, "):
        read("4-batch")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("bert-tny", ["'bert-tny': no such file or shipped recipe", "bert-tiny"]),
        ("zzz", ["no such file or shipped recipe", *shipped_recipes()]),
        ("./bert-tiny.yaml", ["bert-tiny.yaml", "no such file"]),
        ("folder/bert-tiny", ["folder/bert-tiny", "no such file"]),
        ("bert-tiny.yaml", ["bert-tiny.yaml", "no such file"]),
    ],
)
def test_unknown_names_suggest_the_nearest_recipes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigErrors) as caught:
        load(path)
    for word in words:
        assert word in str(caught.value)

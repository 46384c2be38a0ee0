"""The values printed in the papers, and the rules between them."""

from __future__ import annotations

import math

import pytest

from bellwether.optimizers.recipes import RECIPES, recipe

BATCHES = [512, 1024, 2048, 4096, 8192, 16384, 32768]
HALVES = [3, 2.5, 2, 1.5, 1, 0.5, 0]


@pytest.mark.parametrize(("batch", "halves"), list(zip(BATCHES, HALVES, strict=True)))
def test_lamb_tables(batch: int, halves: float) -> None:
    (bert,) = recipe("lamb-bert").at(batch)
    assert bert.lr == pytest.approx(5e-3 / 2**halves, rel=1e-12)
    assert bert.warmup_fraction == pytest.approx(1 / (320 / 2 ** BATCHES.index(batch)), rel=1e-12)
    assert bert.steps == {512: 1_000_000, 32768: 15_625}.get(batch, math.ceil(512e6 / batch))
    (resnet,) = recipe("lamb-resnet50").at(batch)
    assert resnet.lr == pytest.approx(4e-2 / 2**halves, rel=1e-12)
    assert resnet.warmup_epochs == pytest.approx(0.3125 * 2 ** BATCHES.index(batch), rel=1e-12)
    assert bert.published
    assert resnet.published
    assert recipe("lamb-bert").warning(batch) is None


def test_rule_between_and_warning_outside_the_published_batches() -> None:
    (bert,) = recipe("lamb-bert").at(3000)
    assert bert.lr == pytest.approx(5e-3 * math.sqrt(3000 / 32768))
    assert not bert.published
    assert recipe("lamb-bert").warning(3000) is None
    assert "512 to 32,768; at 65,536" in str(recipe("lamb-bert").warning(65536))
    assert "batch 65,536; at 1,024" in str(recipe("nvidia-bert-large").warning(1024))


def test_two_phases_as_published() -> None:
    first, second = recipe("nvidia-bert-large").at(65536)
    assert (first.batch, first.lr, first.warmup_fraction, first.steps) == (65536, 6e-3, 0.2843, 7038)
    assert (second.batch, second.lr, second.warmup_fraction, second.steps) == (32768, 4e-3, 0.128, 1563)
    assert first.prenormalize
    assert (first.sequence_length, second.sequence_length) == (128, 512)
    first, second = recipe("deepspeed-bert-large").at(65536)
    assert (first.lr, second.lr, first.warmup_fraction, first.trust_bounds) == (11e-3, 2e-3, 0.02, (0.01, 0.3))
    assert sum(phase.steps or 0 for phase in recipe("lamb-bert-76min").at(65536)) == 8599


def test_goyal() -> None:
    for batch in (256, 8192):
        (settings,) = recipe("goyal-resnet50").at(batch)
        assert settings.lr == pytest.approx(0.1 * batch / 256)
        assert settings.lr * settings.warmup_from == pytest.approx(0.1)
        assert (settings.warmup_epochs, settings.epochs) == (5, 90)


def test_mlperf_points_and_interpolation() -> None:
    for batch, lr in {256: 3.5e-4, 1536: 2e-3, 4096: 2.4e-3, 8192: 2.88293e-3, 16384: 3.3e-3}.items():
        (settings,) = recipe("mlperf-bert").at(batch)
        assert settings.lr == lr
        assert settings.published
    (between,) = recipe("mlperf-bert").at(2048)
    assert between.lr == pytest.approx(2e-3)
    (between,) = recipe("mlperf-bert").at(10000)
    assert 2.971656225e-3 < between.lr < 3.1e-3
    assert 500 < (between.steps or 0) < 600
    assert not between.published


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_a_source_and_works_at_any_batch(name: str) -> None:
    found = recipe(name)
    assert found.source
    for batch in (1, 100, 512, 10_000, 65_536, 10**6):
        for settings in found.at(batch):
            assert settings.lr > 0
            assert 0 <= (settings.warmup_fraction or 0) <= 1
            assert 0 <= settings.warmup_from <= 1
    for batch in found.published:
        assert found.warning(batch) is None
    with pytest.raises(ValueError, match="at least 1"):
        found.at(0)


def test_unknown_recipe_suggests_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean lamb-bert"):
        recipe("lamb-brt")
    with pytest.raises(ValueError, match="there are lamb-bert, "):
        recipe("xyzzy")

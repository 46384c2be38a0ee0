"""The values printed in the papers, and the rules between them."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from bellwether.optimizers.recipes import RECIPES, recipe
from bellwether.trainer.config import phases, validate
from bellwether.trainer.optimization import make_schedule
from bellwether.trainer.phases import plan

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
    assert (first.max_grad_norm, second.max_grad_norm) == (1.0, 1.0)
    assert (first.sequence_length, second.sequence_length) == (128, 512)
    first, second = recipe("deepspeed-bert-large").at(65536)
    assert (first.lr, second.lr, first.trust_bounds) == (11e-3 + 1e-3, 2e-3, (0.01, 0.3))
    assert (first.warmup_fraction, second.warmup_fraction) == (0.06, 0.02)
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


def bert(step: float, steps: int, warmup: float, power: float = 1.0) -> float:
    """google-research/bert, optimization.py, create_optimizer; NVIDIA DeepLearningExamples, BERT's schedulers.py, PolyWarmUpScheduler."""
    return (1 - step / steps) ** power if step >= warmup else step / warmup


def mlperf(step: float, steps: int, warmup: int, start: int) -> float:
    """NVIDIA's submission to MLPerf training, bert/implementations/pytorch/schedulers.py, LinearWarmupPolyDecayScheduler."""
    return (step - start) / warmup if step - start < warmup else 1 - step / steps


def lars(step: float, lr: float, warmup: int, decay: int) -> float:
    """mlcommons/training, image_classification/tensorflow2/lars_util.py; NVIDIA's submission, mxnet/common/fit.py, PolySchedule."""
    if step <= warmup:
        return lr * step / warmup
    return (lr - 1e-4) * (1 - (step - warmup) / decay) ** 2 + 1e-4


# batch -> peak lr, steps of warm-up, steps of the decay after it, momentum, weight decay; epochs of 1,281,167 images
RESNET = {
    1632: (7.4, 2 * 786, 27476, 0.9, 5e-5),
    3264: (10.5, 2 * 393, 14523 - 2 * 393, 0.9, 5e-5),
    4096: (10.0, 5 * 313, 13137 - 5 * 313, 0.9, 2e-4),
    8192: (17.0, 5 * 157, 6095, 0.9, 2e-4),
    13056: (12.8, 9 * 99, 4710 - 9 * 99, 0.9, 2.5e-5),
    32768: (21.2, 16 * 40, 2267 - 16 * 40, 0.94, 2.5e-5),
    49152: (19.405, 24 * 27, 1846 - 24 * 27, 0.951807, 1e-4),
    58880: (23.246, 29 * 22, 1785 - 29 * 22, 0.951807, 1e-4),
    65536: (24.699, 31 * 20, 1133, 0.951807, 1e-4),
    67840: (24.699, 31 * 19, 1133, 0.951807, 1e-4),
}
RESNET_NVIDIA = {
    3200: (11.0, 2 * 401, 35 * 401, 0.9, 5e-5),
    3264: (10.5, 2 * 393, 35 * 393, 0.9, 5e-5),
    20480: (22.0, 12 * 63, 40 * 63, 0.9, 2.5e-5),
    32256: (21.2, 16 * 40, 42 * 40, 0.95, 2.5e-5),
    35840: (21.9, 17 * 36, 43 * 36, 0.94, 2.5e-5),
    57344: (23.0, 32 * 23, 46 * 23, 0.95, 2.5e-5),
    67456: (24.699, 31 * 19, 59 * 19, 0.951807, 1e-4),
}


def bing_bert(step: float, warmup: float, interval: int, lr: float, offset: float) -> float:
    """DeepSpeedExamples, training/bing_bert: warmup_exp_decay_exp, and update_learning_rate of deepspeed_train.py."""
    factor = (step / warmup) ** 2 if step < warmup else 0.9 ** ((step - warmup) / interval)
    return lr * factor + offset


@pytest.mark.parametrize(
    ("name", "batch", "phase", "published"),
    [
        ("lamb-bert", 512, 0, lambda step: 6.25e-4 * bert(step, 1_000_000, 3125)),
        ("lamb-bert", 32768, 0, lambda step: 5e-3 * bert(step, 15625, 3125)),
        ("lamb-bert", 65536, 0, lambda step: 5e-3 * 2**0.5 * bert(step, 7813, 0.4 * 7813)),
        ("lamb-bert-76min", 65536, 1, lambda step: 5e-3 * bert(step, 1562, 0.2 * 1562)),
        ("nvidia-bert-large", 65536, 0, lambda step: 6e-3 * bert(step, 7038, 0.2843 * 7038, 0.5)),
        ("nvidia-bert-large", 65536, 1, lambda step: 4e-3 * bert(step, 1563, 0.128 * 1563, 0.5)),
        ("mlperf-bert", 448, 0, lambda step: 4.25e-4 * mlperf(step, 6700, 0, 0)),
        ("mlperf-bert", 3072, 0, lambda step: 2e-3 * mlperf(step, 1141, 100, 0)),
        ("mlperf-bert", 12288, 0, lambda step: 3.1e-3 * mlperf(step, 500, 300, -100)),
        ("mlperf-bert-nvidia", 768, 0, lambda step: 9.6e-4 * mlperf(step, 3680, 0, 0)),
        ("mlperf-bert-nvidia", 4608, 0, lambda step: 2.58e-3 * mlperf(step, 700, 200330, -200000)),
        ("mlperf-bert-nvidia", 8192, 0, lambda step: 3.44e-3 * mlperf(step, 600, 170200, -200000)),
        ("mlperf-bert-nvidia", 13888, 0, lambda step: 3.6e-3 * mlperf(step, 480, 290, -100)),
        *(
            (name, batch, 0, lambda step, row=row: lars(step, *row[:3]))
            for name, table in (("mlperf-resnet", RESNET), ("mlperf-resnet-nvidia", RESNET_NVIDIA))
            for batch, row in table.items()
        ),
        ("deepspeed-bert-large", 65536, 0, lambda step: bing_bert(step, 450, 250, 11e-3, 1e-3)),
        ("deepspeed-bert-large", 65536, 1, lambda step: bing_bert(step, 150, 150, 2e-3, 0.0)),
    ],
)
def test_rate_equals_the_published_formula(
    name: str, batch: int, phase: int, published: Callable[[float], float]
) -> None:
    settings = recipe(name).at(batch)[phase]
    raw = {
        "name": "x", "model": {"kind": "bert", "size": "tiny"}, "data": {"kind": "text"},
        "batch": {"global": batch, "micro": 1}, "schedule": name,
    }  # fmt: skip
    config = phases(validate(raw))[phase]
    (planned,) = plan([config], 1, [10**6])
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=planned.lr)
    schedule = make_schedule(optimizer, planned)
    warmup = planned.warmup / settings.batch
    for step in (0.3 * warmup, warmup + 1, 0.5 * planned.steps, 0.75 * planned.steps, 0.99 * planned.steps):
        rate = planned.lr * schedule.factor(step * settings.batch)
        assert rate == pytest.approx(published(step), rel=1e-6, abs=1e-12), step


@pytest.mark.parametrize(
    ("batch", "lr", "weight_decay", "betas"),
    [
        (768, 9.6e-4, 0.1, (0.60466, 0.85437)),
        (4608, 2.58e-3, 0.1, (0.6, 0.7)),
        (8192, 3.44e-3, 0.1, (0.7206, 0.78921)),
        (13888, 3.6e-3, 0.0166629, (0.75, 0.9)),
    ],
)
def test_submissions_to_mlperf(batch: int, lr: float, weight_decay: float, betas: tuple[float, float]) -> None:
    (settings,) = recipe("mlperf-bert-nvidia").at(batch)
    assert (settings.lr, settings.weight_decay, settings.betas, settings.published) == (lr, weight_decay, betas, True)


def test_lars_settings_of_mlperf() -> None:
    for name, table in (("mlperf-resnet", RESNET), ("mlperf-resnet-nvidia", RESNET_NVIDIA)):
        assert recipe(name).published == tuple(table)
        for batch, (lr, warmup, decay, momentum, weight_decay) in table.items():
            (found,) = recipe(name).at(batch)
            assert (found.lr, found.momentum, found.weight_decay) == (lr, momentum, weight_decay)
            assert (found.optimizer, found.steps, found.published) == ("lars", warmup + decay, True)
    (between,) = recipe("mlperf-resnet").at(16384)
    assert 12.8 < between.lr < 21.2
    assert 48 < (between.steps or 0) * 16384 / 1_281_167 < 58
    assert not between.published
    (found,) = recipe("mlperf-resnet").at(8192)
    assert found.steps is not None
    assert found.steps * 8192 / 1_281_167 == pytest.approx(
        44, abs=0.1
    )  # the last epoch in which a run reached the target


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

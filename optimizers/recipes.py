"""Published large-batch recipes by name: learning rate, warm-up, decay, steps and optimizer options for a batch size.

>>> settings, = recipe("lamb-bert").at(32768)
>>> settings.lr, settings.warmup_fraction, settings.steps
(0.005, 0.2, 15625)

A recipe gives the published values at the published batch sizes, follows its own rule in between, and warns about batch
sizes outside of the published range. What a source does not state is None. Needs no torch.
"""

from __future__ import annotations

import difflib
import math
from bisect import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bellwether.optimizers.mlperf_settings import (
    BERT_NVIDIA,
    BERT_REFERENCE,
    IMAGENET,
    RESNET_NVIDIA,
    RESNET_REFERENCE,
    BertRow,
    ResnetRow,
)


@dataclass(frozen=True)
class Settings:
    """The settings of a recipe for one phase of a run. None: the source does not state it."""

    batch: int  # samples of a step
    optimizer: str
    lr: float  # the peak
    decay: str  # after the warm-up: linear, polynomial, step or warmup-exponential
    power: float = 1.0  # of a polynomial decay
    decay_from: str = "warmup"  # start: on a curve over the whole phase, as in the published code of BERT
    drop: float | None = None  # factor of an exponential decay in each interval
    interval_steps: int | None = None
    final: float = 0.0  # lr at the end, as a fraction of the peak; of an exponential decay, what it tends to
    warmup_fraction: float | None = None  # of the phase
    warmup_epochs: float | None = None
    warmup_power: float = 1.0  # exponent of the rise
    warmup_from: float = 0.0  # lr at the first step, as a fraction of the peak
    milestones: tuple[float, ...] = ()  # of a step decay, in epochs; each divides lr by ten
    steps: int | None = None
    epochs: float | None = None
    sequence_length: int | None = None  # tokens
    weight_decay: float | None = None
    betas: tuple[float, float] | None = None
    momentum: float | None = None
    nesterov: bool | None = None
    eps: float | None = None
    trust_bounds: tuple[float, float] | None = None
    max_grad_norm: float | None = None  # gradients whose global norm is above it are scaled down to it
    phase: int = 1
    published: bool = True  # whether the source has this batch size; False: from its rule, or interpolated


@dataclass(frozen=True)
class Recipe:
    """A named recipe. `published` are the batch sizes (of the first phase) in the source."""

    name: str
    about: str
    source: str
    published: tuple[int, ...]
    rule: Callable[[int], list[Settings]]

    def at(self, batch: int) -> list[Settings]:
        """The phases of a run whose first phase has this batch size, in samples.

        Raises:
            ValueError: if the batch size is not positive.
        """
        if batch < 1:
            raise ValueError(f"batch={batch}: must be at least 1")
        return self.rule(batch)

    def warning(self, batch: int) -> str | None:
        """A warning about a batch size outside of the published range; None inside."""
        low, high = min(self.published), max(self.published)
        if low <= batch <= high:
            return None
        found = f"was published for batch {low:,}" + (f" to {high:,}" if high > low else "")
        return f"{self.name} {found}; at {batch:,} its rule is extrapolated, which no publication supports"


def recipe(name: str) -> Recipe:
    """Look up a recipe.

    Raises:
        ValueError: with the nearest name, or all names.
    """
    if name in RECIPES:
        return RECIPES[name]
    near = difflib.get_close_matches(name, RECIPES, 1, 0.5)
    raise ValueError(f"recipe {name!r}: there is none; " + (f"did you mean {near[0]}?" if near else _names()))


def _names() -> str:
    return f"there are {', '.join(RECIPES)}"


RECIPES: dict[str, Recipe] = {}
_Rule = Callable[[int], list[Settings]]


def _published(name: str, about: str, source: str, batches: Sequence[int]) -> Callable[[_Rule], _Rule]:
    def register(rule: _Rule) -> _Rule:
        RECIPES[name] = Recipe(name, about, source, tuple(batches), rule)
        return rule

    return register


_POWERS_OF_TWO = tuple(2**n for n in range(9, 16))  # 512 to 32,768
_YOU = "You et al. 2019, Large Batch Optimization for Deep Learning (1904.00962)"


@_published(
    "lamb-bert", "BERT-large, LAMB, 512 million samples: square-root lr, warm-up in proportion to the batch",
    f"{_YOU}, tables 1 and 4", _POWERS_OF_TWO,
)  # fmt: skip
def _lamb_bert(batch: int) -> list[Settings]:
    scale = batch / 32768
    return [
        Settings(
            batch, "lamb", lr=5e-3 * math.sqrt(scale), decay="linear", decay_from="start", warmup_fraction=min(1.0, scale / 5),
            steps=math.ceil(512_000_000 / batch), betas=(0.9, 0.999), eps=1e-6, weight_decay=0.01,
            published=batch in _POWERS_OF_TWO,
        )
    ]  # fmt: skip


@_published(
    "lamb-resnet50", "ResNet-50 on ImageNet, LAMB, 90 epochs: square-root lr, warm-up epochs in proportion to the batch",
    f"{_YOU}, table 5", _POWERS_OF_TWO,
)  # fmt: skip
def _lamb_resnet50(batch: int) -> list[Settings]:
    scale = batch / 32768
    return [
        Settings(
            batch, "lamb", lr=4e-2 * math.sqrt(scale), decay="linear", warmup_epochs=20 * scale, epochs=90,
            published=batch in _POWERS_OF_TWO,
        )
    ]  # fmt: skip


@_published(
    "lamb-bert-76min", "BERT-large, LAMB, 8,599 steps: 9/10 of the samples at length 128, then half the batch at length 512",
    f"{_YOU}, section 4.1; lr and both warm-ups by the rule of its table 4, as the paper does not state them",
    (65536,),
)  # fmt: skip
def _lamb_bert_76min(batch: int) -> list[Settings]:
    # 8,599 steps in all: 7,037 at 65,536, and 1,562 of the 15,625 at 32,768 that table 1 has.
    phases = []
    for number, (size, steps, length) in enumerate(((batch, 7037, 128), (max(1, batch // 2), 1562, 512)), 1):
        (rule,) = _lamb_bert(size)
        phases.append(
            Settings(
                size, "lamb", lr=rule.lr, decay="linear", decay_from="start", warmup_fraction=rule.warmup_fraction,
                steps=math.ceil(steps * 65536 / batch), sequence_length=length, betas=(0.9, 0.999), eps=1e-6,
                weight_decay=0.01, phase=number, published=False,
            )
        )  # fmt: skip
    return phases


def _two_phases(
    batch: int, published: int, lr: tuple[float, float], warmup: tuple[float, float], steps: tuple[int, int],
    shared: dict[str, object],
) -> list[Settings]:  # fmt: skip
    """A first phase at length 128, a second one with half the batch at length 512; lr by the square root elsewhere."""
    scale = batch / published
    return [
        Settings(
            batch=size, optimizer="lamb", lr=lr[i] * math.sqrt(scale), warmup_fraction=min(1.0, warmup[i] * scale),
            steps=math.ceil(steps[i] / scale), sequence_length=length, phase=i + 1, published=batch == published,
            **shared,  # type: ignore[arg-type]
        ) for i, (size, length) in enumerate(((batch, 128), (max(1, batch // 2), 512)))
    ]  # fmt: skip


@_published(
    "nvidia-bert-large", "BERT-large, LAMB, gradients clipped to a global norm of 1, polynomial decay of power 1/2",
    "NVIDIA DeepLearningExamples, PyTorch/LanguageModeling/BERT: scripts/configs/pretrain_config.sh (rates, warm-ups, steps; it "
    "counts the batch per GPU), lamb_amp_opt/fused_lamb/fused_lamb.py (max_grad_norm=1.0, betas, eps, decay)", (65536,),
)  # fmt: skip
def _nvidia_bert_large(batch: int) -> list[Settings]:
    shared = {
        "decay": "polynomial", "power": 0.5, "decay_from": "start", "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.01,
        "max_grad_norm": 1.0,  # apex's csrc/multi_tensor_lamb.cu divides by norm / max_grad_norm only if the norm is larger
    }  # fmt: skip
    return _two_phases(batch, 65536, (6e-3, 4e-3), (0.2843, 0.128), (7038, 1563), shared)


@_published(
    "deepspeed-bert-large", "BERT-large, LAMB with its trust ratio kept between 0.01 and 0.3, quadratic warm-up, exponential decay",
    "DeepSpeedExamples, training/bing_bert: deepspeed_bsz64k_lamb_config_seq128.json, deepspeed_bsz32k_lamb_config_seq512.json, "
    "bert_large_lamb.json, --lr_schedule EE and --lr_offset of ds_train_bert_bsz64k_seq128.sh and ds_train_bert_bsz32k_seq512.sh",
    (65536,),
)  # fmt: skip
def _deepspeed_bert_large(batch: int) -> list[Settings]:
    root, scale = math.sqrt(batch / 65536), batch / 65536
    # size, learning_rate, lr_offset, warmup_proportion, decay_step, max_seq_length; the second run has 10 of the 160 epochs
    rows = ((batch, 11e-3, 1e-3, 0.06, 250, 128), (max(1, batch // 2), 2e-3, 0.0, 0.02, 150, 512))
    return [
        Settings(
            size, "lamb", lr=(lr + offset) * root, decay="warmup-exponential", drop=0.9, interval_steps=math.ceil(interval / scale),
            final=offset / (lr + offset), warmup_fraction=min(1.0, warmup * scale), warmup_power=2.0, warmup_from=offset / (lr + offset),
            steps=math.ceil(7500 / scale), sequence_length=length, trust_bounds=(0.01, 0.3), weight_decay=0.01,
            phase=number, published=batch == 65536,
        ) for number, (size, lr, offset, warmup, interval, length) in enumerate(rows, 1)
    ]  # fmt: skip


@_published(
    "goyal-resnet50", "ResNet-50 on ImageNet, SGD, 90 epochs: lr = 0.1 x batch / 256 after 5 epochs of warm-up",
    "Goyal et al. 2017, Accurate, Large Minibatch SGD (1706.02677), section 5.1",
    (256, 512, 1024, 2048, 4096, 8192),
)  # fmt: skip
def _goyal_resnet50(batch: int) -> list[Settings]:
    return [
        Settings(
            batch, "sgd", lr=0.1 * batch / 256, decay="step", warmup_epochs=5, warmup_from=min(1.0, 256 / batch),
            milestones=(30, 60, 80), epochs=90, weight_decay=1e-4, momentum=0.9, nesterov=True, published=batch in RECIPES["goyal-resnet50"].published,
        )
    ]  # fmt: skip


@_published(
    "mlperf-bert", "BERT-large from MLPerf's checkpoint to a masked-LM accuracy of 0.720, LAMB, length 512",
    "MLCommons' reference convergence points for BERT, mlcommons/logging, training_5.0.0/rcps_bert.json; in between lr and steps on straight lines "
    "in logarithms, all else from the nearest batch",
    tuple(BERT_REFERENCE),
)  # fmt: skip
def _mlperf_bert(batch: int) -> list[Settings]:
    return _from_mlperf(batch, BERT_REFERENCE)


@_published(
    "mlperf-bert-nvidia", "as mlperf-bert, NVIDIA's submissions, whose decay is 0.1 up to batch 8,192",
    "MLCommons' training results, NVIDIA/benchmarks/bert: 768: v4.1, b200_preview_pytorch/config_DGXB200_1x8x48x1_pack.sh; 4,608: v4.0, "
    "eos_n8_ngc23.04_pytorch/config_DGXH100_8x8x72x1.sh; 8,192: v5.0, tyche_ngpu512_ngc25.04_pytorch/"
    "config_GB200_128x4x8x1_pack.sh; 13,888: v3.1, pytorch/config_DGXH100_434x8x2x1_pack_clipafter.sh",
    tuple(BERT_NVIDIA),
)  # fmt: skip
def _mlperf_bert_nvidia(batch: int) -> list[Settings]:
    return _from_mlperf(batch, BERT_NVIDIA)


def _from_mlperf(batch: int, table: dict[int, BertRow]) -> list[Settings]:
    nearest = min(table, key=lambda size: abs(math.log(size / batch)))
    _, length, before, warmup, betas, decay = table[nearest]
    return [
        Settings(
            batch, "lamb", lr=_interpolated(batch, {size: row[0] for size, row in table.items()}), decay="linear", decay_from="start",
            warmup_fraction=(warmup - before) / length, warmup_from=before / warmup if warmup else 0.0,
            steps=math.ceil(_interpolated(batch, {size: row[1] for size, row in table.items()})),
            sequence_length=512, betas=betas, eps=1e-6, weight_decay=decay, published=batch in table,
        )
    ]  # fmt: skip


@_published(
    "mlperf-resnet", "ResNet-50 on ImageNet to a top-1 accuracy of 75.9 %, LARS",
    "MLCommons' reference convergence points for ResNet, mlcommons/logging, training_4.0.0/rcps_resnet.json; the formula of mlcommons/training, "
    "image_classification/tensorflow2/lars_util.py; in between lr and epochs on straight lines in logarithms, all else from the nearest batch",
    tuple(RESNET_REFERENCE),
)  # fmt: skip
def _mlperf_resnet(batch: int) -> list[Settings]:
    return _resnet_from_mlperf(batch, {size: row.total(size) for size, row in RESNET_REFERENCE.items()})


@_published(
    "mlperf-resnet-nvidia", "as mlperf-resnet, NVIDIA's submissions",
    "MLCommons' training results, NVIDIA/benchmarks/resnet/implementations: 3,200: v3.1, mxnet/config_DGXH100.sh; 3,264, 35,840 and 67,456: "
    "v2.1, mxnet-22.04/config_DGXA100_multi_8x8x51.sh, ..._128x8x35.sh, ..._527x8x16xgbn2_larsv2.sh; 20,480 and 32,256: v3.0, "
    "mxnet/config_DGXH100_multi_64x8x40.sh, ..._96x8x42.sh; 57,344: v3.1, mxnet/config_DGXH100_multi_448x8x16.sh; the formula is PolySchedule "
    "of mxnet/common/fit.py",
    tuple(RESNET_NVIDIA),
)  # fmt: skip
def _mlperf_resnet_nvidia(batch: int) -> list[Settings]:
    return _resnet_from_mlperf(batch, RESNET_NVIDIA)


def _resnet_from_mlperf(batch: int, table: dict[int, ResnetRow]) -> list[Settings]:
    row = table[min(table, key=lambda size: abs(math.log(size / batch)))]
    lr = _interpolated(batch, {size: each.lr for size, each in table.items()})
    epoch = math.ceil(IMAGENET / batch)  # steps
    if batch in table:
        steps = row.steps if row.steps is not None else round(row.epochs * epoch)
    else:
        steps = math.ceil(
            _interpolated(batch, {size: each.length(size) for size, each in table.items()}) * IMAGENET / batch
        )
    return [
        Settings(
            batch, "lars", lr=lr, decay="polynomial", power=2.0, final=1e-4 / lr, warmup_fraction=min(1.0, row.warmup_epochs * epoch / steps),
            steps=steps, momentum=row.momentum, weight_decay=row.weight_decay, published=batch in table,
        )
    ]  # fmt: skip


def _interpolated(batch: int, table: dict[int, float]) -> float:
    """Linear interpolation in logarithms between the points of a table; extrapolates from the outermost two."""
    if batch in table:
        return table[batch]
    sizes = sorted(table)
    right = min(max(bisect(sizes, batch), 1), len(sizes) - 1)
    a, b = sizes[right - 1], sizes[right]
    share = math.log(batch / a) / math.log(b / a)
    return math.exp((1 - share) * math.log(table[a]) + share * math.log(table[b]))

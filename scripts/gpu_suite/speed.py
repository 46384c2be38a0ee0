"""The rates of BERT-large and ResNet-50, beside published ones."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from bellwether.experiments.planner import gpus
from bellwether.trainer.config import Config, validate
from bellwether.trainer.engine import Batch
from scripts.gpu_suite import published, steps, workloads
from scripts.gpu_suite.context import Context
from scripts.measurements import mfu

BERT = [(128, 256), (512, 64)]  # length and micro-batch
RESNET_MICRO = 256
JPEGS = 1024


def bert(context: Context) -> None:
    """BERT-large at both lengths of its recipe, without the loader."""
    for length, micro in BERT:
        raw = workloads.bert(context.dry, length, micro)
        _row(
            context,
            f"BERT-{'tiny' if context.dry else 'large'} {length}",
            raw,
            steps.measure(raw, context.world, **_counts(context)),
        )
    for found in [*published.nvidia("bert", 128), *published.mlperf("bert")]:
        context.note(f"{found.source}: {found.samples_per_second:,.0f} sequences a second on one {found.gpu}")


def resnet(context: Context) -> None:
    """ResNet-50 on random tensors, then on JPEG files through the loader."""
    raw = workloads.resnet(context.dry, RESNET_MICRO)
    name = f"ResNet-{18 if context.dry else 50}"
    _row(context, f"{name}, synthetic", raw, steps.measure(raw, context.world, **_counts(context)))
    for found in [*published.nvidia("resnet", None), *published.mlperf("resnet")]:
        context.note(f"{found.source}: {found.samples_per_second:,.0f} images a second on one {found.gpu}")
    folder = jpeg_folder(context.folder / "images", 32 if context.dry else JPEGS)
    raw = workloads.resnet(context.dry, RESNET_MICRO, folder, data={"cache": str(context.folder / "cache")})
    counts = {**_counts(context), "profiled": 0}
    times = steps.measure(raw, context.world, batches=lambda config: loaded(config, context), **counts)
    _row(context, f"{name}, JPEG", raw, times)
    workers = raw["data"]["workers"]
    context.note(
        f"JPEG files of 500 x 375 pixels, {workers} workers on {os.cpu_count()} cores; their pages are in memory"
    )


def loaded(config: Config, context: Context) -> Iterator[Batch]:
    """The micro-batches of a config's own data, from its loader."""
    from bellwether.trainer.data import load
    from bellwether.trainer.data.loader import train_batches

    micro = config.batch.micro
    yield from train_batches(
        load(config.data).train, seed=1, start=0, steps=10_000, global_batch=micro, micro=micro, accumulation=1, rank=0, world_size=1,
        workers=config.data.workers, device=context.device,
    )  # fmt: skip


def jpeg_folder(folder: Path, count: int) -> Path:
    """Photograph-like JPEG files in folders of ten classes: smooth colours with noise, 500 x 375 pixels, about 50 kB."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    for index in range(count):
        small = generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(small).resize((500, 375), Image.Resampling.BICUBIC), dtype=np.int16)
        noisy = np.clip(smooth + generator.integers(-12, 13, smooth.shape), 0, 255).astype(np.uint8)
        file = folder / f"class-{index % 10}" / f"{index:05d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy).save(file, quality=90)
    return folder


def _counts(context: Context) -> dict[str, Any]:
    return {"count": 2, "warmup": 1} if context.dry else {"count": 20, "warmup": 5, "profiled": 3}


def _row(context: Context, name: str, raw: dict[str, Any], times: steps.StepTimes) -> None:
    """A row with the rate, its share of the peak, and where the time goes."""
    from bellwether.trainer.memory import activations

    config = validate({"name": "x", "duration": "1 steps", **raw})
    small = validate({"name": "x", "duration": "1 steps", **raw, "batch": {"global": 2, "micro": 2}})
    flops = activations.measure(small, steps.dataset(config)).flops
    gpu = None if context.dry else this_gpu(torch.cuda.get_device_name(0))
    rate = times.samples_per_second
    context.row(
        run=name, micro=config.batch.micro, **{
            "samples/s": rate, "ms": times.step.median * 1e3, "lowest": times.step.low * 1e3, "highest": times.step.high * 1e3,
            "MFU %": None if gpu is None else 100 * mfu(flops, rate, gpu.peak(config.engine.precision)),
            "GFLOP/sample": flops / 1e9, "kernels": times.kernels, "idle %": None if times.idle is None else 100 * times.idle,
            "GiB": None if times.peak is None else times.peak / 2**30, "first step s": times.first,
        },
    )  # fmt: skip
    finite = all(loss == loss and abs(loss) < 1e6 for loss in times.losses)
    context.check(f"{name}: losses are finite", finite, f"{times.losses[0]:.3f} to {times.losses[-1]:.3f}")


def this_gpu(name: str) -> gpus.Gpu | None:
    """The data sheet of a GPU by the name that torch gives it; None where the planner has none.

    >>> this_gpu("NVIDIA H200").name, this_gpu("NVIDIA A100-SXM4-80GB").name, this_gpu("NVIDIA T4")
    ('h200', 'a100', None)
    """
    words = name.lower().replace("-", " ").split()
    known = [gpu for gpu in gpus.GPUS.values() if gpu.name in words]
    return known[0] if known else None

"""One step of each optimizer: the benchmark of `make bench-optimizers`, setting by setting, with DeepSpeed's FusedLamb on a GPU."""

from __future__ import annotations

import gc
import importlib

import torch

from scripts.bench_optimizers import measure
from scripts.bench_settings import Setting, settings
from scripts.gpu_suite.context import Context

_PEERS = dict.fromkeys(("timm", "pytorch-optimizer", "deepspeed"), "left out")
# What DeepSpeed compiles at the first use, for minutes: the suite begins it at its start, beside the other parts.
BUILD = "import deepspeed; from deepspeed.ops.op_builder import FusedLambBuilder; FusedLambBuilder().load()"


def run(context: Context) -> None:
    for setting in settings("tiny" if context.dry else "full", context.device):
        _measure(context, setting, _PEERS)
        if context.dry:
            break  # tests/test_bench.py has the others
    if not context.dry:  # last, because it may still be compiled
        importlib.import_module("deepspeed")
        _measure(context, next(settings("full", context.device)), {**_PEERS, "deepspeed": ""})
    context.note(
        "of copy: of the bandwidth of tensor.copy_ in the same rounds; docs/results/optimizers-cpu.md explains the columns"
    )


def _measure(context: Context, setting: Setting, peers: dict[str, str]) -> None:
    rows = measure(setting, context.device, 2 if context.dry else 11, peers)
    for row in rows:
        if row.get("problem", "").startswith("left out"):
            continue
        spread = row.get("quartiles")
        context.row(
            setting=row["setting"], optimizer=row["optimizer"], by=row["version"], **{
                "ms": None if spread is None else 1e3 * row["seconds"],
                "quartiles": row.get("problem", "") if spread is None else f"{1e3 * spread[0]:.3g} to {1e3 * spread[1]:.3g}",
                "x fused AdamW": row.get("ratio"), "GB/s": None if spread is None else row["bytes_per_second"] / 1e9,
                "of copy %": None if spread is None else 100 * row["of_copy"],
            },
        )  # fmt: skip
    ours = [row for row in rows if row["version"].startswith("Bellwether")]
    failed = [f"{row['optimizer']}: {row['problem']}" for row in ours if "problem" in row]
    context.check(f"{setting.name}: our optimizers run", not failed and bool(ours), "; ".join(failed))
    del rows, ours
    gc.collect()
    if context.device.type == "cuda":
        torch.cuda.empty_cache()

"""One step of each optimizer: the benchmark of `make bench-optimizers`, setting by setting, with DeepSpeed's FusedLamb on a GPU."""

from __future__ import annotations

import gc
import importlib

import torch

from scripts.bench_optimizers import measure
from scripts.bench_settings import settings
from scripts.gpu_suite.context import Context

_PEERS = dict.fromkeys(("timm", "pytorch-optimizer"), "left out: no network")


def run(context: Context) -> None:
    if not context.dry:
        importlib.import_module("deepspeed")  # before anything that it may find and import
    for setting in settings("tiny" if context.dry else "full", context.device):
        rows = measure(setting, context.device, 2 if context.dry else 11, _PEERS)
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
        del rows, setting
        gc.collect()
        if context.device.type == "cuda":
            torch.cuda.empty_cache()
    context.note(
        "of copy: of the bandwidth of tensor.copy_ in the same rounds; docs/results/optimizers-cpu.md explains the columns"
    )

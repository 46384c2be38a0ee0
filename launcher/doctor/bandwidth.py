"""Measures the all-reduce bandwidth between nodes, over gloo and over NCCL. Collective."""

from __future__ import annotations

import statistics
import time
from datetime import timedelta

import torch
import torch.distributed as dist

from bellwether.launcher.doctor.protocol import Facts
from bellwether.trainer import messages

_MB = 10**6
_WARM_UP, _SIZE, _SIZE_GPU = 4 * _MB, 64 * _MB, 256 * _MB  # bytes of an all-reduce
_ROUNDS = 3


def gloo(limit: float) -> Facts:
    """Bandwidth between CPUs.

    Args:
        limit: seconds for all measurements; a slow network is measured with fewer bytes.
    """
    return _measure(torch.device("cpu"), None, _SIZE, limit)


def nccl(limit: float) -> Facts | None:
    """Bandwidth between GPUs, one a node; None where a node has none."""
    available = torch.cuda.is_available() and dist.is_nccl_available()
    if not all(messages.all_gather_values(available, torch.device("cpu"))):
        return None
    device = torch.device("cuda", 0)
    torch.cuda.set_device(device)
    try:
        group = dist.new_group(backend="nccl", timeout=timedelta(seconds=limit))
        return _measure(device, group, _SIZE_GPU, limit)
    except Exception as error:
        return {"error": " ".join(str(error).split())[-300:]}


def _measure(device: torch.device, group: dist.ProcessGroup | None, size: int, limit: float) -> Facts:
    """Time an fp32 all-reduce. Bus bandwidth = bytes x 2 (n - 1) / n / seconds: what each node sends in a ring."""

    def seconds(count: int) -> float:
        values = torch.ones(count // 4, device=device)
        dist.barrier(group) if device.type == "cpu" else torch.cuda.synchronize(device)
        start = time.perf_counter()
        dist.all_reduce(values, group=group)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    seconds(_WARM_UP)
    small = seconds(_WARM_UP)
    # Rank 0 chooses the size for all: on a slow network only the small one fits into the limit.
    chosen = _WARM_UP if small * size / _WARM_UP * (_ROUNDS + 1) > limit / 4 else size
    chosen = messages.broadcast_value(chosen, torch.device("cpu"))
    median = statistics.median(seconds(chosen) for _ in range(_ROUNDS))
    n = dist.get_world_size()
    gb_s = chosen * 2 * (n - 1) / n / median / 1e9
    return {"bytes": chosen, "seconds": round(median, 6), "gb_s": round(gb_s, 4)}

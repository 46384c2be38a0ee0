"""The device's two ceilings as torch reaches them: memory bandwidth and the rate of matrix products."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import torch

from scripts.gpu_suite.context import Context
from scripts.measurements import Spread


def run(context: Context) -> None:
    size = 2**20 if context.dry else 2**30
    source = torch.randn(size // 4, device=context.device)
    target = torch.empty_like(source)
    copy = Spread.of(seconds(lambda: target.copy_(source), context.device, 10))
    context.row(what="copy, read and written", **{"GB/s": 2 * size / copy.median / 1e9, "seconds": copy.text()})
    n = 256 if context.dry else 8192
    for dtype in (torch.bfloat16, torch.float32):
        a, b = (torch.randn(n, n, device=context.device).to(dtype) for _ in range(2))
        spread = Spread.of(seconds(lambda a=a, b=b: a @ b, context.device, 5))  # type: ignore[misc]
        context.row(
            what=f"{n} x {n} x {n}, {dtype}", **{"TFLOP/s": 2 * n**3 / spread.median / 1e12, "seconds": spread.text()}
        )
    if not context.dry:
        free, total = torch.cuda.mem_get_info()
        context.note(f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB of memory are free")


def seconds(act: Callable[[], object], device: torch.device, count: int, warmup: int = 3) -> list[float]:
    """The time of each of some calls, after a warm-up. On a GPU by events, so that no call waits for the one before."""
    for _ in range(warmup):
        act()
    if device.type != "cuda":
        times = []
        for _ in range(count):
            began = time.perf_counter()
            act()
            times.append(time.perf_counter() - began)
        return times
    events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    torch.cuda.synchronize()
    events[0].record()
    for event in events[1:]:
        act()
        event.record()
    torch.cuda.synchronize()
    return [a.elapsed_time(b) / 1000 for a, b in itertools.pairwise(events)]

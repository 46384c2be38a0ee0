"""Measures the time of one step of each optimizer, next to torch's and others': one table from one run.

    make bench-optimizers
    make bench-optimizers ARGS="--rounds 41 --json build/bench.json --markdown docs/results/optimizers-cpu.md"

Settings: BERT-base's parameters as they are, in float32 and bfloat16; one flat tensor that holds many parameters, as ZeRO hands
it to an optimizer; and many small tensors, which show the time of Python and of launches. All entries of a setting update the same weights with the same gradients and the same memory for moments,
and take turns, so that disturbances of the machine and the placement of memory affect all of them alike.

timm and pytorch-optimizer are installed separately, under build/: timm in .venv would break DeepSpeed's import where there is
no torchvision. Without a package index their rows contain the reason.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import importlib
import json
import math
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.bench_entries import Entry, entries, find_peers
from scripts.bench_settings import Setting, settings
from scripts.bench_table import describe, notes, table


def main() -> None:
    parser = argparse.ArgumentParser(description="times of one step of each optimizer, as a table")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=21, help="steps of each entry, at least 2 (default 21)")
    parser.add_argument("--size", choices=["full", "tiny"], default="full", help="tiny is to see that it runs")
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="settings whose name contains this, as bfloat16 or small"
    )
    parser.add_argument("--no-peers", action="store_true", help="leave timm and pytorch-optimizer out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all times here")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table here")
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error("--rounds: at least 2, or there are no quartiles")
    device = torch.device(arguments.device)
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and not torch.cuda.is_available()):
        parser.error(f"--device {device}: must be cpu, or cuda where torch sees a GPU")

    if device.type == "cuda":  # before the peers are importable: DeepSpeed must not import a timm without torchvision
        with contextlib.suppress(Exception):  # its row shows the error
            importlib.import_module("deepspeed")
    peers = find_peers(not arguments.no_peers)
    about = describe(device, arguments.rounds, peers)
    rows: list[dict[str, Any]] = []
    for setting in settings(arguments.size, device):
        if arguments.only not in setting.name:
            continue
        rows += measure(setting, device, arguments.rounds, peers)
    text = f"{table(rows)}\n\n{notes(rows, about, device)}\n"
    print(text, end="")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
    if arguments.markdown:
        arguments.markdown.parent.mkdir(parents=True, exist_ok=True)
        arguments.markdown.write_text(f"# One step of each optimizer on {about['device']}\n\n{text}")


def measure(setting: Setting, device: torch.device, rounds: int, peers: dict[str, str]) -> list[dict[str, Any]]:
    """The rows of a setting."""
    competitors = entries(setting, device, peers)
    for entry in competitors:
        say(f"{setting.name}: {entry.optimizer} ({entry.version})")
        prepare(entry, setting, device)
    source = torch.randn(setting.numel, device=device)
    target = torch.empty_like(source)
    copy = Entry("copy", "torch, tensor.copy_", lambda _: functools.partial(target.copy_, source))
    copy.step = copy.make(setting)
    copy.step()
    say(f"{setting.name}: {rounds} rounds")
    time_in_turns([*competitors, copy], rounds, device)

    baseline = statistics.median(competitors[0].seconds) if competitors[0].seconds else math.nan
    bandwidth = copy.bytes_per_element(4) * setting.numel / statistics.median(copy.seconds)
    rows = []
    for entry in [*competitors, copy]:
        row: dict[str, Any] = {
            "setting": setting.name, "elements": setting.numel, "optimizer": entry.optimizer, "version": entry.version,
        }  # fmt: skip
        if entry.problem:
            row["problem"] = entry.problem
        else:
            median = statistics.median(entry.seconds)
            moved = entry.bytes_per_element(setting.element_bytes)
            speed = moved * setting.numel / median
            low, _, high = statistics.quantiles(entry.seconds, n=4, method="inclusive")
            row |= {
                "seconds": median, "quartiles": [low, high], "ratio": median / baseline,
                "bytes_per_element": moved, "bytes_per_second": speed, "of_copy": speed / bandwidth,
                "extra_bytes": None if entry is copy else entry.extra, "all_seconds": entry.seconds,
            }  # fmt: skip
        rows.append(row)
    return rows


def prepare(entry: Entry, setting: Setting, device: torch.device) -> None:
    """Create an entry's optimizer and measure its memory. A failure is recorded, and the others continue."""
    if entry.problem:
        return
    made: list[Callable[[], Any]] = []
    try:
        # Excludes the pool: the state is counted before it moves there.
        pool, setting.pool = setting.pool, {}
        try:
            _, kept = allocated(lambda: made.append(entry.make(setting)), device)
        finally:
            setting.pool = pool
        del made[:]
        gc.collect()
        entry.step = entry.make(setting)
        peak, _ = allocated(entry.step, device)
        entry.extra = kept + peak - 8 * setting.numel
    except Exception as error:  # the optimizers of other packages may fail in any way; the row shows the error
        entry.problem = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def allocated(action: Callable[[], Any], device: torch.device) -> tuple[int, int]:
    """(peak, remaining at the end) bytes that an action has allocated with torch's allocator."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        action()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before, torch.cuda.memory_allocated() - before
    # Every allocation: the memory of the process would not show the reuse of freed memory.
    with _silent(), torch.autograd.profiler.profile(profile_memory=True) as profile:
        action()
    events = [e for e in profile.kineto_results.events() if e.name() == "[memory]"]
    totals = [0, *accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns()))]
    return max(totals), totals[-1]


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Discards what the profiler's C++ code writes to stderr."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def time_in_turns(competitors: list[Entry], rounds: int, device: torch.device) -> None:
    """Measure the times: one step of each in turn, in another order each round."""
    able = [entry for entry in competitors if entry.step is not None]
    order = random.Random(0)
    for number in range(rounds + 1):
        order.shuffle(able)
        for entry in able:
            assert entry.step is not None
            _wait(device)
            started = time.perf_counter()
            entry.step()
            _wait(device)
            if number:  # the first round warms up
                entry.seconds.append(time.perf_counter() - started)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

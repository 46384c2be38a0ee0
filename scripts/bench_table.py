"""The results of the optimizer benchmark as a Markdown table with notes."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import torch

from scripts.bench_entries import PEERS

ROOT = Path(__file__).resolve().parents[1]
HEADER = ["optimizer", "by", "ms", "quartiles", "x fused AdamW", "B/element", "GB/s", "of copy", "extra MB"]


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as a Markdown table, aligned for a terminal."""
    lines = [HEADER]
    for i, row in enumerate(rows):
        if i == 0 or rows[i - 1]["setting"] != row["setting"]:
            lines.append([f"**{row['setting']}, {row['elements'] / 1e6:.1f} M**", *[""] * (len(HEADER) - 1)])
        if "problem" in row:
            lines.append([row["optimizer"], row["version"], "not run", *[""] * (len(HEADER) - 3)])
            continue
        low, high = (f"{1000 * q:.3g}" for q in row["quartiles"])
        extra = row["extra_bytes"]
        lines.append([
            row["optimizer"], row["version"], f"{1000 * row['seconds']:.1f}", f"{low} - {high}", f"{row['ratio']:.2f}",
            str(row["bytes_per_element"]), f"{row['bytes_per_second'] / 1e9:.1f}", f"{100 * row['of_copy']:.0f} %",
            "" if extra is None else f"{extra / 1e6:+.1f}",
        ])  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    def line(cells: list[str]) -> str:
        padded = [c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return f"| {' | '.join(padded)} |"

    rule = "|".join("-" * (w + 2) if i < 2 else "-" * (w + 1) + ":" for i, w in enumerate(widths))
    return "\n".join([line(lines[0]), f"|{rule}|", *map(line, lines[1:])])


def notes(rows: list[dict[str, Any]], about: dict[str, Any], device: torch.device) -> str:
    counted = "torch.cuda.max_memory_allocated" if device.type == "cuda" else "each allocation by torch's profiler"
    lines = [
        f"ms: median of {about['rounds']} rounds. A round takes one step of each optimizer of a setting in random order; all "
        "of them share weights, gradients and the memory of the moments.",
        "B/element: bytes per element that the algorithm must move in float32 (AdamW and RAdam 28; Lamb 40, because the "
        "norms must be known before the first weight is updated; Lars 28). With weights and gradients in bfloat16, our moments "
        "are float32, and those of others bfloat16. GB/s: these bytes divided by the time, also for "
        "implementations that move more.",
        "of copy: GB/s relative to `tensor.copy_` in the same rounds, at 8 bytes per element, 4 read and 4 written."
        + (
            " On the CPU that copy goes through the caches, so the processor also reads the memory that it overwrites, which "
            "is not counted; a step overwrites only what it has read. Therefore values above 100 % occur."
            if device.type == "cpu"
            else ""
        ),
        f"extra MB: memory kept between steps plus the peak within a step, beyond AdamW's two moments in float32 ({counted}). Lars has "
        "one moment, so its value is negative.",
        "timm's Lamb runs without its gradient clipping. timm and pytorch-optimizer are not in the setting of a flat shard: they "
        "would treat it as one parameter.",
    ]
    failed: dict[str, dict[str, None]] = {}  # problem -> who has it, in order and once
    for row in rows:
        if "problem" in row:
            failed.setdefault(row["problem"], {})[f"{row['optimizer']} ({row['version']})"] = None
    lines += [f"Not run: {'; '.join(who)}: {problem}" for problem, who in failed.items()]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    footer = f"{about['date']}, commit {about['commit']}, {about['device']}, {about['threads']} threads; {versions}."
    return "\n".join(f"- {line}" for line in lines) + f"\n\n{footer}"


def describe(device: torch.device, rounds: int, peers: dict[str, str]) -> dict[str, Any]:
    versions = {"Python": platform.python_version(), "torch": torch.__version__}
    versions |= {name: version for name, version in PEERS.items() if not peers[name]}
    if "deepspeed" in sys.modules:
        versions["deepspeed"] = sys.modules["deepspeed"].__version__
    return {
        "date": date.today().isoformat(),
        "commit": _commit(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "versions": versions,
    }


def _commit() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "optimizers", ":(glob)scripts/bench_*.py")
        return (git("rev-parse", "--short", "HEAD") or "unknown") + (" with changes" if changed else "")
    except OSError:
        return "unknown"


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()}, {os.cpu_count()} cores"
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"

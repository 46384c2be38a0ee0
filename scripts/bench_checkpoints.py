"""For how long training stands still for a checkpoint: a table of docs/scaling.md.

    python scripts/bench_checkpoints.py                                       # BERT-base on 1 and 2 processes, about 5 minutes
    python scripts/bench_checkpoints.py --set checkpoint.async_save=false
    python scripts/bench_checkpoints.py --tree ../older --size mini --ranks 2

trains BERT on random text, saves every few steps, and reads the metrics of the run: how long a checkpoint took (`seconds`), how long
training stood still for it (`blocked_seconds`; in versions without this key, all the time), and the step time. The first checkpoint,
which allocates the buffers, and the last, for which the end of the run waits, are rows of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CONFIG = """
name: checkpoints
runs: {folder}/runs
duration: {steps} steps
model: {{kind: bert, size: {size}}}
data: {{kind: text, source: {folder}/text.txt, vocabulary_size: 20000, sequence_length: 16, cache: {folder}/cache, workers: 0}}
batch: {{global: 8, micro: 8}}
optimizer: {{lr: 1e-3}}
log: {{every: 1 steps, trackers: [], report: false}}
evaluate: {{limit: 1}}
checkpoint: {{every: {every} steps, keep: 1, export: false}}
engine: {{stage: 2, device: cpu}}
"""


def train(folder: Path, ranks: int, tree: Path, arguments: argparse.Namespace) -> tuple[list[Any], list[Any]]:
    """The checkpoint and the train events of a run."""
    shutil.rmtree(folder / "runs", ignore_errors=True)
    steps = arguments.every * arguments.saves
    text = CONFIG.format(folder=folder, steps=steps, every=arguments.every, size=arguments.size)
    (folder / "config.yaml").write_text(text)
    command = ["-m", "bellwether", "train", str(folder / "config.yaml"), "--nproc", str(ranks), *arguments.set]
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *command], check=True, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
    lines = [json.loads(line) for line in (folder / "runs/checkpoints/metrics.jsonl").read_text().splitlines()]
    return [e for e in lines if e["event"] == "checkpoint"], [e for e in lines if e["event"] == "train"]


def gigabytes(folder: Path) -> float:
    """The size of the newest checkpoint."""
    newest = sorted((folder / "runs/checkpoints/checkpoints").glob("step-????????"))[-1]
    return sum(file.stat().st_size for file in newest.iterdir()) / 1e9


def rows(ranks: int, size: float, saved: list[Any], steps: list[Any]) -> list[list[str]]:
    """A row for the first checkpoint, one for the median of the others, and one for the last."""
    blocked = [line.get("blocked_seconds", line["seconds"]) for line in saved]
    parts = {"first": slice(0, 1), "between": slice(1, -1), "last": slice(-1, None)}
    times = statistics.median(line["step_time"] for line in steps)
    return [
        [str(ranks), f"{size:.2f}", which, str(len(blocked[part])), f"{statistics.median(blocked[part]):.3f}",
         f"{min(blocked[part]):.3f} to {max(blocked[part]):.3f}",
         f"{statistics.median(line['seconds'] for line in saved[part]):.2f}", f"{times:.2f}"]
        for which, part in parts.items() if blocked[part]
    ]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2], help="processes (default: 1 2)")
    parser.add_argument("--size", default="base", help="of BERT (default: base)")
    parser.add_argument("--every", type=int, default=4, help="steps between checkpoints (default: 4)")
    parser.add_argument("--saves", type=int, default=5, help="checkpoints of a run (default: 5)")
    parser.add_argument("--tree", type=Path, default=ROOT, help="checkout that trains (default: this one)")
    parser.add_argument("--folder", type=Path, help="where to write (default: the temporary directory)")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of the config")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder, draw = Path(name), random.Random(0)
        words = ["".join(draw.choices("abcdefghij", k=draw.randint(2, 9))) for _ in range(20000)]
        (folder / "text.txt").write_text("\n".join(" ".join(draw.choices(words, k=12)) for _ in range(8000)))
        print("| ranks | GB | checkpoint | count | stands still, s | range | written after, s | step, s |")
        print("|---|---|---|---|---|---|---|---|", flush=True)
        for ranks in arguments.ranks:
            saved, steps = train(folder, ranks, arguments.tree.resolve(), arguments)
            for row in rows(ranks, gigabytes(folder), saved, steps):
                print(f"| {' | '.join(row)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

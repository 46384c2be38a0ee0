"""Measures what a batch that grows saves: steps to the final loss of the tuned fixed batch. The table of docs/results/batch-warmup.md.

    OMP_NUM_THREADS=1 python -m scripts.measure_batch_warmup runs/batch-warmup docs/results/batch-warmup.md

ResNet-8 without BatchNorm on scikit-learn's digits, AdamW, the same number of samples in each run. First a full sweep: fixed batches,
each at four learning rates on two seeds, then the best rate of each on twelve other seeds. Then batches that grow along
`GROWING`, from the best fixed batch, at its learning rate, with nothing tuned. Finished runs are kept in the folder: the command continues
where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from scipy import stats

from bellwether.trainer.config import validate
from bellwether.trainer.metrics import read
from scripts import results_page
from scripts.small_runs import BASE_BATCH, SAMPLES, Batch, config, train

BEGIN, END = "<!-- written by scripts/measure_batch_warmup.py -->", "<!-- end -->"
BATCHES = [32, 64, 128, 256, 512]
RATES = [4e-3, 8e-3, 16e-3, 32e-3]  # at batch 64; at others by the square root
TUNING, SEEDS = range(1, 3), range(11, 23)
#: Share of the samples from which on the batch is this many times the first.
GROWING = [[(0.0, 1), (0.5, 2)], [(0.0, 1), (0.4, 2), (0.8, 4)], [(0.0, 1), (0.3, 2), (0.6, 4)]]


class Runs:
    """Final held-out loss and number of steps of runs, measured once and kept in a file."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / "runs.jsonl"
        self.found: dict[str, tuple[float, int]] = {}
        if self.file.exists():
            for line in map(json.loads, self.file.read_text().splitlines()):
                self.found[line["key"]] = (line["loss"], line["steps"])

    def losses(self, batch: Batch, lr: float, seeds: Sequence[int]) -> list[float]:
        return [self._run(batch, lr, seed)[0] for seed in seeds]

    def steps(self, batch: Batch, lr: float) -> int:
        return self._run(batch, lr, SEEDS[0])[1]

    def _run(self, batch: Batch, lr: float, seed: int) -> tuple[float, int]:
        key = json.dumps([batch, lr, seed])
        if key not in self.found:
            began = time.monotonic()
            loss, steps = self._train(batch, lr, seed)
            self.found[key] = (loss, steps)
            with self.file.open("a") as file:
                file.write(
                    json.dumps({"key": key, "loss": loss, "steps": steps, "seconds": time.monotonic() - began}) + "\n"
                )
        return self.found[key]

    def _train(self, batch: Batch, lr: float, seed: int) -> tuple[float, int]:
        with tempfile.TemporaryDirectory() as folder:
            train(validate(config(batch, lr, seed, Path(folder))))
            line = read(Path(folder) / "run").eval[-1]
        return float(line["loss"]), int(line["step"])


def mean(losses: Sequence[float], digits: int = 4) -> str:
    error = statistics.stdev(losses) / math.sqrt(len(losses))
    return f"{statistics.mean(losses):.{digits}f} ± {error:.{digits}f}"


def difference(losses: Sequence[float], base: Sequence[float]) -> tuple[float, float]:
    """Mean difference on the same seeds, and half its 90 % interval."""
    each = [a - b for a, b in zip(losses, base, strict=True)]
    return statistics.mean(each), stats.t.ppf(0.95, len(each) - 1) * statistics.stdev(each) / math.sqrt(len(each))


def table(runs: Runs) -> str:
    rates = {batch: min(RATES, key=lambda lr: statistics.mean(runs.losses(batch, lr, TUNING))) for batch in BATCHES}
    best = min(BATCHES, key=lambda batch: statistics.mean(runs.losses(batch, rates[batch], SEEDS)))
    base, steps = runs.losses(best, rates[best], SEEDS), runs.steps(best, rates[best])
    rows: list[tuple[str, Batch, float]] = [(f"{batch}", batch, rates[batch]) for batch in BATCHES]
    for shares in GROWING:
        growing = [[round(share * SAMPLES), factor * best] for share, factor in shares]
        rows.append((f"`{growing}`", growing, rates[best]))
    lines = [
        f"Measured {results_page.measured()}. {len(SEEDS)} seeds; learning rate at batch {BASE_BATCH}, by the square root at others; "
        f"loss on 359 held-out digits after {SAMPLES:,} samples, mean ± standard error; difference from the best fixed batch, "
        f"{best}, on the same seeds with its 90 % interval.",
        "",
        "| batch.global | lr at 64 | steps | fewer | held-out loss | difference |",
        "|---|---|---|---|---|---|",
    ]
    for name, batch, lr in rows:
        losses, own = runs.losses(batch, lr, SEEDS), runs.steps(batch, lr)
        delta, half = difference(losses, base) if batch != best else (0.0, 0.0)
        shown = "–" if batch == best else f"{delta:+.4f} ± {half:.4f}"
        lines.append(f"| {name} | {lr:g} | {own:,} | {1 - own / steps:.0%} | {mean(losses)} | {shown} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("page", nargs="?", help="default: print")
    arguments = parser.parse_args()
    results_page.write(arguments.page, BEGIN, END, table(Runs(arguments.folder)))


if __name__ == "__main__":
    main()

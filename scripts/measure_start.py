"""What one rank's start costs: seconds of a core and file-system calls of a run of two steps, for docs/scaling.md.

    python scripts/measure_start.py

trains BERT-tiny on a small text once to fill the caches, then three times for the time, and once under strace (needs Linux and
strace) for the calls. All ranks of a run make these calls to a file system that they share.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONFIG = """
name: start
runs: {folder}/runs
duration: 2 steps
model: {{kind: bert, size: tiny}}
data: {{kind: text, source: {folder}/text.txt, vocabulary_size: 200, sequence_length: 16, cache: {folder}/cache, workers: 0}}
batch: {{global: 16, micro: 2}}
optimizer: {{lr: 1e-2}}
log: {{every: 1 steps, trackers: [], report: false}}
engine: {{stage: 2, device: cpu}}
"""
REPEATS = 3
CALLS = {
    "look up a path": r"stat|access|readlink",
    "open a file": "open",
    "read": r"^p?read(64)?$",
    "list a folder": "getdents",
}


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw = random.Random(0)
        lines = [" ".join(draw.choices(["a", "few", "words", "of", "text"], k=20)) for _ in range(500)]
        (folder / "text.txt").write_text("\n".join(lines))
        (folder / "config.yaml").write_text(CONFIG.format(folder=folder))
        _run(folder)
        seconds = sorted(_cpu_seconds(folder) for _ in range(REPEATS))
        print(
            f"CPU time of a run of two steps: {seconds[REPEATS // 2]:.1f} s (range {seconds[0]:.1f} to {seconds[-1]:.1f})"
        )
        if shutil.which("strace") is None:
            print("no strace here: file-system calls are not counted")
            return 1
        counts = _calls(folder)
    for what, pattern in CALLS.items():
        print(f"{what:<16}{sum(count for call, count in counts.items() if re.search(pattern, call)):>9,}")
    print(f"{'all':<16}{sum(counts.values()):>9,}")
    return 0


def _run(folder: Path, *prefix: str) -> None:
    shutil.rmtree(folder / "runs", ignore_errors=True)
    subprocess.run(
        [*prefix, sys.executable, "-m", "bellwether.trainer", folder / "config.yaml"], check=True, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def _cpu_seconds(folder: Path) -> float:
    before = os.times()
    _run(folder)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def _calls(folder: Path) -> dict[str, int]:
    """Number of calls by name, from strace's summary."""
    summary = folder / "strace.txt"
    _run(folder, "strace", "-f", "-c", "-e", "trace=%file,read,pread64,getdents64", "-o", str(summary))
    rows = [line.split() for line in summary.read_text().splitlines()]
    return {row[-1]: int(row[3]) for row in rows if len(row) >= 5 and row[3].isdigit() and row[-1] != "total"}


if __name__ == "__main__":
    sys.exit(main())

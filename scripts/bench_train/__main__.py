"""``python -m scripts.bench_train``: Bellwether beside other training loops, on two cores, in at most 10 minutes.

    make bench-train
    make bench-train ARGS="--page docs/results/training-cpu.md --json build/bench-train.json"

Installs nothing: a package that cannot be imported is named with the line that installs it.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scripts import results_page
from scripts.bench_train import starts, tables
from scripts.bench_train.contestants import CONTESTANTS
from scripts.bench_train.rounds import Budget, Result, compete, rounded_otherwise
from scripts.bench_train.shared import STEPS
from scripts.bench_train.workloads import RANKS, Workload, workloads_in

ROOT = Path(__file__).resolve().parents[2]
BEGIN, END = "<!-- written by scripts/bench_train -->", "<!-- end -->"
OVERHEAD = (
    14.0  # seconds that a contestant needs on a workload beside its rounds: to start, its first losses, its checkpoint
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench-train", description="training beside others, as two tables")
    parser.add_argument("--minutes", type=float, default=10.0, help="of the whole run (default 10)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contestant on a workload (default 5)")
    parser.add_argument("--only", default="", metavar="TEXT", help="workloads whose name contains this")
    parser.add_argument("--quick", action="store_true", help="tiny models and short rounds, to see that it runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all rounds here")
    parser.add_argument("--page", type=Path, metavar="FILE", help="replace the measured part of this page")
    arguments = parser.parse_args()
    folder = ROOT / "build" / ("bench-train-quick" if arguments.quick else "bench-train")
    folder.mkdir(parents=True, exist_ok=True)
    # The runs' own preparation, once, before anything is timed.
    found = [one for one in workloads_in(folder, arguments.quick) if arguments.only in one.name]
    if not found:
        parser.error(f"--only: no workload's name contains {arguments.only!r}")
    end = time.monotonic() + 60 * arguments.minutes
    results, about = run(found, folder, arguments.quick, arguments.rounds, end)
    text = tables.page(results, about)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(
            json.dumps({"about": about, "results": [asdict(r) for r in results]}, indent=1) + "\n"
        )
    results_page.write(arguments.page, BEGIN, END, text)
    return 0 if all(result.wall for result in results if not result.problem.startswith("`import ")) else 1


def run(
    found: list[Workload], folder: Path, quick: bool, rounds: int, end: float
) -> tuple[list[Result], dict[str, Any]]:
    """All workloads under both sets of flags, and what there is to know about the machine."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    load = [os.getloadavg()[0]]
    tokens = {one.name: real_tokens(one, folder) for one in found}
    begun = {} if quick else starts.measure(found[0], folder / "starts")
    pairs = [(one, best) for one in found for best in (False, True)]
    taking = {one.name: [c for c in CONTESTANTS if c.takes(one)] for one in found}
    groups = sum(sum(not c.problem() for c in taking[one.name]) for one, _ in pairs)
    budget = Budget(end, rounds * groups, longest=0.2 if quick else 4.0, shortest=0.1 if quick else 0.5)
    losses = 3 if quick else STEPS
    others = {one.name: [curve[:losses] for curve in rounded_otherwise(one, folder / "runs", cores)] for one in found}
    results: list[Result] = []
    for index, (one, best) in enumerate(pairs):
        if index and time.monotonic() > end - OVERHEAD * len(taking[one.name]):
            results += [Result(c.name, one.name, one.unit, best, "no time was left") for c in taking[one.name]]
            continue
        print(
            f"bench_train: {one.name}, {'best' if best else 'defaults'}, {end - time.monotonic():.0f} s left",
            file=sys.stderr,
            flush=True,
        )
        # What the pairs to come need beside their rounds is no time for rounds.
        budget.end = end - OVERHEAD * groups * (1 - index / len(pairs))
        results += compete(one, taking[one.name], best, folder / "runs", cores, rounds, budget, losses)
    load.append(os.getloadavg()[0])
    versions = {name: version(name) for name in ("torch", "deepspeed", "transformers", "accelerate")}
    machine = (
        f"{processor()}, {len(cores)} cores of which {min(RANKS, len(cores))} are used, Python {platform.python_version()}, "
        f"{', '.join(f'{name} {text}' for name, text in versions.items())}."
    )
    return results, {
        "measured": results_page.measured(), "machine": machine, "versions": versions, "rounds": rounds, "losses": losses, "quick": quick,
        "rounded_otherwise": others, "tokens": {name: count for name, count in tokens.items() if count is not None}, "starts": begun,
        "load": f"{load[0]:.1f} and {load[1]:.1f}",
    }  # fmt: skip


def real_tokens(workload: Workload, folder: Path) -> float | None:
    """Mean tokens of a sample that are no padding. Prepares the data."""
    os.environ.update(RANK="0", WORLD_SIZE=str(RANKS))
    from scripts.bench_train.shared import Setup

    return Setup(workload.config, folder, False).real_tokens()


def version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    sys.exit(main())

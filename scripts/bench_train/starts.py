"""The time from a command to the end of the first step, imports included; the data are prepared already."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from scripts.bench_train.workloads import Workload

ROOT = Path(__file__).resolve().parents[2]


def measure(workload: Workload, folder: Path) -> dict[str, float]:
    """Seconds of one process of Bellwether, and of the loop of DistributedDataParallel. One time each."""
    folder.mkdir(parents=True, exist_ok=True)
    raw = {**workload.config, "name": f"start-{time.time_ns()}", "runs": str(folder / "runs"), "stop_after": "1 steps"}
    raw["log"] = {**raw["log"], "every": "1 steps"}
    file = folder / "start.json"
    file.write_text(json.dumps(raw))
    return {
        f"`python -m bellwether.trainer`, {workload.name}": _until_first_step(
            [sys.executable, "-m", "bellwether.trainer", str(file)], raw
        ),
        f"a script with the loop of torch DDP, {workload.name}": _seconds(
            [sys.executable, "-m", "scripts.bench_train.starts", json.dumps(workload.config), str(folder)]
        ),
    }


def _environment() -> dict[str, str]:
    ranks = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # of the caller
    return {
        **{name: value for name, value in os.environ.items() if name not in ranks},
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "PYTHONPATH": str(ROOT),
        "CUDA_VISIBLE_DEVICES": "",
    }


def _run(command: list[str]) -> None:
    """Run a command; its output is shown only if it fails."""
    done = subprocess.run(command, cwd=ROOT, env=_environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:3])} ended with status {done.returncode}:\n{done.stderr}")


def _seconds(command: list[str]) -> float:
    began = time.monotonic()
    _run(command)
    return time.monotonic() - began


def _until_first_step(command: list[str], raw: dict[str, Any]) -> float:
    """Until the time that the first train event carries."""
    began = time.time()
    _run(command)
    lines = (Path(raw["runs"]) / raw["name"] / "metrics.jsonl").read_text().splitlines()
    event = next(line for line in map(json.loads, lines) if line.get("event") == "train")
    return float(event["time"]) - began


def _ddp(raw: dict[str, Any], folder: Path) -> None:
    """One step of the loop in one process."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ.update(RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    from scripts.bench_train.loops import ddp
    from scripts.bench_train.shared import Setup

    class OneStep:
        save = None

        def open(self) -> None:
            pass

        def after_step(self, loss: Any) -> None:
            os._exit(0)

    ddp(Setup(raw, folder, False), OneStep())  # type: ignore[arg-type]


if __name__ == "__main__":
    _ddp(json.loads(sys.argv[1]), Path(sys.argv[2]))

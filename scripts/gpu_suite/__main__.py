"""``python -m scripts.gpu_suite``: runs the parts one after the other, each in a process with a time limit. See scripts/gpu_suite.sh."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from scripts import results_page
from scripts.gpu_suite import report
from scripts.gpu_suite.context import Context, read
from scripts.gpu_suite.parts import NAMES, PARTS, Part

ROOT = Path(__file__).resolve().parents[2]
_RESERVE = 5.0  # seconds at the end for the last report


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/gpu_suite.sh", description="All that a GPU has to prove, in 9 minutes."
    )
    parser.add_argument("--dry", action="store_true", help="on the CPU with gloo and tiny models")
    parser.add_argument("--only", default="", metavar="PART,...", help="these parts alone")
    parser.add_argument("--list", action="store_true", help="name the parts")
    parser.add_argument("--minutes", type=float, default=9.0, help="of all parts together (default 9)")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu-suite", help="folder of the results")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=0.0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.list:
        print("\n".join(f"{part.name:<12}{part.title}" for part in PARTS))
        return 0
    out = arguments.out.resolve()
    if arguments.part:
        return _run_here(arguments.part, arguments.dry, out, arguments.seconds)
    chosen = [name for name in arguments.only.split(",") if name] or NAMES
    if unknown := [name for name in chosen if name not in NAMES]:
        parser.error(f"--only: {unknown[0]} is no part; they are {', '.join(NAMES)}")
    return run([part for part in PARTS if part.name in chosen], arguments.dry, arguments.minutes, out)


def run(parts: list[Part], dry: bool, minutes: float, out: Path) -> int:
    """Run parts and write the report after each; returns 1 if one has failed, or was not reached."""
    began = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"about": about(dry), "parts": [], "waiting": [part.name for part in parts]}
    report.write(out, results)
    building = None if dry or all(part.name != "optimizers" for part in parts) else _build(out)
    for part in parts:
        left = 60 * minutes - _RESERVE - (time.monotonic() - began)
        # On a CPU the limit is a guard against a hang alone.
        limit = min(left, part.seconds * (3 if dry else 1))
        results["parts"].append(_run_apart(part, dry, out, limit))
        results["waiting"].remove(part.name)
        report.write(out, results)
        last = results["parts"][-1]
        print(f"gpu_suite: {part.name}: {last['result']} ({last['seconds']:.0f} s)", file=sys.stderr, flush=True)
    if building is not None and building.poll() is None:
        _kill(building)
    print((out / "results.md").read_text())
    print(f"gpu_suite: {out / 'results.md'}, {time.monotonic() - began:.0f} s", file=sys.stderr)
    return 0 if all(part["result"] == "passed" for part in results["parts"]) else 1


def _run_apart(part: Part, dry: bool, out: Path, limit: float) -> dict[str, Any]:
    """Run a part in a process group of its own, which is killed at the limit."""
    found = {
        "name": part.name,
        "title": part.title,
        "seconds": 0.0,
        "result": "no time left",
        "entries": [],
        "error": "",
    }
    if limit < 1:
        return found
    folder = out / part.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    command = [
        sys.executable,
        "-m",
        "scripts.gpu_suite",
        "--part",
        part.name,
        "--out",
        str(folder),
        "--seconds",
        str(limit),
    ]
    began = time.monotonic()
    status: int | None = None
    with (folder / "output.log").open("wb") as log:
        process = subprocess.Popen(
            command + ["--dry"] * dry,
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=_environment(dry),
            start_new_session=True,
        )
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = process.wait(limit)
        finally:
            if status != 0:
                _kill(process)
    found["seconds"] = time.monotonic() - began
    found["entries"] = read(folder / "entries.jsonl")
    found["result"] = report.outcome(found["entries"], status)  # type: ignore[arg-type]
    if status != 0:
        found["error"] = (folder / "output.log").read_text(errors="replace")[-4000:]
    return found


def _build(out: Path) -> subprocess.Popen[bytes]:
    """Compile DeepSpeed's FusedLamb beside the first parts."""
    from scripts.gpu_suite.optimizer_speed import BUILD

    with (out / "build.log").open("wb") as log:
        return subprocess.Popen(
            ["nice", sys.executable, "-c", BUILD],
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _environment(dry: bool) -> dict[str, str]:
    if not dry:
        return dict(os.environ)
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "TRITON_INTERPRET": "1",
    }


def _run_here(name: str, dry: bool, folder: Path, seconds: float) -> int:
    """A part in this process."""
    part = next(part for part in PARTS if part.name == name)
    context = Context(dry, folder, seconds, folder / "entries.jsonl")
    part.load()(context)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # process groups are left as they are: gloo may abort a process whose peers have gone


def about(dry: bool) -> dict[str, Any]:
    """Date, commit, device, driver and versions."""
    import torch

    names = ("deepspeed", "transformers", "triton", "accelerate", "numpy")
    versions = {"Python": platform.python_version(), "torch": torch.__version__, "CUDA": str(torch.version.cuda)}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "absent"
    measured = results_page.measured()
    carried = ROOT / "build" / "gpu-bundle" / "commit.txt"
    if measured.endswith("unknown") and carried.is_file():  # a copy without its repository
        measured = f"{measured.partition(',')[0]}, {carried.read_text().strip().partition(', ')[2]}"
    on_gpu = not dry and torch.cuda.is_available()
    return {
        "measured": measured, "dry": dry, "device": torch.cuda.get_device_name(0) if on_gpu else f"{os.cpu_count()} CPU cores",
        "driver": _driver() if on_gpu else "none", "versions": versions,
    }  # fmt: skip


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.strip() or "unknown"
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"


if __name__ == "__main__":
    sys.exit(main())

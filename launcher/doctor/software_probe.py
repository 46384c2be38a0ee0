"""Facts about one node's software: packages, imports, GPU driver, C++ compiler, build locks. Imports nothing heavy."""

from __future__ import annotations

import csv
import glob
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bellwether import __version__
from bellwether.launcher.doctor.protocol import PREFIX, Facts, brief, parse
from bellwether.launcher.doctor.timeout import PROBE_SECONDS, run_with_timeout
from bellwether.trainer import build_locks

PACKAGES = ("torch", "deepspeed", "transformers", "datasets", "accelerate", "pydantic", "mpi4py", "bellwether")


def versions() -> dict[str, str | None]:
    """The version of each package, None where it is not installed."""
    return {name: _version(name) for name in PACKAGES}


def _version(name: str) -> str | None:
    if name == "bellwether":
        return __version__  # of the code that runs, installed or not
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


# Run in a subprocess, as an import may crash or hang. Prints a line after each import, so that a later crash loses nothing.
_IMPORTS = """
import json, os, sys, time, warnings
warnings.simplefilter("ignore")
facts = {"imports": {}}
def queued():  # seconds that this thread was ready to run and had no core: other work on the machine says nothing of its files
    try:
        with open("/proc/thread-self/schedstat") as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0
def took(start):
    return round(time.perf_counter() - queued() - start, 2)
def take(name):
    start = time.perf_counter() - queued()
    try:
        return __import__(name)
    except BaseException as error:
        facts["imports"][name] = f"{type(error).__name__}: {error}"
    finally:
        facts["imports"].setdefault(name, took(start))
        print("\\n" + sys.argv[1] + json.dumps(facts), flush=True)
if torch := take("torch"):
    cuda = torch.cuda.is_available()
    facts["gpu"] = {"torch": torch.cuda.device_count() if cuda else 0, "cuda": torch.version.cuda}
    if not cuda:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
take("deepspeed")
"""


def imports(limit: float) -> Facts:
    """Import torch and deepspeed in a subprocess.

    Args:
        limit: seconds for both imports together.

    Returns:
        ``imports``: by package, the seconds it took, without those in which other processes had the cores, or its error; ``gpu``: the number of GPUs that torch sees and its
        CUDA version, if torch can be imported.
    """
    try:
        ended = subprocess.run(
            [sys.executable, "-c", _IMPORTS, PREFIX], stdin=subprocess.DEVNULL, capture_output=True, text=True,
            errors="replace", timeout=limit,
        )  # fmt: skip
        out, last = ended.stdout, ([line for line in ended.stderr.splitlines() if line.strip()] or [""])[-1]
        missing = f"Python exited with status {ended.returncode}: {last}"
    except subprocess.TimeoutExpired as error:
        out, missing = (error.stdout or b"").decode(errors="replace"), f"not done in {limit:.0f} s"
    facts: Facts = (parse(out) or [{}])[-1]
    results = facts.setdefault("imports", {})
    for name in ("torch", "deepspeed"):
        result = results.get(name, missing)
        results[name] = brief(result) if isinstance(result, str) else result
    return facts


def nvidia_driver() -> Facts:
    """GPUs and driver version as ``nvidia-smi`` reports them; empty where there is no ``nvidia-smi``."""
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return {}
    query = [smi, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=4 * PROBE_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"error": brief(error)}
    rows = [[cell.strip() for cell in row] for row in csv.reader(done.stdout.splitlines()) if len(row) == 3]
    if done.returncode or not rows:
        return {"error": brief(done.stdout + done.stderr or f"status {done.returncode}")}
    return {"count": len(rows), "names": sorted({row[0] for row in rows})[:4], "driver": rows[0][1]}


def find_compiler() -> str | None:
    """The C++ compiler that `bellwether.optimizers.kernels.build` would use, found without importing torch."""
    names = (os.environ.get("CXX"), "c++", "g++", "clang++")
    return next((path for name in names if name and (path := shutil.which(name))), None)


def compiler(build: bool) -> Facts:
    """The path of the C++ compiler, and with ``build`` the error when it cannot compile a three-line file."""
    facts: Facts = {"path": find_compiler()}
    if not build or facts["path"] is None:
        return facts
    try:
        with tempfile.TemporaryDirectory(prefix="bellwether-doctor-") as folder:
            source = Path(folder, "three.cpp")
            source.write_text('#include <cmath>\nextern "C" double three(double x) {\n    return std::sqrt(x); }\n')
            command = [facts["path"], "-std=c++17", "-O3", "-fPIC", "-shared", str(source), "-o", f"{source}.so"]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=6 * PROBE_SECONDS)
    except subprocess.CalledProcessError as error:
        facts["error"] = brief(next(filter(str.strip, error.stderr.splitlines()), f"status {error.returncode}"))
    except (OSError, subprocess.TimeoutExpired) as error:
        facts["error"] = brief(error)
    return facts


def locks() -> list[Facts]:
    """Locks of DeepSpeed's builds, with age in seconds and number of processes that build there.

    Finds the same files as `bellwether.trainer.build_locks.locks`, without importing torch.
    """
    try:
        return run_with_timeout(PROBE_SECONDS, _find_locks)
    except TimeoutError:
        return []  # system_probe.disks probes the same file system and reports it


def _find_locks() -> list[Facts]:
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    root = os.environ.get("TORCH_EXTENSIONS_DIR") or os.path.join(cache, "torch_extensions")
    build_locks_found = []
    for path in sorted(p for depth in ("*/lock", "*/*/lock") for p in glob.glob(f"{glob.escape(root)}/{depth}")):
        try:
            age = time.time() - os.stat(path).st_mtime
        except OSError:
            continue
        try:
            builders = len(build_locks.builders(Path(path).parent.name))
        except ImportError:  # psutil is missing
            builders = 0
        build_locks_found.append({"path": path, "age_s": round(age), "builders": builders})
    return build_locks_found[:4]

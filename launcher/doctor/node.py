"""``python -m bellwether.launcher.doctor.node``: what one node is like, in a line of JSON, and then how all of them get on together.

Any launcher starts it, once a node. The first line needs nothing but Python, so that also a node with a broken environment
has something to tell. Nothing here waits without a limit.
"""

from __future__ import annotations

import argparse
import csv
import glob
import importlib.metadata
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from bellwether import __version__
from bellwether.trainer import build_locks, rendezvous

Facts = dict[str, Any]
T = TypeVar("T")

PREFIX = "bellwether-doctor: "
PACKAGES = ("torch", "deepspeed", "transformers", "datasets", "accelerate", "pydantic", "mpi4py", "bellwether")
CACHE = "~/.cache/bellwether"  # the default of data.cache; the CPU kernel is kept there too
PORTS = 20  # ports that are tried, of those that a job would try

_PROBE = 5.0  # seconds for one look at a file system or a name server; one that hangs is a finding
_LONG = 200  # characters of an error: launchers carry lines whole only up to 4 KiB


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bellwether.launcher.doctor.node", description=__doc__)
    parser.add_argument("--shared", metavar="DIR", default=".", help="directory that all nodes should share")
    parser.add_argument("--nonce", metavar="TEXT", help="goes into the name of the file that is written there")
    parser.add_argument("--size", type=int, metavar="N", help="how many nodes were asked")
    parser.add_argument("--limit", type=float, default=60, metavar="S", help="seconds for meeting, and for measuring")
    parser.add_argument("--no-network", action="store_true", help="tell of this node alone")
    arguments = parser.parse_args(argv)

    watch = Watch(0 if arguments.no_network else _rank())
    try:
        watch.stage("looking at this node", 2 * arguments.limit)
        watch.tell(about(arguments.shared, watch.rank, 1.5 * arguments.limit))
        if not arguments.no_network:
            watch.stage("taking its seat", arguments.limit)
            from bellwether.launcher.doctor import cluster_probe

            cluster_probe.run(
                watch, arguments.shared, arguments.nonce or str(os.getpid()), arguments.size, arguments.limit
            )
    except Exception as error:  # whatever it is, the table shall show it
        watch.trouble(f"{type(error).__name__}: {error}")
    watch.tell_report()
    return 0


class Watch:
    """Tells, a line at a time, and ends this process when a stage takes longer than it may."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.name = ""
        self.report: Facts | None = None  # of all nodes, as far as it got; rank 0's
        self._timer: threading.Timer | None = None
        self._telling = threading.Lock()

    def stage(self, name: str, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self.name = name
        self._timer = threading.Timer(seconds, self._expire, (seconds,))
        self._timer.daemon = True
        self._timer.start()

    def tell(self, facts: Facts) -> None:
        with self._telling:
            # In one call, and on a line of its own, also when something else was printed without an end.
            data = f"\n{PREFIX}{json.dumps(facts, separators=(',', ':'))}\n".encode()
            sys.stdout.flush()
            while data:
                data = data[os.write(1, data) :]

    def trouble(self, error: str) -> None:
        about = {"kind": "trouble", "rank": self.rank, "host": socket.gethostname(), "stage": self.name}
        self.tell({**about, "error": " ".join(error.split())[:_LONG]})

    def tell_report(self) -> None:
        report, self.report = self.report, None
        if report is not None:
            self.tell(report)

    def _expire(self, seconds: float) -> None:
        self.tell_report()
        self.trouble(f"not done in {seconds:.0f} s")
        if self.rank != 0:
            time.sleep(2)  # mpirun ends all as soon as one is gone, and rank 0 may be about to tell
        os._exit(0)


def about(shared: str, rank: int = 0, limit: float = 90.0) -> Facts:
    """All that this node can tell by itself.

    Args:
        shared: the directory that holds the run directories.
        limit: seconds that the imports of torch and deepspeed may take together.
    """
    imports = _imports(limit)
    return {
        "kind": "node",
        "rank": rank,
        **host(),
        "python": platform.python_version(),
        "executable": sys.executable,
        "packages": {name: _version(name) for name in PACKAGES},
        "imports": imports.get("imports", {}),
        "gpu": {**_nvidia(), **imports.get("gpu", {})},
        "compiler": compiler(build=True),
        "locks": locks(),
        "cores": {"visible": _cores(), "all": os.cpu_count(), "omp": os.environ.get("OMP_NUM_THREADS")},
        "disks": disks(shared),
        "ports": ports(),
        "time": time.time(),
    }


def host() -> Facts:
    """This node's name and what it resolves to, its interface, and where its job runs."""
    name = socket.gethostname()
    facts: Facts = {"host": name, "addresses": [], "nodelist": os.environ.get("SLURM_STEP_NODELIST")}
    try:
        facts["addresses"] = within(_PROBE, lambda: addresses(name))[:4]
    except (OSError, TimeoutError) as error:
        facts["unresolved"] = _brief(error)
    if interface := os.environ.get("BELLWETHER_INTERFACE"):
        facts["interface"] = {"name": interface}
        try:
            facts["interface"]["address"] = rendezvous.address(interface)
        except (ImportError, ValueError) as error:
            facts["interface"]["error"] = _brief(error)
    return facts


def addresses(name: str) -> list[str]:
    """What a name resolves to.

    Raises:
        OSError: if to nothing.
    """
    return sorted({str(found[4][0]) for found in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)})


def find_compiler() -> str | None:
    """The C++ compiler that `bellwether.optimizers.kernels.build` takes, found without torch, which importing that would need."""
    names = (os.environ.get("CXX"), "c++", "g++", "clang++")
    return next((found for name in names if name and (found := shutil.which(name))), None)


def compiler(build: bool) -> Facts:
    """The compiler, and with ``build`` whether three lines go through it."""
    facts: Facts = {"path": find_compiler()}
    if not build or facts["path"] is None:
        return facts
    try:
        with tempfile.TemporaryDirectory(prefix="bellwether-doctor-") as folder:
            source = Path(folder, "three.cpp")
            source.write_text('#include <cmath>\nextern "C" double three(double x) {\n    return std::sqrt(x); }\n')
            command = [facts["path"], "-std=c++17", "-O3", "-fPIC", "-shared", str(source), "-o", f"{source}.so"]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=6 * _PROBE)
    except subprocess.CalledProcessError as error:
        facts["error"] = _brief(next(filter(str.strip, error.stderr.splitlines()), f"status {error.returncode}"))
    except (OSError, subprocess.TimeoutExpired) as error:
        facts["error"] = _brief(error)
    return facts


def locks() -> list[Facts]:
    """Locks of DeepSpeed's builds with their age in seconds: those that `bellwether.trainer.build_locks.locks` finds, without torch."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    root = os.environ.get("TORCH_EXTENSIONS_DIR") or os.path.join(cache, "torch_extensions")

    def look() -> list[Facts]:
        found = []
        for path in sorted(p for depth in ("*/lock", "*/*/lock") for p in glob.glob(f"{glob.escape(root)}/{depth}")):
            try:
                age = time.time() - os.stat(path).st_mtime
            except OSError:
                continue
            try:
                builders = len(build_locks._builders(Path(path).parent.name))
            except ImportError:  # psutil's
                builders = 0
            found.append({"path": path, "age_s": round(age), "builders": builders})
        return found[:4]

    try:
        return within(_PROBE, look)
    except TimeoutError:
        return []  # the same file system is among the disks, and told of there


def disks(shared: str) -> Facts:
    """Free bytes and inodes where a run writes, and whether it can."""
    try:
        temporary = tempfile.gettempdir()
    except FileNotFoundError:  # none can be written to
        temporary = os.environ.get("TMPDIR", "/tmp")
    places = {"runs": shared, "cache": CACHE, "shm": "/dev/shm", "temp": temporary}
    return {role: _disk(os.path.abspath(os.path.expanduser(path))) for role, path in places.items()}


def _disk(path: str) -> Facts:
    facts: Facts = {"path": path}

    def look() -> None:
        facts["path"] = folder = existing(path)
        room = os.statvfs(folder)
        facts["free"] = room.f_bavail * room.f_frsize
        facts["inodes"] = room.f_favail if room.f_files else None  # some file systems do not count them
        with tempfile.TemporaryFile(dir=folder, prefix=".bellwether-doctor-") as file:
            file.write(b"x")

    try:
        within(_PROBE, look)
    except (OSError, TimeoutError) as error:
        facts["error"] = _brief(getattr(error, "strerror", None) or error)
    return facts


def existing(path: str) -> str:
    """The directory, or the nearest one above it that is there."""
    folder = os.path.abspath(path)
    while not os.path.isdir(folder) and os.path.dirname(folder) != folder:
        folder = os.path.dirname(folder)
    return folder


def ports() -> Facts:
    """How many of the ports that a job here would try first are free, and where Linux's own choice of ports begins."""
    job = os.environ.get("SLURM_JOB_ID", "")
    choice = rendezvous.ports(int(job) if job.isdigit() else os.getpid())
    tried = [next(choice) for _ in range(PORTS)]
    try:
        first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        first = None
    return {"tried": PORTS, "free": sum(map(rendezvous.is_free, tried)), "ephemeral": first}


def within(seconds: float, act: Callable[[], T]) -> T:
    """What it returns or raises.

    Raises:
        TimeoutError: if that takes longer, as on a file system or a name server that is away. It is left to itself then.
    """
    outcome: list[tuple[T | None, Exception | None]] = []

    def run() -> None:
        try:
            outcome.append((act(), None))
        except Exception as error:
            outcome.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise TimeoutError(f"no answer in {seconds:.0f} s")
    result, error = outcome[0]
    if error is not None:
        raise error
    return result  # type: ignore[return-value]


# In a process of its own: it may crash or hang. A line after each import, so that what was known before stays.
_IMPORTS = """
import json, os, sys, time, warnings
warnings.simplefilter("ignore")
facts = {"imports": {}}
def take(name):
    start = time.perf_counter()
    try:
        return __import__(name)
    except BaseException as error:
        facts["imports"][name] = f"{type(error).__name__}: {error}"
    finally:
        facts["imports"].setdefault(name, round(time.perf_counter() - start, 2))
        print("\\n" + sys.argv[1] + json.dumps(facts), flush=True)
if torch := take("torch"):
    cuda = torch.cuda.is_available()
    facts["gpu"] = {"torch": torch.cuda.device_count() if cuda else 0, "cuda": torch.version.cuda}
    if not cuda:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
take("deepspeed")
"""


def _imports(limit: float) -> Facts:
    try:
        ended = subprocess.run(
            [sys.executable, "-c", _IMPORTS, PREFIX], stdin=subprocess.DEVNULL, capture_output=True, text=True,
            errors="replace", timeout=limit,
        )  # fmt: skip
        out, last = ended.stdout, ([line for line in ended.stderr.splitlines() if line.strip()] or [""])[-1]
        missing = f"Python ended with status {ended.returncode}: {last}"
    except subprocess.TimeoutExpired as error:
        out, missing = (error.stdout or b"").decode(errors="replace"), f"not done in {limit:.0f} s"
    told: Facts = (read(out) or [{}])[-1]
    imports = told.setdefault("imports", {})
    for name in ("torch", "deepspeed"):
        took = imports.get(name, missing)
        imports[name] = _brief(took) if isinstance(took, str) else took
    return told


def read(text: str) -> list[Facts]:
    """The facts in what was printed, whatever else is there."""
    found = []
    for part in text.split(PREFIX)[1:]:
        try:
            facts, _ = json.JSONDecoder().raw_decode(part)
        except ValueError:
            continue  # cut off: its node was killed, and is missed
        if isinstance(facts, dict):
            found.append(facts)
    return found


def _nvidia() -> Facts:
    """What the driver says. No key where there is no ``nvidia-smi``."""
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return {}
    query = [smi, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, timeout=4 * _PROBE)
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"error": _brief(error)}
    rows = [[cell.strip() for cell in row] for row in csv.reader(said.stdout.splitlines()) if len(row) == 3]
    if said.returncode or not rows:
        return {"error": _brief(said.stdout + said.stderr or f"status {said.returncode}")}
    return {"count": len(rows), "names": sorted({row[0] for row in rows})[:4], "driver": rows[0][1]}


def _version(name: str) -> str | None:
    if name == "bellwether":
        return __version__  # of the code that runs, installed or not
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _rank() -> int:
    try:
        from bellwether.trainer import process_info

        return process_info.rank()
    except ImportError:  # pydantic's, which the table will show
        names = ("RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")
        return next((int(os.environ[name]) for name in names if os.environ.get(name, "").isdigit()), 0)


def _brief(said: object) -> str:
    return " ".join(str(said).split())[:_LONG]


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)  # some libraries wait in their clean-up for processes that are gone

"""Compiles the CPU kernel, once a machine and version: plain C++, no headers of torch, so it takes a second or two."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

# Rounded as written: no contraction to fused multiply-add, so that processors with and without it give the same bits.
_FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"]

# What the compiler and the linker get in addition, tried in this order. First without an OpenMP library of our own, so
# that torch's, which is loaded already, serves both and their threads are the same.
_VARIANTS = [
    (["-march=native", "-fopenmp"], []),
    (["-march=native", "-fopenmp"], ["-fopenmp"]),
    (["-fopenmp"], ["-fopenmp"]),
    (["-march=native"], []),
    ([], []),
]

_PATIENCE = 60.0  # seconds to wait for another process that compiles the same


def load(source: Path) -> ctypes.CDLL:
    """The library made of a C++ file, compiled now unless a cache has it.

    The cache is ``$XDG_CACHE_HOME/bellwether/kernels`` or ``~/.cache/bellwether/kernels``; where that cannot be written,
    a folder of this user's, or else of this process's, for temporary files.

    Raises:
        RuntimeError: if there is no compiler or it fails, with what it said.
    """
    compiler = _compiler()
    name = f"{source.stem}-{_key(source, compiler)}.so"
    folder = _folder()
    library = folder / name
    with _alone(folder / f"{name}.lock", until=library.exists):
        if library.exists():
            with contextlib.suppress(OSError):
                return ctypes.CDLL(str(library))
        return _compile(compiler, source, library)


def _compiler() -> str:
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        found = shutil.which(name) if name else None
        if found:
            return found
    raise RuntimeError("no C++ compiler was found (c++, g++, clang++, or the one that CXX names)")


def _key(source: Path, compiler: str) -> str:
    """What the library depends on: home directories are shared by machines with different processors."""
    version = subprocess.run([compiler, "--version"], capture_output=True, timeout=30).stdout
    parts = [source.read_bytes(), version, repr((_FLAGS, _VARIANTS, platform.machine(), _processor())).encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:20]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _folder() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    ours = Path(tempfile.gettempdir()) / f"bellwether-kernels-{os.getuid()}"
    for folder in (cache / "bellwether" / "kernels", ours):
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with tempfile.TemporaryFile(dir=folder):
                # What is loaded from here runs as this user: nobody else may have put it there.
                if folder.stat().st_uid == os.getuid():
                    return folder
        except OSError:
            continue
    return Path(tempfile.mkdtemp(prefix="bellwether-kernels-"))


@contextlib.contextmanager
def _alone(lock: Path, until: object) -> Iterator[None]:
    """Hold a lock, so that of many ranks one compiles. The system drops the lock of a process that was killed.

    It only spares work: a library appears by one rename, so nothing breaks where a file system knows no locks.
    """
    import fcntl

    with open(lock, "w") as file:
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.05)
            except OSError:
                break
        yield


def _compile(compiler: str, source: Path, library: Path) -> ctypes.CDLL:
    complaints = []
    with tempfile.TemporaryDirectory(dir=library.parent, prefix=".build-") as scratch:
        made = Path(scratch) / library.name
        compiled = Path(scratch) / "kernel.o"
        for compile_flags, link_flags in _VARIANTS:
            commands = [
                [compiler, *_FLAGS, *compile_flags, "-c", str(source), "-o", str(compiled)],
                [compiler, "-shared", *link_flags, str(compiled), "-o", str(made)],
            ]
            try:
                for command in commands:
                    subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
                ctypes.CDLL(str(made))  # where it would not load, the next variant is tried
            except subprocess.CalledProcessError as error:
                complaints.append(_first_error(error.stderr))
            except (OSError, subprocess.TimeoutExpired) as error:
                complaints.append(str(error))
            else:
                os.replace(made, library)
                return ctypes.CDLL(str(library))
    raise RuntimeError(f"{compiler} could not build {source.name}: {complaints[-1]}")


def _first_error(said: str) -> str:
    lines = [line for line in said.splitlines() if "error" in line] or said.splitlines() or ["it failed in silence"]
    return lines[0][:300]

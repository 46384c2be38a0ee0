"""Compiles the CPU kernel, once for each machine and version. Plain C++ without torch's headers takes a second or two."""

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
from collections.abc import Iterator, Mapping
from pathlib import Path

# No contraction to fused multiply-add, so that processors with and without it give the same bits.
_FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"]

# Additional flags of the compiler and the linker, tried in this order. First without linking an OpenMP library, so that
# the kernel uses torch's, which is loaded already, and its threads.
_VARIANTS = [
    (["-march=native", "-fopenmp"], []),
    (["-march=native", "-fopenmp"], ["-fopenmp"]),
    (["-fopenmp"], ["-fopenmp"]),
    (["-march=native"], []),
    ([], []),
]

_TIMEOUT = 60.0  # seconds to wait for another process that compiles the same source


def load(source: Path, definitions: Mapping[str, str] | None = None) -> ctypes.CDLL:
    """Load the library of a C++ file, which may include .hpp files beside it. Compiles it unless the cache has it.

    The cache is ``$XDG_CACHE_HOME/bellwether/kernels`` or ``~/.cache/bellwether/kernels``; if that is not writable, a
    temporary folder of this user, or else of this process.

    Args:
        definitions: preprocessor macros.

    Raises:
        RuntimeError: if there is no compiler or it fails, with its error.
    """
    compiler = _compiler()
    flags = [*_FLAGS, *(f"-D{name}={value}" for name, value in (definitions or {}).items())]
    name = f"{source.stem}-{_key(source, compiler, flags)}.so"
    cache = folder()
    library = cache / name
    with locked(cache / f"{name}.lock"):
        if library.exists():
            with contextlib.suppress(OSError):
                return ctypes.CDLL(str(library))
        return _compile([compiler, *flags], source, library)


def _compiler() -> str:
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        compiler_path = shutil.which(name) if name else None
        if compiler_path:
            return compiler_path
    raise RuntimeError("no C++ compiler was found (c++, g++, clang++, or the one that CXX names)")


def _key(source: Path, compiler: str, flags: list[str]) -> str:
    """Hash of what the library depends on. Machines with different processors may share a home directory."""
    version = subprocess.run([compiler, "--version"], capture_output=True, timeout=30).stdout
    included = [path.read_bytes() for path in sorted(source.parent.glob("*.hpp"))]
    parts = [
        source.read_bytes(),
        *included,
        version,
        repr((flags, _VARIANTS, platform.machine(), _processor())).encode(),
    ]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:20]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def folder() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    ours = Path(tempfile.gettempdir()) / f"bellwether-kernels-{os.getuid()}"
    for path in (cache / "bellwether" / "kernels", ours):
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            with tempfile.TemporaryFile(dir=path):
                # Its files run as this user, so nobody else may be able to write them.
                if path.stat().st_uid == os.getuid():
                    return path
        except OSError:
            continue
    return Path(tempfile.mkdtemp(prefix="bellwether-kernels-"))


@contextlib.contextmanager
def locked(lock: Path) -> Iterator[None]:
    """Hold a file lock, so that only one of many ranks compiles. The system releases the lock of a killed process.

    The lock only saves work: a library appears by an atomic rename, so a file system without locks is safe too.
    """
    import fcntl

    with open(lock, "w") as file:
        deadline = time.monotonic() + _TIMEOUT
        while time.monotonic() < deadline:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.05)
            except OSError:
                break
        yield


def _compile(compile_command: list[str], source: Path, library: Path) -> ctypes.CDLL:
    compiler, errors = compile_command[0], []
    with tempfile.TemporaryDirectory(dir=library.parent, prefix=".build-") as scratch:
        built = Path(scratch) / library.name
        compiled = Path(scratch) / "kernel.o"
        for compile_flags, link_flags in _VARIANTS:
            commands = [
                [*compile_command, *compile_flags, "-c", str(source), "-o", str(compiled)],
                [compiler, "-shared", *link_flags, str(compiled), "-o", str(built)],
            ]
            try:
                for command in commands:
                    subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
                ctypes.CDLL(str(built))  # if it does not load, the next variant is tried
            except subprocess.CalledProcessError as error:
                errors.append(_first_error(error.stderr))
            except (OSError, subprocess.TimeoutExpired) as error:
                errors.append(str(error))
            else:
                os.replace(built, library)
                return ctypes.CDLL(str(library))
    raise RuntimeError(f"{compiler} could not build {source.name}: {errors[-1]}")


def _first_error(stderr: str) -> str:
    lines = (
        [line for line in stderr.splitlines() if "error" in line]
        or stderr.splitlines()
        or ["it failed without a message"]
    )
    return lines[0][:300]

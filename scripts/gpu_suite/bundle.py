"""Makes the bundle of the GPU suite: the wheels that a machine with torch for CUDA and transformers lacks.

    make gpu-bundle
    make gpu-bundle ARGS="--python 3.11 --machine aarch64"

Downloads the versions of requirements/lock.txt for the machine's Python; DeepSpeed's wheel is built here without operators, which
compile where they are used. The data are made by the suite itself. Prints the size: 64 MiB is what fits through narrow doors.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement

from scripts import results_page

ROOT = Path(__file__).resolve().parents[2]
# What the suite imports and such a machine may not have; what these need is followed.
WANTED = ("deepspeed", "datasets", "pydantic", "optuna", "argcomplete", "xxhash", "pytest", "pytest-xdist")
# What it has: torch's and transformers' own dependencies, and large packages that come with the images in use.
PRESENT = {
    "torch", "triton", "transformers", "accelerate", "pyarrow", "safetensors", "mpi4py", "numpy", "tokenizers", "huggingface-hub",
    "sympy", "networkx", "jinja2", "markupsafe", "setuptools", "pyyaml", "regex", "requests",
    "tqdm", "pillow", "certifi", "urllib3", "idna", "charset-normalizer", "httpx", "httpcore", "anyio", "h11", "sniffio",
}  # fmt: skip
LIMIT = 64 * 2**20


def normal(name: str) -> str:
    """
    >>> normal("Py_cpuinfo")
    'py-cpuinfo'
    """
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(wanted: tuple[str, ...], present: set[str], python: str) -> set[str]:
    """The packages that these need, by what is installed here, without those that are present there."""
    environment = {"python_version": python, "python_full_version": f"{python}.0", "extra": ""}
    found: set[str] = set()
    waiting = list(wanted)
    while waiting:
        name = normal(waiting.pop())
        if name in found or name in present:
            continue
        try:
            requires = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # for other Pythons than this one
        found.add(name)
        for text in requires:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate(environment):
                waiting.append(requirement.name)
    return found


def pins(names: set[str], lock: str, python: str) -> list[str]:
    """The lines of the lock file for these packages on a version of Python, as pip takes them.

    >>> lock = "a==1 ; python_full_version < '3.11'  # via x\\na==2 ; python_full_version >= '3.11'\\nb==3  # via a"
    >>> pins({"a"}, lock, "3.12")
    ['a==2']
    """
    environment = {"python_version": python, "python_full_version": f"{python}.0"}
    found = []
    for line in lock.splitlines():
        text = line.partition("#")[0].strip()
        if not text or text.startswith("-"):
            continue
        requirement = Requirement(text)
        holds = requirement.marker is None or requirement.marker.evaluate(environment)
        if normal(requirement.name) in names and holds:
            found.append(f"{requirement.name}{requirement.specifier}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--python", default="3.12", help="version of Python there (default 3.12)")
    parser.add_argument("--machine", default="x86_64", help="its processor (default x86_64)")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu-bundle")
    arguments = parser.parse_args()
    names = closure(WANTED, PRESENT, arguments.python)
    wanted = pins(names, (ROOT / "requirements" / "lock.txt").read_text(), arguments.python)
    shutil.rmtree(arguments.out, ignore_errors=True)
    arguments.out.mkdir(parents=True)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    built = [pin for pin in wanted if pin.startswith("deepspeed==")]
    # glibc of Ubuntu 22.04 and Debian 12, and what older wheels are tagged with.
    platforms = [f"manylinux_2_{minor}_{arguments.machine}" for minor in (35, 34, 31, 28, 27, 24, 17)]
    platforms.append(f"manylinux2014_{arguments.machine}")
    options = [option for platform in platforms for option in ("--platform", platform)]
    subprocess.run(
        [*pip, "download", "--no-deps", "--only-binary=:all:", "--implementation", "cp", "--python-version", arguments.python,
         *options, "--dest", str(arguments.out), *(pin for pin in wanted if pin not in built)], check=True,
    )  # fmt: skip
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(arguments.out), *built],
        check=True, env={**os.environ, "DS_BUILD_OPS": "0"},
    )  # fmt: skip
    (arguments.out / "commit.txt").write_text(results_page.measured() + "\n")
    files = sorted(arguments.out.iterdir(), key=lambda file: -file.stat().st_size)
    size = sum(file.stat().st_size for file in files)
    for file in files:
        print(f"{file.stat().st_size / 2**20:7.1f} MiB  {file.name}")
    print(f"{size / 2**20:7.1f} MiB  {arguments.out} for Python {arguments.python} on {arguments.machine}")
    if size > LIMIT:
        print(f"more than {LIMIT // 2**20} MiB: leave packages out that the machine has", file=sys.stderr)
    return 0 if size <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())

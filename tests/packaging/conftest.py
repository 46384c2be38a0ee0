"""A wheel built from the checkout, and scratch environments with the wheel installed."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

import pytest

from tests.packaging.environment import ROOT, Environment

FOLDERS = ("bellwether", "configs", "experiments", "launcher", "optimizers", "slurm", "trainer")
FILES = ("pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the checkout, because setuptools leaves its build folder next to the sources."""
    source = tmp_path_factory.mktemp("source")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, source / name, symlinks=True)
    for name in FILES:
        shutil.copy(ROOT / name, source)
    (source / "slurm" / "site.yaml").write_text("account: private\n")
    out = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--wheel-dir", out, source], check=True)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The wheel with all dependencies, which are those of the running environment."""
    here = {sysconfig.get_paths()[kind] for kind in ("purelib", "platlib")}
    return Environment(tmp_path_factory.mktemp("installed"), wheel, sorted(here))


@pytest.fixture(scope="session")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The wheel with the dependencies of ``pip install bellwether`` alone: torch, and what torch requires."""
    links = tmp_path_factory.mktemp("dependencies")
    for name in sorted(_with_requirements("torch")):
        distribution = metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            (links / top).symlink_to(Path(str(distribution.locate_file(top))))
    return Environment(tmp_path_factory.mktemp("bare"), wheel, [links])


def _with_requirements(name: str) -> set[str]:
    """A distribution and all that it requires, directly and indirectly, as far as it is installed."""
    found: set[str] = set()
    pending = [name]
    while pending:
        name = pending.pop()
        try:
            requires = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # for another platform
        if name not in found:
            found.add(name)
            pending += [
                re.split(r"[^A-Za-z0-9._-]", r)[0].lower().replace("_", "-") for r in requires if "extra ==" not in r
            ]
    return found

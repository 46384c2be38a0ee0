"""A packed virtual environment: packed, unpacked elsewhere, and run from there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from bellwether.launcher import packed_env
from bellwether.trainer.config import ConfigError
from tests.tiers import covering

ROOT = Path(__file__).parents[2]


def small_environment(folder: Path) -> Path:
    """A virtual environment that finds the installed packages of this one."""
    venv.create(folder, symlinks=True)
    packages = folder / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    (packages / "own.py").write_text("")
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_environment(tmp_path_factory.mktemp("packed") / "env")


@pytest.mark.process
@covering(lambda suffix: suffix == ".tar")
@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_unpacked_environment_needs_nothing_of_the_original(environment: Path, tmp_path: Path, suffix: str) -> None:
    archive, folder = tmp_path / f"e{suffix}", tmp_path / "node"
    assert packed_env.pack(environment, archive) == archive.stat().st_size
    aside = environment.with_name("aside")
    environment.rename(aside)
    try:
        for _ in range(2):  # a restart finds it unpacked
            command = [sys.executable, "-m", "bellwether.launcher.packed_env", str(archive), str(folder)]
            subprocess.run(command, check=True, cwd=ROOT)
        code = "import sys, own, torch; print(sys.prefix, sys.base_prefix, own.__file__, *sys.path)"
        done = subprocess.run([folder / "bin/python", "-c", code], capture_output=True, text=True, cwd=tmp_path)
    finally:
        aside.rename(environment)
    assert done.returncode == 0, done.stderr
    prefix, base, own, *path = done.stdout.split()
    assert Path(prefix) == folder
    assert own.startswith(str(folder))
    if not sys.base_prefix.startswith("/usr"):
        assert Path(base) == folder / "python"
        # The base installation's own packages were not visible before either.
        assert not [p for p in path if p.startswith(f"{base}/") and "site-packages" in p]
        assert not list(folder.glob("python/lib/python3*/site-packages"))
    assert folder.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("environment_has", "output", "words"),
    [
        ("pyvenv.cfg", "e.zip", "--output: .*unknown suffix"),
        ("pyvenv.cfg", "exists.tar", "--output: .*exists"),
        ("pyvenv.cfg", "no/such/folder/e.tar", "--output: .*cannot be written"),
        ("", "e.tar", "--venv: .*is not a virtual environment"),
        ("conda-meta/history", "e.tar", "--venv: .*conda-pack"),
    ],
)
def test_what_cannot_be_packed_is_refused(tmp_path: Path, environment_has: str, output: str, words: str) -> None:
    environment = tmp_path / "env"
    environment.mkdir()
    if environment_has:
        (environment / environment_has).parent.mkdir(exist_ok=True)
        (environment / environment_has).write_text("home = /usr/bin\n")
    (tmp_path / "exists.tar").write_text("somebody's")
    with pytest.raises(ConfigError, match=words):
        packed_env.pack(environment, tmp_path / output)
    assert (tmp_path / "exists.tar").read_text() == "somebody's"
    assert [p.name for p in tmp_path.iterdir()] == [p.name for p in tmp_path.iterdir() if "partial" not in p.name]


@pytest.mark.process
def test_damaged_archive_and_foreign_folder_are_named(
    environment: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    archive = tmp_path / "e.tar"
    archive.write_bytes(os.urandom(2000))
    with pytest.raises(OSError, match="tar"):
        packed_env.unpack(archive, tmp_path / "node")
    if os.getuid() == 0:
        other = tmp_path / "other"
        other.mkdir()
        shutil.chown(other, 12345)
        with pytest.raises(PermissionError, match="belongs to another user"):
            packed_env.unpack(archive, other)

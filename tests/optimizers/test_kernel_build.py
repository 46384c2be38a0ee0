"""The CPU kernel is compiled at first use: compiler errors, and leftovers of earlier builds in the cache."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

from bellwether.optimizers.kernels import build, cpu

SOURCE = Path(cpu.__file__).with_name("cpu.cpp")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder for the libraries."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "bellwether" / "kernels"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A source file that compiles fast."""
    path = tmp_path / "small.cpp"
    path.write_text('extern "C" int answer() { return 42; }\n')
    return path


def libraries(cache: Path) -> list[Path]:
    return sorted(cache.glob("*.so"))


def test_library_is_built_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(build.load(SOURCE, cpu._DEFINITIONS).bellwether_run, ctypes._CFuncPtr)
    assert len(libraries(cache)) == 1
    assert not list(cache.glob(".build-*"))
    monkeypatch.delattr(build, "_compile")
    assert build.load(SOURCE, cpu._DEFINITIONS).bellwether_run


def test_leftovers_of_a_killed_build_are_ignored(cache: Path, source: Path) -> None:
    build.load(source)
    (library,) = libraries(cache)
    library.unlink()
    assert library.with_name(f"{library.name}.lock").exists()
    half = cache / ".build-killed"
    half.mkdir()
    (half / library.name).write_bytes(b"half a library")
    assert build.load(source).answer() == 42


def test_broken_library_is_rebuilt(cache: Path, source: Path) -> None:
    build.load(source)
    (library,) = libraries(cache)
    library.unlink()  # a new file, because this process has loaded the old one
    library.write_bytes(b"half a library")
    assert build.load(source).answer() == 42


@pytest.mark.process
def test_concurrent_builds(cache: Path, source: Path) -> None:
    # Loaded by path: without the package, and thus without torch, the processes start at about the same time.
    script = f"import runpy, pathlib; print(runpy.run_path({build.__file__!r})['load'](pathlib.Path({str(source)!r})).answer())"  # fmt: skip
    started = [subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert [process.communicate(timeout=60)[0] for process in started] == ["42\n"] * 4
    assert len(libraries(cache)) == 1
    assert not list(cache.glob(".build-*"))


def test_cache_without_write_permission(
    cache: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert build.load(source).answer() == 42


def test_compiler_error_is_reported(cache: Path, source: Path) -> None:
    source.write_text("this is no C++\n")
    with pytest.raises(RuntimeError, match=r"could not build small.cpp: .*error"):
        build.load(source)
    assert not libraries(cache)
    assert not list(cache.glob(".build-*"))


@pytest.mark.process
def test_missing_compiler_is_reported(tmp_path: Path) -> None:
    script = """
        import logging, sys, torch
        from bellwether.optimizers import Lamb
        logging.basicConfig(format="%(message)s", stream=sys.stdout)
        weight = torch.nn.Parameter(torch.full((2, 2), 2.0))
        optimizer = Lamb([weight], lr=0.1, weight_decay=0.0)
        weight.grad = torch.ones(2, 2)
        for _ in range(2):
            optimizer.step()
        print(round(weight[0, 0].item(), 3))
        try:
            Lamb([weight], kernel="cpu")
        except RuntimeError as error:
            print(error)
    """
    environment = {k: v for k, v in os.environ.items() if k != "CXX"}
    environment |= {"PATH": "", "XDG_CACHE_HOME": str(tmp_path)}
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    reason = "no C++ compiler was found (c++, g++, clang++, or the one that CXX names)"
    assert ended.stdout.splitlines() == [
        f"the compiled kernel cannot run here, using torch's operations instead: {reason}",
        "1.62",
        f"kernel='cpu' cannot run here: {reason}; kernel='auto' falls back to torch",
    ]

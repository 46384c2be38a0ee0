"""What a checkpoint costs at many ranks: small manifests, one check of each file, deletion beside training; and old formats."""

from __future__ import annotations

import importlib
import json
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bellwether.trainer import checkpoint
from bellwether.trainer.checkpoint import Position
from bellwether.trainer.checkpoint.slices import SliceIndex, of_file
from bellwether.trainer.config import ConfigError
from tests.ranks import Ranks
from tests.tiers import covering
from tests.trainer import test_checkpoint as plain
from tests.trainer.runs import last, run_config, text

# Slices as (parameter, start, length, file), and what overlaps with [start, end) of "a".
ROWS = [("a", 10, 5, "y"), ("a", 0, 10, "x"), ("b", 0, 3, "x"), ("a", 15, 1, "z")]
OVERLAPS = [
    (0, 16, ["x", "y", "z"]),
    (0, 10, ["x"]),
    (9, 11, ["x", "y"]),
    (10, 15, ["y"]),
    (12, 13, ["y"]),
    (15, 16, ["z"]),
    (0, 0, []),
]


@pytest.mark.parametrize(("start", "end", "files"), OVERLAPS)
def test_slices_that_overlap_are_found(start: int, end: int, files: list[str]) -> None:
    found = [file for _, _, file in SliceIndex(ROWS).overlapping("a", start, end)]
    assert [file for file in found if file in files] == files
    assert set(found) <= {*files, "x"}  # one before the range may be named too
    assert not list(SliceIndex(ROWS).overlapping("c", 0, 1))


def test_damaged_header_is_a_config_error(tmp_path: Path) -> None:
    for content in b"", b"\xff" * 100, b"\x05\0\0\0\0\0\0\0[1,2]":
        (tmp_path / "rank-00000.safetensors").write_bytes(content)
        with pytest.raises(ConfigError, match=r"the header of rank-00000\.safetensors cannot be read"):
            of_file(tmp_path, "rank-00000.safetensors")


def _save(root: str, stage: int) -> Any:
    engine, ds_engine = plain._engine(stage)
    plain.sharded.feed(ds_engine, 0)
    checkpoint.save(Path(root), engine, Position(plain.BEFORE, 8, 0), plain._world(), keep=3, data=["d"])
    state = plain._everything(engine, ds_engine)
    engine.destroy()
    return state


def _load(root: str, stage: int) -> Any:
    engine, ds_engine = plain._engine(stage)
    path = checkpoint.newest(Path(root))
    assert path is not None
    checkpoint.load(path, engine, plain._world())
    state = plain._everything(engine, ds_engine)
    engine.destroy()
    return state


@covering(lambda version, stage: stage == 3)
@pytest.mark.parametrize("ranks", [2], indirect=True)
@pytest.mark.parametrize("stage", [1, 3])
@pytest.mark.parametrize("version", [1, 2])
def test_checkpoint_of_each_format_loads(ranks: Ranks, tmp_path: Path, version: int, stage: int) -> None:
    root = tmp_path / "checkpoints"
    saved = plain.assembled(ranks.run(_save, str(root), stage))
    path = checkpoint.newest(root)
    assert path is not None
    raw = json.loads((path / "manifest.json").read_text())
    assert raw["format"] == 2
    assert all(
        set(about) == {"bytes", "xxh3_128"} for about in raw["files"].values()
    )  # it does not grow with the slices
    if version == 1:
        for file, about in raw["files"].items():
            about["pieces"] = {}
            for name, start, length, _ in of_file(path, file):
                about["pieces"].setdefault(name, []).append([start, length])
        del raw["frozen"]
        (path / "manifest.json").write_text(json.dumps({**raw, "format": 1}))
    for to in stage, 2:  # from the own file's header, and from those of all
        loaded = plain.assembled(ranks.run(_load, str(root), to))
        for key, values in saved.items():
            assert np.array_equal(loaded[key], values), key


def _count_checks(raw: dict[str, Any]) -> list[str]:
    """Train, and return the files whose checksum this rank has computed before the first save."""
    format_ = importlib.import_module("bellwether.trainer.checkpoint.format")
    original, checked = format_.checksum, []

    def count(file: Path) -> str:
        checked.append(file.name)
        return str(original(file))

    format_.checksum = count
    try:
        run_config(raw)
    finally:
        format_.checksum = original
    return checked


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_restart_verifies_each_file_once(ranks: Ranks, workspace: Path) -> None:
    raw = text(workspace, "verified", stop_after="2 steps")
    ranks.run(run_config, raw)
    checked = ranks.run(_count_checks, {**raw, "stop_after": "3 steps"})
    assert sorted(name for names in checked for name in names) == [f"rank-{n:05d}.safetensors" for n in range(2)]
    assert last(raw).name == "step-00000003"


def test_old_checkpoints_are_deleted_beside_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = importlib.import_module("bellwether.trainer.checkpoint.save")
    may_delete, original = threading.Event(), shutil.rmtree

    def slow(path: Path, ignore_errors: bool = False) -> None:
        may_delete.wait(30)
        original(path, ignore_errors=ignore_errors)

    for step in range(1, 4):
        (tmp_path / f"step-{step:08d}").mkdir()
    monkeypatch.setattr(save.shutil, "rmtree", slow)
    began = time.monotonic()
    save._prune(tmp_path, 1)
    assert time.monotonic() - began < 10
    names = sorted(path.name for path in tmp_path.iterdir())
    assert [name.split(".")[0] for name in names] == ["step-00000001", "step-00000002", "step-00000003"]
    assert [name.endswith(".partial") for name in names] == [True, True, False]
    may_delete.set()
    deadline = time.monotonic() + 20
    while len(list(tmp_path.iterdir())) > 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]


def test_slow_deletion_of_what_a_killed_save_left_spares_the_next_save_of_that_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while it saved step 3, the run saves step 2 on a signal, and comes to step 3 before all is deleted."""
    save = importlib.import_module("bellwether.trainer.checkpoint.save")
    may_delete, deletions = threading.Event(), ThreadPoolExecutor(max_workers=1)
    monkeypatch.setattr(save, "_deletions", deletions)
    deletions.submit(may_delete.wait, 30)
    partial, final = tmp_path / "step-00000003.partial", tmp_path / "step-00000003"
    for folder in (tmp_path / "step-00000001", tmp_path / "step-00000002", partial):
        folder.mkdir()
        (folder / "rank-00000.safetensors").write_text("old")
    save._prune(tmp_path, 1)
    save._prepare(partial, final)
    (partial / "rank-00000.safetensors").write_text("new")
    may_delete.set()
    deletions.shutdown()
    assert (partial / "rank-00000.safetensors").read_text() == "new"
    partial.rename(final)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]

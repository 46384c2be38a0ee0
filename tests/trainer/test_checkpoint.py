"""Checkpoints: bit-exact at the same stage and world size, and readable at every other one."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from bellwether.trainer import checkpoint
from bellwether.trainer.checkpoint import Position
from bellwether.trainer.checkpoint.snapshot import Snapshot
from bellwether.trainer.config import ConfigError
from tests.optimizers import sharded
from tests.ranks import Ranks
from tests.tiers import covering

STAGES = [0, 1, 2, 3]
BEFORE, AFTER = 6, 5


def _engine(stage: int, **keywords: Any) -> tuple[Any, Any]:
    """Returns our engine and the DeepSpeed engine inside it."""
    from bellwether.optimizers import WarmupConstant
    from bellwether.trainer.engine import Engine

    ds_engine, optimizer = sharded.engine("lamb", {"stage": stage, "sub_group_size": 500}, clip=1.0, **keywords)
    ds_engine.module.register_buffer("statistics", torch.tensor([1.0, 2.0]) * (1 + torch.distributed.get_rank()))
    ds_engine.module.register_buffer("count", torch.tensor(7))
    return Engine(ds_engine, optimizer, WarmupConstant(optimizer, batch=1, total=1)), ds_engine


def _world() -> Any:
    from bellwether.trainer.distributed import World

    return World(torch.distributed.get_rank(), torch.distributed.get_world_size(), 0, torch.device("cpu"))


def _everything(engine: Any, ds_engine: Any) -> dict[str, Any]:
    """Weights and moments of this rank, by kind, parameter and offset; and the model's own weights."""
    found: dict[str, Any] = {}
    for shard in engine.optimizer.shards:
        state = engine.optimizer.state[shard.tensor]
        for kind, tensor in (
            ("weight", shard.tensor.detach()),
            ("exp_avg", state["exp_avg"]),
            ("exp_avg_sq", state["exp_avg_sq"]),
        ):
            for parameter_slice, view in shard.views(tensor):
                found.setdefault((kind, shard.parameters[parameter_slice.index].name), []).append(
                    (parameter_slice.start, view.numpy().copy())
                )
        found["step"] = state["step"].item()
    return {"slices": found, "model": sharded._model(ds_engine)}


def _save(root: str, stage: int) -> dict[str, Any]:
    engine, ds_engine = _engine(stage)
    for step in range(BEFORE):
        sharded.feed(ds_engine, step)
    checkpoint.save(Path(root) / str(stage), engine, Position(BEFORE, BEFORE * 8, 0), _world(), keep=3, data=["d"])
    saved = _everything(engine, ds_engine)
    for step in range(BEFORE, BEFORE + AFTER):
        sharded.feed(ds_engine, step)
    result = {"saved": saved, "end": _everything(engine, ds_engine)}
    engine.destroy()
    return result


def _load(root: str, saved_stage: int, stage: int) -> dict[str, Any]:
    engine, ds_engine = _engine(stage)
    position = checkpoint.load(checkpoint.newest(Path(root) / str(saved_stage)), engine, _world()).position  # type: ignore[arg-type]
    loaded = _everything(engine, ds_engine)
    buffers = {n: b.tolist() for n, b in engine.task.named_buffers()}
    for step in range(BEFORE, BEFORE + AFTER):
        sharded.feed(ds_engine, step)
    result = {"position": position, "loaded": loaded, "end": _everything(engine, ds_engine), "buffers": buffers}
    engine.destroy()
    return result


def assembled(results: list[dict[str, Any]]) -> dict[Any, np.ndarray]:
    whole: dict[Any, np.ndarray] = {}
    for result in results:
        for key, slices in result["slices"].items():
            if key == "step":
                continue
            name = key[1]
            flat = whole.setdefault(
                key, np.full(int(np.prod(sharded.SHAPES[name.removesuffix(".weight")])), np.nan, np.float32)
            )
            for start, values in slices:
                flat[start : start + len(values)] = values
    return whole


@pytest.fixture(scope="module")
def written(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[str, dict[int, list[dict[str, Any]]]]]:
    """A checkpoint of each stage, saved by two ranks, with their state at that step and some steps later."""
    root = str(tmp_path_factory.mktemp("checkpoints"))
    pair = Ranks(2)
    yield root, {stage: pair.run(_save, root, stage) for stage in STAGES}
    pair.close()


@covering(lambda saved_stage, stage: stage == (saved_stage + 1) % 4)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("saved_stage", STAGES)
def test_checkpoint_loads_at_any_stage_and_world_size(ranks: Ranks, written: Any, saved_stage: int, stage: int) -> None:
    root, before = written
    results = ranks.run(_load, root, saved_stage, stage)
    saved = assembled([r["saved"] for r in before[saved_stage]])
    loaded = assembled([r["loaded"] for r in results])
    assert saved.keys() == loaded.keys()
    for key, values in saved.items():
        assert np.array_equal(loaded[key], values), key
    end = before[saved_stage][0]["end"]
    for result in results:
        assert result["position"] == Position(BEFORE, BEFORE * 8, 0)
        assert result["loaded"]["slices"]["step"] == BEFORE
        same = ranks.world_size == 2 and stage == saved_stage
        for name, values in end["model"].items():
            if same:
                assert np.array_equal(result["end"]["model"][name], values), name
            else:
                np.testing.assert_allclose(result["end"]["model"][name], values, rtol=1e-5, err_msg=name)
    # At the same world size each rank gets its own running statistics back, at another one their average.
    for rank, result in enumerate(results):
        wanted = [1.0 + rank, 2.0 + 2 * rank] if ranks.world_size == 2 else [1.5, 3.0]
        assert result["buffers"] == {"statistics": wanted, "count": 7}


@pytest.fixture
def one(written: Any, tmp_path: Path) -> Path:
    found = checkpoint.newest(Path(written[0]) / "2")
    assert found is not None
    return Path(shutil.copytree(found, tmp_path / "2" / found.name))


def test_manifest_lists_position_parameters_and_files(one: Path) -> None:
    manifest = json.loads((one / "manifest.json").read_text())
    assert manifest["place"] == {"step": BEFORE, "samples": BEFORE * 8, "phase": 0}
    assert (manifest["world_size"], manifest["states"], manifest["data"]) == (2, ["exp_avg", "exp_avg_sq"], ["d"])
    assert sorted(manifest["files"]) == ["rank-00000.safetensors", "rank-00001.safetensors"]
    assert manifest["parameters"]["big.weight"] == {
        "shape": [97, 31],
        "step": BEFORE,
        "states": ["exp_avg", "exp_avg_sq"],
    }
    assert {p.suffix for p in one.iterdir()} == {".json", ".safetensors"}, "no pickle"


def _error(root: str) -> str:
    try:
        _load(root, 2, 2)
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("ranks", [2], indirect=True)
@pytest.mark.parametrize(
    ("damage", "word"),
    [("flip", "damaged"), ("cut", "damaged"), ("missing", "missing"), ("manifest", "manifest.json")],
)
def test_damaged_checkpoint_is_refused_on_all_ranks(ranks: Ranks, one: Path, damage: str, word: str) -> None:
    file = one / "rank-00001.safetensors"
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[-5] ^= 1
        file.write_bytes(content)
    elif damage == "cut":
        file.write_bytes(content[:-100])
    elif damage == "missing":
        file.unlink()
    else:
        (one / "manifest.json").write_text("{")
    for message in ranks.run(_error, str(one.parent.parent)):
        assert word in message


def _newest(root: str, rank_without_files: int | None) -> str:
    """The result of `newest_intact` where one rank cannot read the files."""
    nothing = mock.patch(
        "bellwether.trainer.checkpoint.load.damage", lambda path, manifest, names: (names[0], "is missing")
    )
    try:
        with nothing if torch.distributed.get_rank() == rank_without_files else contextlib.nullcontext():
            path, messages = checkpoint.newest_intact(Path(root), _world())
        return f"{path and path.name} {messages}"
    except (ConfigError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_node_without_the_file_system_renames_no_checkpoint(ranks: Ranks, one: Path) -> None:
    root = one.parent
    later = shutil.copytree(one, root / "step-00009999")
    for message in ranks.run(_newest, str(root), 1):
        assert re.match(r"RuntimeError: rank 1 on \S+ cannot read .*step-00009999, but rank 0 can: is missing", message)
    assert later.is_dir()
    assert one.is_dir()


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_last_checkpoint_is_never_renamed(ranks: Ranks, one: Path) -> None:
    root = one.parent
    later = shutil.copytree(one, root / "step-00009999")
    for path in (one, later):
        (path / "rank-00001.safetensors").write_bytes(b"")
    for message in ranks.run(_newest, str(root), None):
        assert message.startswith("ConfigError: resume: ")
        assert "no intact checkpoint is left: rank-00001.safetensors is damaged" in message
    assert one.is_dir()
    assert (root / "step-00009999.damaged").is_dir()


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_checkpoint_of_an_unknown_format_is_refused_and_kept(ranks: Ranks, one: Path) -> None:
    manifest = json.loads((one / "manifest.json").read_text())
    (one / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    shutil.copytree(one, one.parent / "step-00009999")
    for message in ranks.run(_newest, str(one.parent), None):
        assert "is of format 99, this version reads up to 2" in message
    assert (one.parent / "step-00009999").is_dir()


def test_partial_directory_is_not_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "step-00000012").mkdir()
    (tmp_path / "step-00000020.partial").mkdir()
    (tmp_path / "step-00000009").mkdir()
    assert checkpoint.newest(tmp_path) == tmp_path / "step-00000012"
    assert checkpoint.newest(tmp_path / "none") is None


def _save_often(root: str) -> list[str]:
    engine, ds_engine = _engine(2)
    for step in range(1, 6):
        sharded.feed(ds_engine, step)
        checkpoint.save(Path(root), engine, Position(step, step * 8, 0), _world(), keep=2, data=["d"])
    engine.destroy()
    deadline = time.monotonic() + 20  # they are deleted in the background
    while any(Path(root).glob("*.partial")) and time.monotonic() < deadline:
        time.sleep(0.01)
    return sorted(p.name for p in Path(root).iterdir())


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_newest_checkpoints_are_kept(ranks: Ranks, tmp_path: Path) -> None:
    (tmp_path / "step-00000002.partial").mkdir()
    assert ranks.run(_save_often, str(tmp_path))[0] == ["step-00000004", "step-00000005"]


def _cannot_write(root: str) -> str:
    engine, ds_engine = _engine(2)
    sharded.feed(ds_engine, 0)
    original = Snapshot.write
    if torch.distributed.get_rank() == 1:

        def full(*_: Any) -> Any:
            raise OSError("no space left on device")

        Snapshot.write = full  # type: ignore[method-assign]
    try:
        checkpoint.save(Path(root), engine, Position(1, 8, 0), _world(), keep=2, data=["d"])
    except OSError as error:
        return str(error)
    finally:
        Snapshot.write = original  # type: ignore[method-assign]
        engine.destroy()
    return ""


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_full_disk_on_one_rank_fails_on_all_and_publishes_nothing(ranks: Ranks, tmp_path: Path) -> None:
    assert ranks.run(_cannot_write, str(tmp_path)) == ["no space left on device"] * 2
    assert not list(tmp_path.iterdir()), "what was written would take the room of the next attempt"

from __future__ import annotations

import os
import signal
from contextlib import nullcontext
from pathlib import Path

import pytest

from bellwether.trainer.config.errors import ConfigError
from bellwether.trainer.data import shards


def write(task: tuple[int, str], folder: Path) -> shards.Facts:
    """Writes a number to a file, and notes that it was done; fails where it is told to."""
    number, log = task
    with open(log, "a") as file:
        file.write(f"{number}\n")
    (folder / "number").write_text(str(number))
    if Path(f"{log}.fail-{number}").exists():
        raise OSError(5, "I/O error")
    return {"number": number}


@pytest.mark.parametrize("processes", [False, pytest.param(True, marks=[pytest.mark.process, pytest.mark.full])])
def test_work_continues_where_it_was_ended(tmp_path: Path, processes: bool) -> None:
    log = tmp_path / "log"
    tasks = [(number, str(log)) for number in range(6)]
    sizes = [10**9 if processes else 1] * 6
    (tmp_path / "log.fail-3").touch()
    with pytest.raises(OSError, match="I/O error"):
        shards.run(tmp_path, tmp_path, "part", tasks, write, sizes)
    done = {int(path.name[-5:]) for path in tmp_path.glob("part-*") if "partial" not in path.name}
    assert 3 not in done
    assert not list(tmp_path.glob("*.partial-*"))
    (tmp_path / "log.fail-3").unlink()
    log.write_text("")
    shards.run(tmp_path, tmp_path, "part", tasks, write, sizes)
    found = shards.found(tmp_path, "part")
    assert [shards.facts(shard) for shard in found] == [{"number": number} for number in range(6)]
    assert {int(line) for line in log.read_text().split()} == set(range(6)) - done
    assert [(shard / "number").read_text() for shard in found] == [str(number) for number in range(6)]


def finished_by_another(task: tuple[int, str], folder: Path) -> shards.Facts:
    """Another process publishes the same shard meanwhile, as one that a killed command has left."""
    other = folder.with_name(f"part-{task[0]:05d}")
    other.mkdir()
    (other / shards.FACTS).write_text('{"number": "of the other"}')
    return {"number": task[0]}


def test_shard_that_a_killed_command_still_finishes_is_taken(tmp_path: Path) -> None:
    shards.run(tmp_path, tmp_path, "part", [(0, "")], finished_by_another, [1])
    (shard,) = shards.found(tmp_path, "part")
    assert shards.facts(shard) == {"number": "of the other"}
    assert not list(tmp_path.glob("*.partial-*"))


def killed(task: tuple[int, str, int], folder: Path) -> shards.Facts:
    """The process is killed, as where memory is short, unless that has happened often enough."""
    number, log, most = task
    with open(log, "a") as file:
        file.write(".")
    if number == 1 and len(Path(log).read_text()) < most:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"number": number}


@pytest.mark.process
@pytest.mark.full
@pytest.mark.parametrize("most, is_given_up", [(2, False), (10**9, True)])
def test_parts_of_a_killed_worker_process_are_done_again(tmp_path: Path, most: int, is_given_up: bool) -> None:
    tasks = [(number, str(tmp_path / "log"), most if number == 1 else 0) for number in range(4)]
    with (
        pytest.raises(ConfigError, match="were killed 3 times, as where memory is short")
        if is_given_up
        else nullcontext()
    ):
        shards.run(tmp_path, tmp_path, "part", tasks, killed, [10**9] * 4)
    if not is_given_up:
        assert [shards.facts(shard)["number"] for shard in shards.found(tmp_path, "part")] == [0, 1, 2, 3]

"""The number of processes that accelerate starts, and the command line that it is read from."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import psutil
import pytest
import torch
from accelerate.commands import config as accelerate_config

from bellwether.trainer import config as c
from bellwether.trainer.accelerated.contradictions import check, contradictions
from bellwether.trainer.accelerated.launch import AccelerateSetting, find, processes, read
from bellwether.trainer.distributed import World
from tests.launcher.accelerated import launched_by_accelerate, quick, refusals
from tests.launcher.processes import ROOT

FILES = sorted((ROOT / "configs/accelerate").glob("*.yaml"))


@pytest.mark.parametrize(
    ("words", "file", "world_size", "device", "expected"),
    [
        (("--cpu", "--num_processes", "4"), "", 1, "cpu", "--num_processes: 4: accelerate has started 1 process,"),
        (("--cpu", "--num_processes", "4"), "", 1, "cpu", "cpu-2.yaml --num_processes 4 -m trainer"),
        ((), "{distributed_type: MULTI_CPU, use_cpu: true, num_processes: 2}", 1, "cpu", "FILE: num_processes: 2: "),
        ((), "{distributed_type: MULTI_GPU, num_processes: '2'}", 1, "cuda", "FILE: num_processes: 2: "),
        (("--num_processes", "4"), "{distributed_type: 'NO'}", 1, "cuda", "add --multi_gpu"),
        (("--cpu", "--num_machines", "2", "--main_process_ip", "10.0.0.1"), "", 1, "cpu",
         "--num_machines: 2: accelerate has started 1 process, as it does without --multi_gpu; "
         "add --multi_gpu, and --num_processes"),
        (("--multi_gpu", "--num_processes", "9", "--num_machines", "2", "--machine_rank", "1"), "", 8, "cuda",
         "accelerate has started 8 processes, as many on each of 2 machines; write a multiple of 2"),
        # mpirun started several accelerate commands, each of which starts one process.
        (("--cpu", "--num_processes", "2"), "", 4, "cpu", "--num_processes: 2: accelerate has started 4 processes"),
        (("--cpu", "--num_processes", "2"), "", 2, "cpu", None),
        ((), "{distributed_type: 'NO'}", 2, "cpu", None),
        (("--cpu",), "", 2, "cpu", None),
    ],
)  # fmt: skip
def test_unexpected_number_of_processes_is_refused(
    tmp_path: Path, words: tuple[str, ...], file: str, world_size: int, device: str, expected: str | None
) -> None:
    path = tmp_path / "accelerate.yaml"
    path.write_text(file)
    named = ("--config_file", str(path)) if file else ()
    found = refusals(quick(tmp_path), *named, *words, world_size=world_size, device=device)
    if expected is None:
        assert found == []
    else:
        assert len([line for line in found if "accelerate has started" in line]) == 1
        assert expected.replace("FILE", str(path)) in found[0]


def test_every_spelling_of_accelerate_launch_is_parsed_and_other_programs_are_not() -> None:
    given = ["--num-processes=2", "-m", "trainer", "c.yaml", "name=x"]
    own = ["python3", "-u", "-m", "trainer", "c.yaml", "name=x"]
    for words in (
        ["python3", "/venv/bin/accelerate", "launch"],
        ["accelerate-launch"],
        ["python3", "-m", "accelerate.commands.launch"],
        ["python3", "-X", "dev", "-m", "accelerate.commands.accelerate_cli", "launch"],
    ):
        found = read([*words, *given], own)
        assert found is not None, words
        assert found.typed["num_processes"] == 2
    assert read(["accelerate", "config"], own) is None
    assert read(["torchrun", *given], own) is None
    # accelerate launched another program here, and that one started this process.
    assert read(["accelerate", "launch", "--num_processes", "2", "-m", "sweep", "c.yaml"], own) is None


def test_unreadable_parent_processes_and_files_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    class Parent:
        def __init__(self, *words: str) -> None:
            self.words = words

        def cmdline(self) -> tuple[str, ...]:
            if not self.words:
                raise psutil.AccessDenied
            return self.words

    def parents(*found: Parent) -> None:
        monkeypatch.setattr(psutil.Process, "parents", lambda _: found)

    monkeypatch.setattr(sys, "orig_argv", ["python3", "-m", "trainer", "c.yaml"])
    launched = ("accelerate", "launch", "--cpu", "--num_processes", "2", "-m", "trainer", "c.yaml")
    parents(Parent("bash"), Parent(*launched))
    found = find()
    assert found is not None
    assert processes(found) == AccelerateSetting("--num_processes", 2, "accelerate launch")
    parents(Parent(), Parent(*launched))
    assert find() is None
    parents(Parent("accelerate", "launch", "--config_file", "nothing.yaml", *launched[-3:]))
    assert find() is None
    parents(Parent("accelerate", "launch", "--an_option_of_the_future", "2", *launched[-3:]))
    assert find() is None


def test_parent_processes_are_read_only_under_accelerate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    monkeypatch.setattr("bellwether.trainer.accelerated.contradictions.find", lambda: reads.append("here"))
    world, config = World(0, 1, 0, torch.device("cpu")), quick(tmp_path)
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    check(config, world)
    assert reads == []
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(c.ConfigErrors, match=r"engine\.precision: fp32"):
        check(config, world)
    assert reads == ["here"]
    monkeypatch.setenv("BELLWETHER_WORLD_SIZE", "1")
    check(config, world)
    assert reads == ["here"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_shipped_files_start_their_processes_and_agree_with_their_recipe(path: Path) -> None:
    found = re.search(r"#   command   accelerate launch --config_file (\S+)(.*) -m trainer (\S+)\n", path.read_text())
    assert found, "the header has no command"
    assert ROOT / found[1] == path
    recipe = c.load(ROOT / found[3])
    # The second of two machines: accelerate opens no port there.
    words = ("--config_file", str(path), *found[2].replace("--machine_rank 0", "--machine_rank 1").split())
    environment, launched, count = launched_by_accelerate(*words, script=found[3])
    requested = processes(launched)
    assert requested is not None
    assert requested.value == count == accelerate_config.load_config_from_file(str(path)).num_processes
    assert launched.path == str(path)
    device = "cpu" if launched.file["use_cpu"] else "cuda"
    assert contradictions(recipe, count, device, environment, launched) == []
    assert [error.key for error in contradictions(recipe, count - 1, device, {}, launched)] == ["num_processes"]

"""One run that is attacked, killed, interrupted and preempted in turn, and ends in the bits of a run that nothing disturbs.

A start takes longer than all that happens to a run here, so the tests of this file look at the parts of one story.
"""

from __future__ import annotations

import ipaddress
import json
import os
import pickle
import re
import signal
import subprocess
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from torch.distributed import TCPStore

from bellwether.cli import main
from bellwether.trainer.goodput import PARTS
from tests.launcher.processes import finish, listening_sockets, ranks_of, start, steps, wait_for_step

NAME = "story"
# A collective of Python objects unpickles what another rank sent.
NO_PICKLE = """
import os
if "RANK" in os.environ:
    import torch.distributed.distributed_c10d as c10d
    def refuse(*_):
        raise AssertionError("an object collective unpickles what another rank sent")
    c10d._tensor_to_object = refuse
"""


class Payload:
    """Makes a file where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.mark,)


@dataclass
class Part:
    """A launch of the run and its end.

    Attributes:
        last: the last logged step.
        checkpoints: those that it has left.
        alive: processes of its ranks that the launcher has left behind.
    """

    status: int
    out: str
    error: str
    last: int
    checkpoints: list[str]
    alive: list[psutil.Process] = field(default_factory=list)


@dataclass
class Story:
    """What was seen of the run, and of a run that nothing has disturbed."""

    space: Path
    processes: list[str] = field(default_factory=list)  # command lines
    sockets: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    mark: Path = Path()
    second: tuple[int, str, str] = (0, "", "")  # another process for the same run
    killed: Part = field(init=False)
    lost_a_rank: Part = field(init=False)
    interrupted: Part = field(init=False)
    preempted: Part = field(init=False)
    followed: tuple[int, str, str] = (0, "", "")  # by `bellwether logs -f`
    ended: Part = field(init=False)
    whole: Part = field(init=False)

    def launch(self, *arguments: str, name: str = NAME, **environment: str) -> subprocess.Popen[str]:
        overrides = (f"name={name}", "engine.heartbeat=6", "checkpoint.every=10 steps", *arguments)
        return start(self.space, "bellwether", "train", "long.yaml", "--nproc", "2", *overrides, **environment)

    def end(self, process: subprocess.Popen[str], name: str = NAME) -> Part:
        ended = finish(process, 240)
        checkpoints = sorted(path.name for path in (self.space / "runs" / name / "checkpoints").glob("step-*"))
        return Part(*ended, max(steps(self.space, name)), checkpoints)

    def further(self, process: subprocess.Popen[str], count: int) -> dict[int, psutil.Process]:
        """Wait until the run is ``count`` steps further than it has ever been; returns its ranks."""
        wait_for_step(process, self.space, NAME, max(steps(self.space, NAME), default=0) + count)
        return ranks_of(process)


@pytest.fixture(scope="module")
def story(space: Path, tmp_path_factory: pytest.TempPathFactory) -> Story:
    told = Story(space)
    attacked_and_killed(told, tmp_path_factory.mktemp("stranger"))
    process = told.launch()
    ranks = told.further(process, 3)
    ranks[1].kill()
    told.lost_a_rank = left_by(ranks, told.end(process))
    process = told.launch()
    ranks = told.further(process, 7)
    os.killpg(process.pid, signal.SIGINT)
    told.interrupted = left_by(ranks, told.end(process))
    process = told.launch()
    told.further(process, 3)
    process.send_signal(signal.SIGTERM)
    told.preempted = told.end(process)
    last = told.preempted.last + 20
    process = told.launch(f"stop_after={last} steps")
    told.further(process, 1)
    told.followed = finish(start(space, "bellwether", "logs", f"runs/{NAME}", "-f"))
    told.ended = told.end(process)
    told.whole = told.end(told.launch(f"stop_after={last} steps", "log.every=1000 steps", name="whole"), "whole")
    return told


def attacked_and_killed(told: Story, folder: Path) -> None:
    """A stranger writes into the store of the run; another process wants to train it; the launcher is killed."""
    (folder / "sitecustomize.py").write_text(NO_PICKLE)
    # The variables of a cluster, as in a user's .bashrc, do not apply to one machine.
    interface = next(name for name in psutil.net_if_addrs() if name != "lo")
    process = told.launch(
        "data.workers=1", GLOO_SOCKET_IFNAME=interface, NCCL_SOCKET_IFNAME=interface, PYTHONPATH=str(folder)
    )
    ranks = told.further(process, 3)
    told.processes = [" ".join(child.cmdline()) for child in psutil.Process(process.pid).children(recursive=True)]
    told.sockets = listening_sockets(process.pid)
    told.mark = folder / "code was run"
    flood(told, process, ranks)
    told.second = finish(start(told.space, "bellwether.trainer", "long.yaml", f"name={NAME}"))
    process.kill()
    told.killed = left_by(ranks, told.end(process))


def left_by(ranks: dict[int, psutil.Process], part: Part) -> Part:
    part.alive = psutil.wait_procs(ranks.values(), timeout=90)[1]
    return part


def flood(told: Story, process: subprocess.Popen[str], ranks: dict[int, psutil.Process]) -> None:
    """Overwrite all that the run keeps in its store with a pickle that makes a file, and delete it."""
    (port,) = {rank.environ()["MASTER_PORT"] for rank in ranks.values()}
    stranger = TCPStore("127.0.0.1", int(port), is_master=False, wait_for_workers=False, timeout=timedelta(seconds=5))
    payload = pickle.dumps(Payload(told.mark))
    keys = stranger.list_keys()
    assert keys
    for _ in range(3):
        for key in {*keys, *(key.rpartition("/")[0] + "/failed" for key in keys)}:
            stranger.set(key, payload)
        told.further(process, 10)
    for key in keys:
        stranger.delete_key(key)
    told.further(process, 10)


@pytest.mark.process
def test_nothing_listens_beyond_loopback(story: Story) -> None:
    assert any("forkserver" in line for line in story.processes), story.processes  # the data workers
    assert len(story.sockets["tcp"]) >= 3, "the store, and gloo in each rank"
    for kind in ("tcp", "udp"):
        for address, port in story.sockets[kind]:
            assert ipaddress.ip_address(address).is_loopback, f"{kind} {address}:{port}"
    # Every user of the machine can connect to a socket whose address is not a file.
    assert story.sockets["abstract"] == []


@pytest.mark.process
def test_stranger_in_the_store_neither_runs_code_nor_ends_the_run(story: Story) -> None:
    assert not story.mark.exists()
    assert story.killed.last > 40  # it went on after each time, until it was killed


@pytest.mark.process
def test_second_process_is_refused_while_a_run_trains(story: Story) -> None:
    status, _, error = story.second
    assert status == 2
    assert "another process trains in" in error


@pytest.mark.process
def test_ranks_exit_when_the_launcher_is_killed(story: Story) -> None:
    assert story.killed.status == -signal.SIGKILL
    assert story.killed.alive == []


@pytest.mark.process
def test_killed_rank_ends_the_run(story: Story) -> None:
    assert story.lost_a_rank.status == 1
    assert "rank 1 was killed by SIGKILL" in story.lost_a_rank.error
    assert story.lost_a_rank.alive == []


@pytest.mark.process
def test_ctrl_c_ends_all_ranks_and_the_same_command_resumes(story: Story) -> None:
    assert story.interrupted.status == 130
    assert "resumes from the newest checkpoint" in story.interrupted.error
    assert "Traceback" not in story.interrupted.error, story.interrupted.error
    assert story.interrupted.alive == []
    resumed = re.search(r"resuming at step (\d+)", story.preempted.error)
    assert resumed, story.preempted.error
    assert story.interrupted.last - 10 <= int(resumed[1]) <= story.interrupted.last


@pytest.mark.process
def test_preempted_run_saves_at_the_next_step(story: Story) -> None:
    assert story.preempted.status == 75, story.preempted.error
    stopped = re.search(r"stopped by SIGTERM at step (\d+)", story.preempted.error)
    assert stopped, story.preempted.error
    assert int(stopped[1]) == story.preempted.last
    assert story.preempted.checkpoints[-1] == f"step-{int(stopped[1]):08d}"
    assert f"resuming at step {int(stopped[1])}" in story.ended.error


@pytest.mark.process
def test_interrupted_run_ends_in_the_bits_of_an_undisturbed_one(story: Story) -> None:
    assert (story.ended.status, story.whole.status) == (0, 0), (story.ended.error, story.whole.error)
    assert story.ended.last == story.preempted.last + 20
    checkpoints = [story.space / f"runs/{run}/checkpoints/step-{story.ended.last:08d}" for run in (NAME, "whole")]
    files = sorted(path.name for path in checkpoints[0].glob("*.safetensors"))
    assert files
    for file in files:
        assert (checkpoints[0] / file).read_bytes() == (checkpoints[1] / file).read_bytes(), file
    assert steps(story.space, NAME) == list(range(1, story.ended.last + 1))


@pytest.mark.process
def test_logs_are_followed_to_the_end_and_keep_restarts(story: Story) -> None:
    status, followed, error = story.followed
    assert status == 0, error
    assert f"plan of {NAME}" in followed
    assert re.search(r"^step +2/100000 .* loss ", followed, re.M), followed
    assert story.ended.out in followed  # the summary
    status, out, error = finish(start(story.space, "bellwether", "logs", f"runs/{NAME}"))
    assert status == 0, error
    assert out == followed
    assert len(re.findall(r"^--- .* process \d+ on ", out, re.M)) == 5


@pytest.mark.process
def test_status_accounts_for_the_time_of_all_launches(story: Story, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--json", str(story.space / "runs" / NAME)]) == 0
    numbers: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert sum(numbers["shares"].values()) == pytest.approx(1)
    assert set(numbers["seconds"]) == set(PARTS)
    for part in ("training", "redoing lost steps", "saving", "starting", "evaluating", "unknown"):
        assert numbers["seconds"][part] > 0, numbers
    assert (numbers["failures"], numbers["launches"]) == (3, 5)

"""One run that is attacked, killed, interrupted and preempted in turn, and ends in the bits of a run that nothing disturbs.

Starting the processes takes longer than all that happens to a run here, so the tests of this file share its launches.
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

NAME = "interrupted"
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
class Launch:
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
class Launches:
    """The launches of the run, and of a run that nothing has disturbed."""

    space: Path
    processes: list[str] = field(default_factory=list)  # command lines
    sockets: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    mark: Path = Path()
    second: tuple[int, str, str] = (0, "", "")  # another process for the same run
    killed: Launch = field(init=False)
    lost_a_rank: Launch = field(init=False)
    interrupted: Launch = field(init=False)
    preempted: Launch = field(init=False)
    followed: tuple[int, str, str] = (0, "", "")  # by `bellwether logs -f`
    ended: Launch = field(init=False)
    whole: Launch = field(init=False)

    def launch(self, *arguments: str, name: str = NAME, **environment: str) -> subprocess.Popen[str]:
        overrides = (f"name={name}", "engine.heartbeat=6", "checkpoint.every=10 steps", *arguments)
        return start(self.space, "bellwether", "train", "long.yaml", "--nproc", "2", *overrides, **environment)

    def end(self, process: subprocess.Popen[str], name: str = NAME) -> Launch:
        ended = finish(process, 240)
        checkpoints = sorted(path.name for path in (self.space / "runs" / name / "checkpoints").glob("step-*"))
        return Launch(*ended, max(steps(self.space, name)), checkpoints)

    def further(self, process: subprocess.Popen[str], count: int) -> dict[int, psutil.Process]:
        """Wait until the run is ``count`` steps further than it has ever been; returns its ranks."""
        wait_for_step(process, self.space, NAME, max(steps(self.space, NAME), default=0) + count)
        return ranks_of(process)


@pytest.fixture(scope="module")
def launches(space: Path, tmp_path_factory: pytest.TempPathFactory) -> Launches:
    launches = Launches(space)
    attacked_and_killed(launches, tmp_path_factory.mktemp("stranger"))
    process = launches.launch()
    ranks = launches.further(process, 3)
    ranks[1].kill()
    launches.lost_a_rank = left_by(ranks, launches.end(process))
    process = launches.launch()
    ranks = launches.further(process, 7)
    os.killpg(process.pid, signal.SIGINT)
    launches.interrupted = left_by(ranks, launches.end(process))
    process = launches.launch()
    launches.further(process, 3)
    process.send_signal(signal.SIGTERM)
    launches.preempted = launches.end(process)
    last = launches.preempted.last + 20
    process = launches.launch(f"stop_after={last} steps")
    launches.further(process, 1)
    launches.followed = finish(start(space, "bellwether", "logs", f"runs/{NAME}", "-f"))
    launches.ended = launches.end(process)
    launches.whole = launches.end(
        launches.launch(f"stop_after={last} steps", "log.every=1000 steps", name="whole"), "whole"
    )
    return launches


def attacked_and_killed(launches: Launches, folder: Path) -> None:
    """A stranger writes into the store of the run; another process wants to train it; the launcher is killed."""
    (folder / "sitecustomize.py").write_text(NO_PICKLE)
    # The variables of a cluster, as in a user's .bashrc, do not apply to one machine.
    interface = next(name for name in psutil.net_if_addrs() if name != "lo")
    process = launches.launch(
        "data.workers=1", GLOO_SOCKET_IFNAME=interface, NCCL_SOCKET_IFNAME=interface, PYTHONPATH=str(folder)
    )
    ranks = launches.further(process, 3)
    launches.processes = [" ".join(child.cmdline()) for child in psutil.Process(process.pid).children(recursive=True)]
    launches.sockets = listening_sockets(process.pid)
    launches.mark = folder / "code was run"
    flood(launches, process, ranks)
    launches.second = finish(start(launches.space, "bellwether.trainer", "long.yaml", f"name={NAME}"))
    process.kill()
    launches.killed = left_by(ranks, launches.end(process))


def left_by(ranks: dict[int, psutil.Process], launch: Launch) -> Launch:
    launch.alive = psutil.wait_procs(ranks.values(), timeout=90)[1]
    return launch


def flood(launches: Launches, process: subprocess.Popen[str], ranks: dict[int, psutil.Process]) -> None:
    """Overwrite all that the run keeps in its store with a pickle that makes a file, and delete it."""
    (port,) = {rank.environ()["MASTER_PORT"] for rank in ranks.values()}
    stranger = TCPStore("127.0.0.1", int(port), is_master=False, wait_for_workers=False, timeout=timedelta(seconds=5))
    payload = pickle.dumps(Payload(launches.mark))
    keys = stranger.list_keys()
    assert keys
    for _ in range(3):
        for key in {*keys, *(key.rpartition("/")[0] + "/failed" for key in keys)}:
            stranger.set(key, payload)
        launches.further(process, 10)
    for key in keys:
        stranger.delete_key(key)
    launches.further(process, 10)


@pytest.mark.process
def test_nothing_listens_beyond_loopback(launches: Launches) -> None:
    assert any("forkserver" in line for line in launches.processes), launches.processes  # the data workers
    assert len(launches.sockets["tcp"]) >= 3, "the store, and gloo in each rank"
    for kind in ("tcp", "udp"):
        for address, port in launches.sockets[kind]:
            assert ipaddress.ip_address(address).is_loopback, f"{kind} {address}:{port}"
    # Every user of the machine can connect to a socket whose address is not a file.
    assert launches.sockets["abstract"] == []


@pytest.mark.process
def test_stranger_in_the_store_neither_runs_code_nor_ends_the_run(launches: Launches) -> None:
    assert not launches.mark.exists()
    assert launches.killed.last > 40  # it went on after each time, until it was killed


@pytest.mark.process
def test_second_process_is_refused_while_a_run_trains(launches: Launches) -> None:
    status, _, error = launches.second
    assert status == 2
    assert "another process trains in" in error


@pytest.mark.process
def test_ranks_exit_when_the_launcher_is_killed(launches: Launches) -> None:
    assert launches.killed.status == -signal.SIGKILL
    assert launches.killed.alive == []


@pytest.mark.process
def test_killed_rank_ends_the_run(launches: Launches) -> None:
    assert launches.lost_a_rank.status == 1
    assert "rank 1 was killed by SIGKILL" in launches.lost_a_rank.error
    assert launches.lost_a_rank.alive == []


@pytest.mark.process
def test_ctrl_c_ends_all_ranks_and_the_same_command_resumes(launches: Launches) -> None:
    assert launches.interrupted.status == 130
    assert "resumes from the newest checkpoint" in launches.interrupted.error
    assert "Traceback" not in launches.interrupted.error, launches.interrupted.error
    assert launches.interrupted.alive == []
    resumed = re.search(r"resuming at step (\d+)", launches.preempted.error)
    assert resumed, launches.preempted.error
    assert launches.interrupted.last - 10 <= int(resumed[1]) <= launches.interrupted.last


@pytest.mark.process
def test_preempted_run_saves_at_the_next_step(launches: Launches) -> None:
    assert launches.preempted.status == 75, launches.preempted.error
    stopped = re.search(r"stopped by SIGTERM at step (\d+)", launches.preempted.error)
    assert stopped, launches.preempted.error
    assert int(stopped[1]) == launches.preempted.last
    assert launches.preempted.checkpoints[-1] == f"step-{int(stopped[1]):08d}"
    assert f"resuming at step {int(stopped[1])}" in launches.ended.error


@pytest.mark.process
def test_interrupted_run_ends_in_the_bits_of_an_undisturbed_one(launches: Launches) -> None:
    assert (launches.ended.status, launches.whole.status) == (0, 0), (launches.ended.error, launches.whole.error)
    assert launches.ended.last == launches.preempted.last + 20
    checkpoints = [launches.space / f"runs/{run}/checkpoints/step-{launches.ended.last:08d}" for run in (NAME, "whole")]
    files = sorted(path.name for path in checkpoints[0].glob("*.safetensors"))
    assert files
    for file in files:
        assert (checkpoints[0] / file).read_bytes() == (checkpoints[1] / file).read_bytes(), file
    assert steps(launches.space, NAME) == list(range(1, launches.ended.last + 1))


@pytest.mark.process
def test_logs_are_followed_to_the_end_and_keep_restarts(launches: Launches) -> None:
    status, followed, error = launches.followed
    assert status == 0, error
    assert f"plan of {NAME}" in followed
    assert re.search(r"^step +2/100000 .* loss ", followed, re.M), followed
    assert launches.ended.out in followed  # the summary
    status, out, error = finish(start(launches.space, "bellwether", "logs", f"runs/{NAME}"))
    assert status == 0, error
    assert out == followed
    assert len(re.findall(r"^--- .* process \d+ on ", out, re.M)) == 5


@pytest.mark.process
def test_status_accounts_for_the_time_of_all_launches(launches: Launches, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--json", str(launches.space / "runs" / NAME)]) == 0
    numbers: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert sum(numbers["shares"].values()) == pytest.approx(1)
    assert set(numbers["seconds"]) == set(PARTS)
    for part in ("training", "redoing lost steps", "saving", "starting", "evaluating", "unknown"):
        assert numbers["seconds"][part] > 0, numbers
    assert (numbers["failures"], numbers["launches"]) == (3, 5)

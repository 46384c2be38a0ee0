from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster import machine
from tests.cluster.machine import Cluster
from tests.precision import subprocess_path

ROOT = Path(__file__).parents[2]
TRAIN = str(ROOT / "slurm" / "train.sbatch")
# One rank per node starts fastest. --gpus-per-node counts device files that are never opened.
ONE_EACH = ("--ntasks-per-node=1", "--gpus-per-node=1", "--cpus-per-task=1")

STEPS = 60
CONFIG = """
name: base
duration: {steps} steps
model: {{kind: cifar-resnet, depth: 8}}
data: {{kind: images, size: 8, mean: [0.3], std: [0.3], workers: 0, cache: {folder}/cache}}
batch: {{global: 16, micro: 8}}
optimizer: {{lr: 1e-2}}
log: {{every: 1 steps, trackers: [], report: false}}
evaluate: {{limit: 16}}
engine: {{device: cpu, heartbeat: 60}}
"""

# Slows steps down (TEST_STEP seconds each, TEST_FIRST_STEP until the run is resumed), waits in the fourth step while a file exists
# (TEST_HOLD), and fails at a given step (TEST_FAIL), on the last rank or a host (TEST_FAIL_ON).
SITE = """
import os, sys
if "-m" in sys.orig_argv and "bellwether.trainer" in sys.orig_argv:
    import time
    from bellwether.trainer.engine import Engine
    original = Engine.train_step
    def train_step(self, *arguments, fresh=[]):
        result = original(self, *arguments)
        fresh.append(self.schedule.last_epoch <= 1)
        first = os.environ.get("TEST_FIRST_STEP", "0") if fresh[0] else "0"
        time.sleep(float(os.environ.get("TEST_STEP", first)))
        while self.schedule.last_epoch > 3 and os.path.exists(os.environ.get("TEST_HOLD", "")):
            time.sleep(0.05)
        at = os.environ.get("TEST_FAIL", "")
        last = int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1
        if "TEST_FAIL_ON" in os.environ:
            last = os.uname().nodename == os.environ["TEST_FAIL_ON"]
        if at and last and self.schedule.last_epoch >= int(at):
            raise RuntimeError("the test wants this rank to fail")
        return result
    Engine.train_step = train_step
"""


@dataclass
class Space:
    """A working directory on the shared file system, with runs/ and logs/ in it."""

    folder: Path

    def environment(self, **more: str) -> dict[str, str]:
        path = subprocess_path(self.folder, ROOT)
        return {"PYTHONPATH": path, "BELLWETHER_VENV": sys.prefix, "OMP_NUM_THREADS": "1", **more}

    def run(self, name: str) -> Path:
        return self.folder / "runs" / name

    def events(self, name: str, event: str) -> list[dict[str, object]]:
        file = self.run(name) / "metrics.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        return [line for text in lines if (line := json.loads(text))["event"] == event]

    def step(self, name: str) -> int:
        """The last logged step of a run."""
        last = 0
        for event in ("start", "train"):
            last = max([last, *(int(str(line["step"])) for line in self.events(name, event))])
        return last

    def attempts(self, name: str) -> list[dict[str, object]]:
        file = self.run(name) / "logs/attempts.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def begins(self, name: str) -> list[dict[str, object]]:
        return [line for line in self.attempts(name) if line["event"] == "begin"]

    def starts(self, name: str) -> list[tuple[str, bool]]:
        """Job of each attempt, and whether the job had been requeued before it.

        Not how often: `scontrol update` may come after SLURM has given the job the excluded node once more, and the script then
        requeues it again, without an attempt. A real cluster waits two minutes before it starts a requeued job, this one 5 s.
        """
        return [(str(begin["job"]), bool(begin["restart"])) for begin in self.begins(name)]

    def output(self, job: int) -> str:
        """The output of a job: its own log, and those of ranks 0 and 1."""
        files = [*self.folder.glob(f"*-{job}.log"), *(self.folder / "logs").glob(f"{job}/rank[01].log")]
        return "\n".join(f"--- {file.name}\n{file.read_text()[-40000:]}" for file in files)

    def weights(self, name: str) -> bytes:
        return (self.run(name) / "export/model.safetensors").read_bytes()


@pytest.fixture(scope="session")
def space(tmp_path_factory: pytest.TempPathFactory) -> Space:
    folder = tmp_path_factory.mktemp("cluster")
    (folder / "quick.yaml").write_text(CONFIG.format(folder=folder, steps=STEPS))
    (folder / "sitecustomize.py").write_text(SITE)
    return Space(folder)


@pytest.fixture(scope="session")
def two() -> Iterator[Cluster]:
    """A SLURM cluster of two nodes."""
    yield from _cluster(2)


@pytest.fixture(scope="session")
def three() -> Iterator[Cluster]:
    """A SLURM cluster of three nodes."""
    yield from _cluster(3)


def _cluster(size: int) -> Iterator[Cluster]:
    reason = machine.missing()
    if reason is not None:
        pytest.skip(f"no cluster here: {reason}")
    with machine.cluster(size) as cluster:
        yield cluster


def bellwether(cluster: Cluster, space: Space, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``bellwether`` on the cluster's login node."""
    return subprocess.run(
        [sys.executable, "-m", "bellwether", *arguments], cwd=space.folder, capture_output=True, text=True, timeout=600,
        env={**cluster.environment, **space.environment(**environment)},
    )  # fmt: skip


def ranks(cluster: Cluster, name: str) -> dict[str, list[int]]:
    """The processes of a run's ranks by node; pids of this machine."""
    found = {node: cluster.processes(node, ["-m bellwether.trainer", f"name={name}"]) for node in cluster.names}
    return {node: [pid for pid in pids if "RANK" in environment_of(pid) or "SLURM_STEP_ID" in environment_of(pid)]
            for node, pids in found.items()}  # fmt: skip


def environment_of(pid: int) -> dict[str, str]:
    """The environment with which a process was started."""
    try:
        text = Path(f"/proc/{pid}/environ").read_bytes().decode()
    except OSError:
        return {}
    return dict(line.partition("=")[::2] for line in text.split("\0") if line)


def command_lines() -> str:
    """The command lines of all processes of this machine, as ps shows them to every user."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(file.read_bytes().decode(errors="replace").replace("\0", " "))
    return "\n".join(found)


def listening(pid: int) -> set[str]:
    """The addresses on which a process listens, which may be in a network namespace of its own."""
    own = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            own.add(os.readlink(fd))
    found = set()
    for file in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{file}").read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == "0A" and f"socket:[{rest[5]}]" in own:
                words = bytes.fromhex(local.partition(":")[0])
                order = b"".join(words[n : n + 4][::-1] for n in range(0, len(words), 4))
                found.add(socket.inet_ntop(socket.AF_INET if file == "tcp" else socket.AF_INET6, order))
    return found


_UNFINISHED = ("PENDING", "RUNNING", "COMPLETING", "REQUEUED", "CONFIGURING", "SUSPENDED", "RESIZING", "STOPPED")


def wait_for_step(
    cluster: Cluster, space: Space, name: str, step: int, seconds: float = 600, process: subprocess.Popen[str] | None = None
) -> None:  # fmt: skip
    """Wait until a run has come to a step; fail with the end of its output as soon as its jobs, or the process, have ended.

    Args:
        process: that has started the run, where that is no job.
    """
    deadline, looked, ended = time.monotonic() + seconds, time.monotonic(), 0
    while space.step(name) < step:
        assert time.monotonic() < deadline, f"{name} did not reach step {step}\n{cluster.logs()}"
        assert process is None or process.poll() is None, (
            f"ended before step {step}: {process.communicate()[0][-4000:]}"
        )
        if process is None and time.monotonic() - looked > 2:
            jobs, looked = jobs_of(cluster, name), time.monotonic()
            # Twice: SLURM may be about to requeue one.
            ended = ended + 1 if jobs and not set(jobs.values()) & set(_UNFINISHED) else 0
            output = "\n".join(space.output(job)[-4000:] for job in jobs)
            assert ended < 2, f"{name} ended before step {step}: {jobs}\n{output}"
        time.sleep(0.2)


def jobs_of(cluster: Cluster, name: str) -> dict[int, str]:
    """The states of the jobs of a run that SLURM remembers."""
    shown = re.split(r"\n(?=JobId=)", cluster.run("scontrol", "show", "job", "-o", check=False))
    own = (line for line in shown if re.search(rf" name={name}(\s|$)", line) or re.search(rf" JobName={name} ", line))
    return {int(line.split()[0].removeprefix("JobId=")): re.findall(r" JobState=(\S+)", line)[0] for line in own}

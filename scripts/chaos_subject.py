"""The run that `scripts.chaos` disturbs: a small one of two ranks, its launches, and the comparison of its end with another."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from safetensors import safe_open

from scripts.chaos_nodes import ADDRESSES

ROOT = Path(__file__).resolve().parents[1]
RANKS = 2
CONFIG = """
name: undisturbed
runs: {disk}/runs
duration: 120 steps
model: {{kind: cifar-resnet, depth: 8}}
data: {{kind: images, size: 8, mean: [0.3], std: [0.3], workers: 1, cache: {disk}/cache}}
batch: {{global: 8, micro: 4}}
optimizer: {{lr: 1e-2}}
log: {{every: 1 steps, trackers: [], report: false}}
evaluate: {{limit: 16, every: 40 steps}}
checkpoint: {{every: 5 steps, keep: 3}}
engine: {{stage: 2, device: cpu, heartbeat: 5}}
"""
# As `bellwether launch --on ssh`, without the doctor, to whom the small disk has too little room.
_SSH = "import sys; from bellwether.launcher.ssh import train; sys.exit(train(sys.argv[1:3], 1, sys.argv[3:], False))"
_SAME = {
    "train": ("loss", "lr", "grad_norm", "samples", "trust_ratio"),
    "eval": ("loss", "accuracy", "examples"),
    "checkpoint": ("samples", "path"),
}


@dataclass
class Launch:
    """One launch of a run, and its processes."""

    process: subprocess.Popen[bytes]
    mode: str  # "local", "clock": with a clock that can be moved, or "nodes"
    started: float = field(default_factory=time.monotonic)
    seen: dict[int, psutil.Process] = field(default_factory=dict)

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def processes(self) -> list[psutil.Process]:
        """The launcher and all processes below it that are alive."""
        try:
            own = psutil.Process(self.process.pid)
            self.seen |= {process.pid: process for process in [own, *own.children(recursive=True)]}
        except psutil.NoSuchProcess:
            pass
        return [process for process in self.seen.values() if _alive(process)]

    def ranks(self) -> list[psutil.Process]:
        """The ranks, in order."""
        found = {}
        for process in self.processes():
            try:
                words, rank, parent = process.cmdline(), process.environ().get("RANK"), process.parent()
                if "bellwether.trainer" in words and rank and (parent is None or parent.environ().get("RANK") is None):
                    found[int(rank)] = process
            except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
                continue
        return [found[rank] for rank in sorted(found)]

    def workers(self) -> list[psutil.Process]:
        """The data workers of all ranks."""
        found = []
        for rank in self.ranks():
            try:
                found += [child for child in rank.children() if "resource_tracker" not in " ".join(child.cmdline())]
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
        return found

    def kill(self) -> None:
        """Kill all processes at once, as a power failure does."""
        processes = self.processes()
        for process in processes:
            try:
                process.send_signal(signal.SIGSTOP)  # none may notice that another is gone
            except psutil.NoSuchProcess:
                continue
        for process in processes:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue

    def wait(self, seconds: float) -> bool:
        """Wait until all processes have ended; returns whether they have."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if not self.running and not self.processes():
                return True
            time.sleep(0.1)
        return False


class Subject:
    """A run of `CONFIG` under some name.

    Args:
        folder: working directory, which holds the config and the launches' output.
        disk: directory of runs and cache.
    """

    def __init__(self, folder: Path, disk: Path, name: str) -> None:
        self.folder, self.name, self.run = folder, name, disk / "runs" / name
        self.config = folder / "chaos.yaml"
        self.config.write_text(CONFIG.format(disk=disk))
        self.clock = folder / "clock"
        self.output = folder / f"{name}.log"

    def launch(self, mode: str, clock: Path | None = None) -> Launch:
        """Start or resume the run."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        command = ["-m", "bellwether", "train", str(self.config), "--nproc", str(RANKS), f"name={self.name}"]
        if mode == "nodes":
            command = ["-c", _SSH, *ADDRESSES, str(self.config), f"name={self.name}"]
            environment["BELLWETHER_SSH"] = str(self.folder / "ssh")
        elif mode == "clock":
            self.clock.write_bytes(struct.pack("@l", 0))
            environment |= {"LD_PRELOAD": str(clock), "CHAOS_CLOCK": str(self.clock)}
        with open(self.output, "ab") as out:
            out.write(f"--- launch, {mode}, {time.strftime('%F %T')}\n".encode())
            out.flush()
            process = subprocess.Popen(
                [sys.executable, *command], cwd=self.folder, env=environment,
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip
        return Launch(process, mode)

    @property
    def step(self) -> int:
        """The last step in metrics.jsonl."""
        try:
            with open(self.run / "metrics.jsonl", "rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
                lines = file.read().splitlines()
        except OSError:
            return 0
        for raw in reversed(lines):
            try:
                line = json.loads(raw)
            except ValueError:
                continue
            if isinstance(line, dict) and line.get("event") == "train":
                return int(line["step"])
        return 0

    @property
    def finished(self) -> bool:
        return (self.run / "finished.json").is_file()

    @property
    def saving(self) -> bool:
        """Whether a checkpoint is being written, or old ones are being deleted."""
        return any((self.run / "checkpoints").glob("*.partial"))

    def checkpoints(self) -> list[Path]:
        """The published checkpoints, oldest first."""
        return sorted(p for p in (self.run / "checkpoints").glob("step-*") if p.suffix == "")


def differences(run: Subject, reference: Subject) -> list[str]:
    """How the end of a run differs from that of an undisturbed one: weights, optimizer state, export and metrics, bit by bit."""
    found = []
    ours, theirs = run.checkpoints(), reference.checkpoints()
    if [path.name for path in ours[-1:]] != [path.name for path in theirs[-1:]]:
        return [f"the last checkpoint is {ours[-1:]}, not {theirs[-1:]}"]
    for file in sorted(theirs[-1].glob("*.safetensors")):
        found += _tensor_differences(ours[-1] / file.name, file)
    found += _tensor_differences(run.run / "export/model.safetensors", reference.run / "export/model.safetensors")
    lines, expected = _lines(run.run), _lines(reference.run)
    for event, keys in _SAME.items():
        got = [line for line in lines if line["event"] == event]
        want = [line for line in expected if line["event"] == event]
        steps = [line["step"] for line in got]
        # A checkpoint's line may be lost together with the process, the checkpoint is not.
        if event != "checkpoint" and steps != [line["step"] for line in want]:
            twice = sorted({step for step in steps if steps.count(step) > 1})
            missing = sorted({line["step"] for line in want} - set(steps))
            found.append(f"metrics.jsonl: {event} lines twice at steps {twice}, missing at {missing}")
        by_step = {line["step"]: line for line in want}
        if event == "checkpoint":  # a signal makes one of its own
            got = [line for line in got if line["step"] in by_step]
        wrong = [g["step"] for g in got if any(g.get(k) != by_step.get(g["step"], {}).get(k) for k in keys)]
        if wrong:
            found.append(f"metrics.jsonl: {event} lines differ at steps {wrong}")
    return found


def _tensor_differences(ours: Path, theirs: Path) -> list[str]:
    if not ours.is_file():
        return [f"{ours} is missing"]
    with safe_open(ours, framework="np") as a, safe_open(theirs, framework="np") as b:
        names, others = set(a.keys()), set(b.keys())
        if names != others:
            return [f"{ours}: other tensors"]
        wrong = [name for name in sorted(names) if a.get_tensor(name).tobytes() != b.get_tensor(name).tobytes()]
    return [f"{ours}: {len(wrong)} of {len(names)} tensors differ, first {wrong[0]}"] if wrong else []


def _lines(run: Path) -> list[dict[str, Any]]:
    lines = []
    for raw in (run / "metrics.jsonl").read_bytes().splitlines():
        try:
            line = json.loads(raw)
        except ValueError:
            continue  # cut by a kill; its step is logged again
        if isinstance(line, dict) and "event" in line:
            lines.append(line)
    return lines


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False

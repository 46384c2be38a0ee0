"""Runs the commands that start the nodes' probes, collects the answers, and ends the commands in time."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO

from bellwether.launcher.doctor.protocol import PREFIX, Facts, parse

log = logging.getLogger(__name__)

_REMIND = 15.0  # seconds between messages about nodes that have not answered
_GRACE = 10.0  # seconds that srun and mpirun have to end their tasks
_NOISE = re.compile(r"\[[IW]\d{4} ")  # torch's info and warning lines
_ERROR_LENGTH = 400  # characters of a launcher's last output


@dataclass
class Answers:
    """What the nodes reported, and what their launchers printed."""

    nodes: list[Facts] = field(default_factory=list)
    cluster: Facts | None = None
    failures: list[Facts] = field(default_factory=list)
    launcher_errors: list[tuple[str, str]] = field(default_factory=list)  # (launcher or host, exit status and stderr)

    def add(self, facts: Facts) -> None:
        if facts["kind"] == "node":
            self.nodes.append(facts)
        elif facts["kind"] == "cluster":
            self.cluster = facts
        else:
            self.failures.append(facts)


@dataclass
class _Child:
    """A running command, with threads that read its output."""

    process: subprocess.Popen[str]
    errors: list[str]  # non-empty lines of its standard error
    readers: list[threading.Thread]


def gather(
    commands: Mapping[str, Sequence[str]],
    environment: Mapping[str, str],
    size: int,
    seconds: float,
    stdin: bytes = b"",
) -> Answers:
    """Run all commands at once, and collect what the nodes report.

    Args:
        commands: by the launcher or host that each one starts nodes on.
        size: number of nodes that answer through them.
        seconds: after which commands that still run are ended.
        stdin: what each command reads.
    """
    answers = Answers()
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    children: dict[str, _Child] = {}
    late: set[str] = set()
    try:
        for who, command in commands.items():
            try:
                children[who] = _start(command, environment, lines, stdin)
            except OSError as error:
                answers.launcher_errors.append((who, f"{command[0]}: {error.strerror}"))
        _collect([child.process for child in children.values()], lines, answers, size, seconds)
        late = {who for who, child in children.items() if child.process.poll() is None}
    finally:
        _end([child.process for child in children.values()])
    for child in children.values():
        for reader in child.readers:
            reader.join(1.0)  # may not end: a grandchild can hold the pipe
    _drain(lines, answers, 0)
    for who, child in children.items():
        status = f"not done in {seconds:.0f} s" if who in late else ""
        if child.process.returncode and who not in late:
            status = f"status {child.process.returncode}"
        text = ": ".join(filter(None, [status, " ".join(child.errors)[-_ERROR_LENGTH:]]))
        if text:
            answers.launcher_errors.append((who, text))
    return answers


def _start(
    command: Sequence[str], environment: Mapping[str, str], lines: queue.SimpleQueue[str], stdin: bytes
) -> _Child:
    process = subprocess.Popen(
        command, env=dict(environment), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True,
    )  # fmt: skip
    assert process.stdin is not None
    with contextlib.suppress(OSError), process.stdin as stream:
        stream.write(stdin.decode())
    errors: list[str] = []
    readers = [
        threading.Thread(target=_read, args=(process.stdout, lines.put), daemon=True),
        threading.Thread(target=_read, args=(process.stderr, errors.append), daemon=True),
    ]
    for reader in readers:
        reader.start()
    return _Child(process, errors, readers)


def _read(stream: IO[str] | None, put: Callable[[str], None]) -> None:
    assert stream is not None
    with contextlib.suppress(ValueError, OSError):
        for line in stream:
            if line.strip() and not _NOISE.match(line):
                put(line.strip())


def _collect(
    processes: Sequence[subprocess.Popen[str]],
    lines: queue.SimpleQueue[str],
    answers: Answers,
    size: int,
    seconds: float,
) -> None:
    """Collect answers until all processes have ended or the time is over."""
    start = reminded = time.monotonic()
    while any(process.poll() is None for process in processes) and time.monotonic() < start + seconds:
        _drain(lines, answers, 0.05)
        if time.monotonic() > reminded + _REMIND:
            reminded = time.monotonic()
            log.info("%.0f s: %d of %d nodes have answered", reminded - start, len(answers.nodes), size)


def _drain(lines: queue.SimpleQueue[str], answers: Answers, seconds: float) -> None:
    """Process all waiting lines; wait up to ``seconds`` for the first."""
    with contextlib.suppress(queue.Empty):
        line = lines.get(timeout=seconds) if seconds else lines.get_nowait()
        while True:
            for facts in parse(line) if PREFIX in line else []:
                answers.add(facts)
            line = lines.get_nowait()


def _end(processes: Iterable[subprocess.Popen[str]]) -> None:
    """Send SIGTERM, so that srun and mpirun end their remote tasks, then SIGKILL to what is left."""
    for number, patience in ((signal.SIGTERM, _GRACE), (signal.SIGKILL, 1.0)):
        running = [process for process in processes if process.poll() is None]
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
        deadline = time.monotonic() + patience
        for process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))

"""Runs the commands that ask the nodes, and collects what they tell. Ends them in time."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO

from bellwether.launcher.doctor.node import PREFIX, Facts, read

_REMIND = 15.0  # seconds between notes of who is still missing
_MERCY = 10.0  # seconds that srun and mpirun have to end their tasks
_CHATTER = re.compile(r"\[[IW]\d{4} ")  # torch's remarks on what is no error
_WORDS = 400  # characters of what a launcher said last


@dataclass
class Answers:
    nodes: list[Facts] = field(default_factory=list)
    group: Facts | None = None
    troubles: list[Facts] = field(default_factory=list)
    noise: list[tuple[str, str]] = field(
        default_factory=list
    )  # (who, what it said on stderr last, and its end if a bad one)

    def take(self, facts: Facts) -> None:
        if facts["kind"] == "node":
            self.nodes.append(facts)
        elif facts["kind"] == "group":
            self.group = facts
        else:
            self.troubles.append(facts)


def gather(commands: Mapping[str, Sequence[str]], environment: Mapping[str, str], size: int, seconds: float) -> Answers:
    """Run all commands at once.

    Args:
        commands: by who is asked: a host, or a launcher.
        size: how many nodes answer through them.
        seconds: after which those that still run are ended.
    """
    answers = Answers()
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    children: dict[str, subprocess.Popen[str]] = {}
    ends: dict[str, list[str]] = {}
    readers = []
    late = set()
    try:
        for who, command in commands.items():
            try:
                child = subprocess.Popen(
                    command, env=dict(environment), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True,
                )  # fmt: skip
            except OSError as error:
                answers.noise.append((who, f"{command[0]}: {error.strerror}"))
                continue
            children[who] = child
            ends[who] = []
            readers.append(threading.Thread(target=_listen, args=(child.stdout, lines.put), daemon=True))
            readers.append(threading.Thread(target=_listen, args=(child.stderr, ends[who].append), daemon=True))
        for reader in readers:
            reader.start()
        start = noted = time.monotonic()
        while any(child.poll() is None for child in children.values()) and time.monotonic() < start + seconds:
            _take(lines, answers, 0.05)
            if time.monotonic() > noted + _REMIND:
                noted = time.monotonic()
                waited = f"{noted - start:.0f} s: {len(answers.nodes)} of {size} nodes have answered"
                print(f"bellwether: {waited}", file=sys.stderr, flush=True)
        late = {who for who, child in children.items() if child.poll() is None}
    finally:
        _end(list(children.values()))
    for reader in readers:
        reader.join(1.0)  # one may not end: a grandchild holds the pipe
    _take(lines, answers, 0)
    for who, child in children.items():
        words = [f"not done in {seconds:.0f} s"] if who in late else []
        words += [f"status {child.returncode}"] if child.returncode and who not in late else []
        last = " ".join(ends[who])[-_WORDS:]
        if words or last:
            answers.noise.append((who, ": ".join([*words, *([last] if last else [])])))
    return answers


def _listen(stream: IO[str] | None, put: Callable[[str], None]) -> None:
    assert stream is not None
    with contextlib.suppress(ValueError, OSError):
        for line in stream:
            if line.strip() and not _CHATTER.match(line):
                put(line.strip())


def _take(lines: queue.SimpleQueue[str], answers: Answers, seconds: float) -> None:
    """What has come, waiting a little for the first."""
    with contextlib.suppress(queue.Empty):
        line = lines.get(timeout=seconds) if seconds else lines.get_nowait()
        while True:
            for facts in read(line) if PREFIX in line else []:
                answers.take(facts)
            line = lines.get_nowait()


def _end(children: Iterable[subprocess.Popen[str]]) -> None:
    """TERM, so that srun and mpirun end what they have started elsewhere, and KILL for what does not end by that."""
    for deed, patience in ((signal.SIGTERM, _MERCY), (signal.SIGKILL, 1.0)):
        running = [child for child in children if child.poll() is None]
        for child in running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, deed)
        deadline = time.monotonic() + patience
        for child in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(max(0.0, deadline - time.monotonic()))

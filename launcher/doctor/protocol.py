"""How a probed node reports: one JSON object a line on standard output, after a prefix, with a time limit for each stage.

Imports the standard library only: a node with a broken Python environment must still be able to report.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from typing import Any

Facts = dict[str, Any]

PREFIX = "bellwether-doctor: "
_ERROR_LENGTH = 200  # characters; launchers forward lines unbroken only up to 4 KiB


class Reporter:
    """Writes facts to standard output, and ends this process when a stage exceeds its time limit.

    Attributes:
        rank: of this node.
        cluster: facts about all nodes, as far as they are known; rank 0 only.
    """

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.cluster: Facts | None = None
        self._stage = ""
        self._timer: threading.Timer | None = None
        self._writing = threading.Lock()

    def begin(self, stage: str, seconds: float) -> None:
        """Begin a stage. This process ends unless the next stage begins within ``seconds``."""
        if self._timer is not None:
            self._timer.cancel()
        self._stage = stage
        self._timer = threading.Timer(seconds, self._expire, (seconds,))
        self._timer.daemon = True
        self._timer.start()

    def send(self, facts: Facts) -> None:
        with self._writing:
            # One write, with a newline first: a library may have printed an unfinished line.
            data = f"\n{PREFIX}{json.dumps(facts, separators=(',', ':'))}\n".encode()
            sys.stdout.flush()
            while data:
                data = data[os.write(1, data) :]

    def send_failure(self, error: str) -> None:
        """Send an error together with the stage in which it occurred."""
        context = {"kind": "failure", "rank": self.rank, "host": socket.gethostname(), "stage": self._stage}
        self.send({**context, "error": brief(error)})

    def send_cluster(self) -> None:
        """Send the facts about all nodes, once."""
        facts, self.cluster = self.cluster, None
        if facts is not None:
            self.send(facts)

    def _expire(self, seconds: float) -> None:
        self.send_cluster()
        self.send_failure(f"not done in {seconds:.0f} s")
        if self.rank != 0:
            time.sleep(2)  # mpirun kills all processes once one has ended, and rank 0 may be about to report
        os._exit(0)


def parse(text: str) -> list[Facts]:
    """The facts in a node's output, whatever else was printed there."""
    node_facts = []
    for part in text.split(PREFIX)[1:]:
        try:
            facts, _ = json.JSONDecoder().raw_decode(part)
        except ValueError:
            continue  # truncated: the node was killed, and is reported as missing
        if isinstance(facts, dict):
            node_facts.append(facts)
    return node_facts


def brief(error: object) -> str:
    """An error on one line, shortened."""
    return " ".join(str(error).split())[:_ERROR_LENGTH]

"""Reads srun's own messages: which task failed first, on which node.

srun's exit status is the highest of all tasks, some of which it killed because of another; its first message names the cause::

    srun: error: node2: task 1: Exited with exit code 1
    srun: launch/slurm: _step_signal: Terminating StepId=12.0
    srun: error: node1: task 0: Terminated
"""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass

from bellwether.trainer.rendezvous import expand

_TASK = re.compile(r"^srun: error: (\S+): tasks? ([\d,-]+): (.+)$")
_NODE = re.compile(r"^srun: error: (?:Node failure on|.* failed on node) (\S+?)(?::|$)")
_CODE = re.compile(r"Exited with exit code (\d+)")
_NAMES = {  # strsignal's texts
    "Killed": signal.SIGKILL, "Segmentation fault": signal.SIGSEGV, "Aborted": signal.SIGABRT, "Bus error": signal.SIGBUS,
    "Floating point exception": signal.SIGFPE, "Illegal instruction": signal.SIGILL, "Terminated": signal.SIGTERM,
    "Out Of Memory": signal.SIGKILL,
}  # fmt: skip


@dataclass(frozen=True)
class Failure:
    """The first failure of a step.

    Attributes:
        ranks: empty where the node itself was lost.
        status: exit status, as a shell gives it; None where the node was lost, or the message is an unknown one.
        text: as srun words it.
    """

    nodes: tuple[str, ...]
    ranks: tuple[int, ...]
    status: int | None
    text: str


def first_failure(messages: str) -> Failure | None:
    """The first failure in srun's standard error.

    >>> first_failure("srun: error: node2: tasks 2-3: Exited with exit code 1")
    Failure(nodes=('node2',), ranks=(2, 3), status=1, text='Exited with exit code 1')
    >>> first_failure("srun: error: Node failure on node7").nodes
    ('node7',)
    """
    for line in messages.splitlines():
        if (lost := _NODE.match(line.strip())) is not None:
            return Failure(_nodes(lost[1]), (), None, line.strip().removeprefix("srun: error: "))
        if (task := _TASK.match(line.strip())) is not None:
            return Failure(_nodes(task[1]), _numbers(task[2]), _status(task[3]), task[3])
    return None


def _nodes(text: str) -> tuple[str, ...]:
    try:
        return tuple(expand(text))
    except ValueError:
        return (text,)


def _numbers(text: str) -> tuple[int, ...]:
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if first.isdigit() and (last or first).isdigit():
            found += range(int(first), int(last or first) + 1)
    return tuple(found)


def _status(text: str) -> int | None:
    if (code := _CODE.match(text)) is not None:
        return int(code[1])
    return next((128 + number for name, number in _NAMES.items() if text.startswith(name)), None)

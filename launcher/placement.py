"""Chooses the nodes of a job on which an attempt runs, from what they report. Pure functions.

The job may have more nodes than the run needs (spares). A bad node is replaced by a spare; if there are too few nodes, the job is
requeued, and SLURM is told not to give it the bad ones again.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from bellwether.launcher.decision import EXIT, REQUEUE
from bellwether.launcher.doctor.quick import UNREACHABLE
from bellwether.launcher.doctor.result import Facts, few

RUN = "run"


@dataclass(frozen=True)
class Placement:
    """Where the next attempt runs.

    Attributes:
        action: `RUN` on ``nodes``, `REQUEUE`, or `EXIT`.
        exclude: nodes that the job must not get again, and why.
        reason: for the job's log; empty where all nodes are well.
    """

    action: str
    nodes: tuple[str, ...] = ()
    exclude: Mapping[str, str] = field(default_factory=dict)
    reason: str = ""


def place(
    allocated: Sequence[str],
    needed: int,
    *,
    bad: Mapping[str, str],
    suspects: Mapping[str, str],
    partition: Collection[str] = (),
    requested: int | None = None,
    repeated: bool = False,
) -> Placement:
    """Choose nodes.

    Args:
        allocated: the nodes that the job has now.
        needed: how many the run needs.
        bad: nodes that failed the check, and why.
        suspects: nodes on which ranks failed twice, and that as text.
        partition: all usable nodes of the job's partition; empty: not known.
        repeated: whether the last two attempts failed in the same way: the run stops if a suspect has no substitute.
        requested: how many a requeued job gets, spares included; default: as many as needed.
    """
    # What most nodes have, they have from elsewhere: a file system, the controller, this check.
    common = len(allocated) > 1 and 2 * len(bad) > len(allocated)
    unusable = {node: why for node, why in {**suspects, **bad}.items() if node in allocated}
    healthy = [node for node in allocated if node not in unusable]
    named = few(f"{node}: {why}" for node, why in unusable.items())
    if len(healthy) >= needed:
        return Placement(RUN, tuple(healthy[:needed]), unusable, f"without {named}" if unusable else "")
    exclude = {node: why for node, why in unusable.items() if not (common and node in bad)}
    if partition and len(set(partition) - set(exclude)) < (requested or needed):
        if not bad and len(allocated) >= needed and not repeated:
            return Placement(RUN, tuple(allocated[:needed]), reason=f"the partition has no nodes to replace {named}")
        if not bad and len(allocated) >= needed:
            reason = f"{named}, and the partition has no other nodes; see the log of the rank that failed"
            return Placement(EXIT, reason=f"failed twice at the same place: {reason}")
        exclude = {}
    if not unusable:
        return Placement(REQUEUE, reason=f"{len(allocated)} nodes are left, and the run needs {needed}")
    return Placement(REQUEUE, exclude=exclude, reason=f"too few nodes are well: {named}")


def bad_nodes(allocated: Sequence[str], reports: Sequence[Facts], server: str) -> dict[str, str]:
    """The nodes that failed the quick check or did not answer, and why.

    Args:
        server: the node that all others tried to reach.
    """
    by_node = {report["node"]: list(report["problems"]) for report in reports}
    others = [node for node in allocated if node in by_node and node != server]
    cut_off = [node for node in others if any(problem.startswith(UNREACHABLE) for problem in by_node[node])]
    if len(others) > 1 and cut_off == others:
        for node in others:
            by_node[node] = [problem for problem in by_node[node] if not problem.startswith(UNREACHABLE)]
        by_node.setdefault(server, []).append("network: no other node reaches it")
    bad = {}
    for node in allocated:
        if node not in by_node:
            bad[node] = "does not answer"
        elif by_node[node]:
            bad[node] = "; ".join(by_node[node])
    return bad


def usable_nodes(sinfo: str) -> tuple[str, ...]:
    """The nodes of a partition that jobs can get, now or later, from ``sinfo -N -o '%N %t'``.

    >>> usable_nodes("n1 idle\\nn2 down*\\nn3 mix-\\nn4 drain\\nn5 alloc*")
    ('n1', 'n3')
    """
    found = []
    for line in sinfo.splitlines():
        name, _, state = line.strip().partition(" ")
        if (
            name
            and "*" not in state
            and not re.match("down|drain|drng|fail|maint|unk|inval|err|boot|no_respond|futr", state)
        ):
            found.append(name)
    return tuple(dict.fromkeys(found))

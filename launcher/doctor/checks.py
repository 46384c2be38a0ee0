"""Turns the facts that the nodes reported into the rows of the table. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Sequence

from bellwether.launcher.doctor import cluster_checks, software_checks, system_checks
from bellwether.launcher.doctor.result import GREEN, RED, Expected, Facts, Row, few, hosts_of, names_by_rank


def rows(nodes: Sequence[Facts], cluster: Facts | None, failures: Sequence[Facts], expected: Expected) -> list[Row]:
    """The whole table.

    Args:
        nodes: facts of each node that answered.
        cluster: facts about all nodes together; None for one node, or when the nodes found none in time.
        failures: errors that nodes reported before they gave up.
    """
    nodes = sorted(nodes, key=lambda node: node["rank"])
    table = answered(nodes, failures, expected)
    if nodes:
        table += [*software_checks.rows(nodes, expected), *system_checks.rows(nodes, expected.size)]
    if nodes and expected.size > 1:
        table += cluster_checks.rendezvous(cluster, failures, nodes, expected)
    if cluster is not None:
        table += cluster_checks.rows(cluster)
    return table


def answered(nodes: Sequence[Facts], failures: Sequence[Facts], expected: Expected) -> list[Row]:
    """Whether every node answered; for those that did not, what they and their launcher printed."""
    missing = [rank for rank in range(expected.size) if rank not in {node["rank"] for node in nodes}]
    if not missing:
        count = f", all {expected.size}" if expected.size > 1 else ""
        return [Row("nodes", GREEN, f"{few(hosts_of(nodes))} answered{count}")]
    host_names = names_by_rank(nodes, expected)
    silent = f"{few([host_names.get(rank, f'rank {rank}') for rank in missing])} ({len(missing)} of {expected.size})"
    if not host_names:
        silent = f"any of {expected.size} nodes"
    reported = [f"{f['host']}, {f['stage']}: {f['error']}" for f in failures if f["rank"] in missing]
    healthy = {name for rank, name in enumerate(expected.names) if rank not in missing}
    printed = [f"{who}: {text}" for who, text in expected.launcher_errors if who not in healthy]
    seen = "; ".join([f"no answer from {silent}", *reported[:2], *printed[:2]])
    fixes = (fix for pattern, fix in _FIXES for text in [*reported, *printed] if re.search(pattern, text))
    return [Row("nodes", RED, seen, next(fixes, _DEFAULT_FIX))]


_DEFAULT_FIX = "check that those nodes are up, and test one of them alone"
# Errors that launchers print when a node does not start, and the fix for each.
_FIXES = [
    (r"Host key verification failed", "log in by hand once (ssh HOST) and accept its key"),
    (r"Permission denied \(", "allow ssh without a password: ssh-copy-id HOST"),
    (
        r"Could not resolve hostname",
        "correct the name in the host file, or give the host an address in DNS or /etc/hosts",
    ),
    (r"Connection (refused|timed out)|No route to host", "check that the host is up and runs sshd, and its firewall"),
    (
        r"[Ii]nvalid (partition|account|qos|feature)",
        "correct it in slurm/site.yaml; sinfo and sacctmgr list the valid ones",
    ),
    (
        r"Unable to allocate resources|[Ii]mmediate|have not been allocated|queued and waiting",
        "too few nodes are free: use fewer (--nodes), another partition (slurm/site.yaml), or run it inside a job",
    ),
    (r"controller|slurm_load|configuration source", "SLURM cannot be reached: run it on a login node of the cluster"),
    (r"unrecognized option|invalid option", "remove that option from sbatch: or srun: in slurm/site.yaml"),
    (r"No module named '?bellwether", "install bellwether on that node, or on a file system that all nodes share"),
    (
        r"No such file or directory|not found|unable to find",
        "Python is missing on that node: install it on a file system that all nodes share, or set venv: in slurm/site.yaml",
    ),
]


def commands(missing: Sequence[str], on: str) -> list[Row]:
    """A red row if commands that start the run are ``missing`` from the path."""
    if missing:
        fix = f"run this where --on {on} is available, such as a login node, or load its module"
        return [Row("commands", RED, f"{', '.join(missing)} not found", fix)]
    return []

"""``python -m bellwether.launcher.doctor.node``: probe this node, then all nodes together.

Any launcher starts it, once a node. It prints facts as lines of JSON (`bellwether.launcher.doctor.protocol`). The first
line needs the standard library only, so that a node with a broken Python environment reports as well. Every step has a
time limit.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Sequence

from bellwether.launcher.doctor import software_probe, system_probe
from bellwether.launcher.doctor.protocol import Facts, Reporter
from bellwether.trainer.environment_rank import environment_rank


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bellwether.launcher.doctor.node", description=__doc__)
    parser.add_argument("--shared", metavar="DIR", default=".", help="directory that all nodes should share")
    parser.add_argument("--nonce", metavar="TEXT", help="part of the name of the file that is written there")
    parser.add_argument("--size", type=int, metavar="N", help="number of nodes that were started")
    parser.add_argument("--limit", type=float, default=60, metavar="S", help="seconds to connect, and to measure")
    parser.add_argument("--no-network", action="store_true", help="probe this node only")
    arguments = parser.parse_args(argv)

    reporter = Reporter(0 if arguments.no_network else environment_rank())
    try:
        reporter.begin("probing this node", 2 * arguments.limit)
        reporter.send(node_facts(arguments.shared, reporter.rank, 1.5 * arguments.limit))
        if not arguments.no_network:
            reporter.begin("detecting rank and address", arguments.limit)
            from bellwether.launcher.doctor import cluster_probe

            nonce = arguments.nonce or str(os.getpid())
            cluster_probe.run(reporter, arguments.shared, nonce, arguments.size, arguments.limit)
    except Exception as error:  # any error is a row of the table
        reporter.send_failure(f"{type(error).__name__}: {error}")
    reporter.send_cluster()
    return 0


def node_facts(shared: str, rank: int = 0, limit: float = 90.0) -> Facts:
    """All facts about this node.

    Args:
        shared: the directory that holds the run directories.
        limit: seconds for the imports of torch and deepspeed together.
    """
    imports = software_probe.imports(limit)
    return {
        "kind": "node",
        "rank": rank,
        **system_probe.host(),
        "python": platform.python_version(),
        "executable": sys.executable,
        "packages": software_probe.versions(),
        "imports": imports.get("imports", {}),
        "gpu": {**software_probe.nvidia_driver(), **imports.get("gpu", {})},
        "compiler": software_probe.compiler(build=True),
        "locks": software_probe.locks(),
        "cores": system_probe.cores(),
        "disks": system_probe.disks(shared),
        "ports": system_probe.ports(),
        "time": time.time(),
    }


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)  # at exit, some libraries wait for processes that have already ended

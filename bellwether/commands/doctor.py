"""``bellwether doctor``: check that this machine or the cluster is ready to train."""

from __future__ import annotations

import argparse

from bellwether.commands.arguments import Commands, add_node_selection, positive_int


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "doctor",
        help="check that this machine or the cluster is ready to train",
        description="Check every node and the network between them; print a fix for each failed check. "
        "The exit status is 1 if a check fails.",
    )
    parser.add_argument("--on", choices=["local", "slurm", "mpi", "ssh"], default="local", help="default: local")
    parser.add_argument(
        "--nodes",
        type=positive_int,
        metavar="N",
        help="number of nodes; default: those of the host file or of the current job, otherwise 2",
    )
    parser.add_argument("--hostfile", metavar="FILE", help="one host per line (mpi, ssh)")
    add_node_selection(parser)
    parser.add_argument(
        "--runs", metavar="DIR", default="runs", help="directory of all runs, shared by the nodes; default: runs"
    )
    parser.add_argument(
        "--timeout", type=positive_int, metavar="S", help="seconds within which the nodes must answer; default: 240"
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON, for a script or a bug report")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from bellwether.launcher.doctor import TIMEOUT, doctor

    a = arguments
    options = {key: getattr(a, key) for key in ("gpus_per_node", "partition", "account", "qos", "constraint")}
    site_overrides = {key: value for key, value in options.items() if value is not None}
    return doctor(a.on, a.nodes, a.hostfile, a.site, a.runs, a.json, a.timeout or TIMEOUT, site_overrides)

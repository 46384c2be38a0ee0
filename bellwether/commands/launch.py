"""``bellwether launch``: start a run here, on SLURM, over MPI or over ssh."""

from __future__ import annotations

import argparse

from bellwether.commands.arguments import Commands, add_allocation, add_config, non_negative_int, positive_int


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "launch",
        help="start a run on SLURM, over MPI or ssh, or here",
        description="Start a run on the resources that --on names. The config is the same for all of them.",
    )
    add_config(parser)
    parser.add_argument("--on", choices=["local", "slurm", "mpi", "ssh"], default="local", help="default: local")
    add_allocation(parser)
    parser.add_argument(
        "--spares", type=non_negative_int, metavar="N", help="further nodes, which replace bad ones (slurm); default: 0"
    )
    parser.add_argument(
        "--chain",
        type=positive_int,
        metavar="N",
        help="submit N jobs, each after the one before, where jobs may not be requeued (slurm)",
    )
    parser.add_argument("--hostfile", metavar="FILE", help="one host per line, such as node1 slots=8 (mpi, ssh)")
    parser.add_argument("--dry-run", action="store_true", help="print the script or the command; start nothing")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from bellwether.launcher.launch import LaunchRequest, launch

    options = vars(arguments)
    return launch(LaunchRequest(**{key: options[key] for key in LaunchRequest.__dataclass_fields__}))

"""``bellwether env pack``: the virtual environment as one file, for jobs on many nodes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bellwether.commands.arguments import Commands


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "env", help="pack the virtual environment into one file, for quick starts on many nodes",
        description="Tools for the environment in which runs start.",
    )  # fmt: skip
    actions = parser.add_subparsers(dest="action", required=True, metavar="pack")
    packing = actions.add_parser(
        "pack", help="write the environment to an archive",
        description="Write the virtual environment to an archive. With packed_env: FILE in slurm/site.yaml (BELLWETHER_PACKED_ENV), "
        "each node of a job unpacks it on its own disk, and its ranks start from there.",
    )  # fmt: skip
    packing.add_argument(
        "--output", metavar="FILE", default="environment.tar",
        help="ending in .tar (fastest), .tar.zst or .tar.gz; default: environment.tar",
    )  # fmt: skip
    packing.add_argument("--venv", metavar="DIR", help="default: that of this command")
    packing.set_defaults(run=pack)


def pack(arguments: argparse.Namespace) -> int:
    from bellwether.launcher.packed_env import pack

    output = Path(arguments.output).absolute()
    size = pack(Path(arguments.venv or sys.prefix).absolute(), output)
    print(f"{output}: {size / 1e6:,.0f} MB")
    print(f"  in slurm/site.yaml: packed_env: {output}")
    return 0

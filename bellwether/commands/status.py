"""``bellwether status``: the state and progress of a run."""

from __future__ import annotations

import argparse
from pathlib import Path

from bellwether.commands.arguments import Commands


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "status",
        help="state and progress of a run",
        description="Print a run's state, queue position, restarts, progress, remaining time, and what the time went to.",
    )
    parser.add_argument("run_directory", metavar="RUN", help="a run directory, such as runs/bert-large")
    parser.add_argument(
        "--json", action="store_true", help="print numbers for programs, with the share of each use of time"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from bellwether.launcher.status import status

    return status(Path(arguments.run_directory), arguments.json)

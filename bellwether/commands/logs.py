"""``bellwether logs``: the output of a run's rank 0."""

from __future__ import annotations

import argparse
from pathlib import Path

from bellwether.commands.arguments import Commands


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "logs", help="output of a run's rank 0", description="Print the output of a run's rank 0."
    )
    parser.add_argument("run_directory", metavar="RUN", help="a run directory, such as runs/bert-large")
    parser.add_argument(
        "-f", "--follow", action="store_true", help="keep printing new lines until Ctrl-C or the end of the run"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from bellwether.launcher.logs import logs

    return logs(Path(arguments.run_directory), arguments.follow)

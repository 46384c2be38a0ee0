"""``bellwether convert``: measurements from one layout to another."""

from __future__ import annotations

import argparse

from bellwether.commands.arguments import Commands


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "convert",
        help="measurements from one layout to another",
        description="Read measurements from a sweep's directory, a table or the layout of Shallue et al. (1811.03600), "
        "and write a table or that layout.",
    )
    parser.add_argument(
        "source", metavar="FROM", help="a sweep's directory, .csv, .parquet, or a directory of DATASET/MODEL/..."
    )
    parser.add_argument(
        "to", metavar="TO", help=".csv or .parquet; a name without a suffix is a directory in Shallue et al.'s layout"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from bellwether.experiments.analysis.convert import convert

    return convert(arguments.source, arguments.to)

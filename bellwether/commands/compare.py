"""``bellwether compare``: which optimizer of one or several sweeps reaches the target first."""

from __future__ import annotations

import argparse

from bellwether.commands.arguments import Commands


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "compare",
        help="rank the optimizers of sweeps by the time to the target",
        description="Rank the optimizers of one or several sweeps by the time to the target with their best settings: performance profiles, "
        "paired tests over seeds and batch sizes, and the place of each with a 90 % interval. A run that missed took infinitely long.",
    )
    parser.add_argument(
        "paths", nargs="+", metavar="PATH", help="the directory of a sweep, or measurements as .csv or .parquet"
    )
    parser.add_argument("--target", metavar="'METRIC >= N'", help="of all sweeps; default: the one in each sweep.yaml")
    parser.add_argument(
        "--by",
        choices=["steps", "seconds"],
        default="steps",
        help="steps, or seconds of training at the measured throughput; default: steps",
    )
    parser.add_argument("--output", metavar="FILE", help="of the picture; default: compare.png in the first sweep")
    parser.add_argument("--json", action="store_true", help="print all numbers as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from bellwether.experiments import compare

    return compare.show(arguments.paths, arguments.target, arguments.by, arguments.output, arguments.json)

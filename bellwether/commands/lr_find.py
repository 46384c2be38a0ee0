"""``bellwether lr-find``: learning rate range test."""

from __future__ import annotations

import argparse

from bellwether.commands.arguments import Commands, add_config, add_nproc, positive_int


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "lr-find",
        help="learning rate range test, with a suggested rate",
        description="Raise the learning rate exponentially until the loss diverges, plot the loss and suggest a rate. "
        "The test has its own run directory, NAME-lr-find.",
    )
    add_config(parser)
    add_nproc(parser)
    parser.add_argument("--from", dest="low", type=float, default=1e-6, metavar="LR", help="first rate; default: 1e-6")
    parser.add_argument("--to", dest="high", type=float, default=1.0, metavar="LR", help="last rate; default: 1")
    parser.add_argument("--steps", type=positive_int, default=200, metavar="N", help="number of steps; default: 200")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from bellwether.experiments.lr_find import find

    a = arguments
    return find(a.config, a.overrides, a.nproc, a.low, a.high, a.steps)

"""``bellwether recipe``: published learning rates and warm-ups by batch size."""

from __future__ import annotations

import argparse

from bellwether.commands.arguments import Commands, positive_ints


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "recipe",
        help="published learning rates and warm-ups by batch size",
        description="Print the settings of a published recipe at given batch sizes: learning rate, warm-up, length and the "
        "options of the update rule.",
    )
    parser.add_argument(
        "name", metavar="NAME", nargs="?", help="a recipe, such as lamb-bert; default: list all recipes"
    )
    parser.add_argument(
        "--batch", type=positive_ints, metavar="N,N,...", default=[], help="batch sizes; default: the published ones"
    )
    parser.add_argument("--json", action="store_true", help="print a list of objects as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from bellwether.experiments.recipe_table import show

    return show(arguments.name, arguments.batch, arguments.json)

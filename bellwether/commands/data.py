"""``bellwether data``: what a config's data hold."""

from __future__ import annotations

import argparse

from bellwether.commands.arguments import Commands, add_config


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "data",
        help="show what the data hold, and what is refused about them",
        description="Prepare the data of a config unless they are prepared, and show what was read: files, rows, documents, tokens, "
        "classes, duplicates, and everything that was left out or converted. The exit status is 2 if a run would refuse them.",
    )
    add_config(parser, "data.source=texts/")
    parser.add_argument("--json", action="store_true", help="print the summary as a JSON object")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from bellwether.trainer.data.show import show

    return show(arguments.config, arguments.overrides, arguments.json)

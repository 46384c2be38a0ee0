"""``bellwether prepare``: everything about the data that can be done outside a job."""

from __future__ import annotations

import argparse

from bellwether.commands.arguments import Commands, add_config


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "prepare",
        help="download, read, tokenize or check the data, before a job does",
        description="Download, read and tokenize text, or decode and check every image, into data.cache, on all cores of this "
        "machine. What is prepared is found by all later runs; a preparation that was ended is continued. Shows what was read, and "
        "ends with status 2 if a run would refuse it.",
    )
    add_config(parser, "data.source=texts/")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from bellwether.trainer.data.show import prepare

    return prepare(arguments.config, arguments.overrides)

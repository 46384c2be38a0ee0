"""``bellwether prepare``: everything about the data that can be done outside a job."""

from __future__ import annotations

import argparse

from bellwether.commands.arguments import Commands, add_config, positive_int


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "prepare",
        help="download, read, tokenize or check the data, before a job does",
        description="Download, read and tokenize text, or decode and check every image, into data.cache, on all cores of this "
        "machine. What is prepared is found by all later runs; a preparation that was ended is continued. Shows what was read, and "
        "ends with status 2 if a run would refuse it.",
    )
    add_config(parser, "data.source=texts/")
    packing = parser.add_argument_group("a smaller copy of images", "for data.crop: resized, as ImageNet is trained")
    packing.add_argument(
        "--short-side",
        type=positive_int,
        metavar="N",
        help="write a copy whose short sides have at most N pixels, as in 256",
    )
    packing.add_argument("--output", metavar="DIR", help="folder of the copy")
    packing.add_argument("--quality", type=positive_int, metavar="N", default=95, help="of its JPEGs; default: 95")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from bellwether.trainer.data import show

    if arguments.short_side is None and arguments.output is None:
        return show.prepare(arguments.config, arguments.overrides)
    return show.pack(arguments.config, arguments.overrides, arguments.short_side, arguments.quality, arguments.output)

"""``bellwether train``: train on this machine."""

from __future__ import annotations

import argparse

from bellwether.commands.arguments import Commands, add_config, add_nproc


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "train",
        help="train on this machine",
        description="Train on this machine with one process per GPU, or with --nproc processes.",
    )
    add_config(parser, "optimizer.lr=2e-3 batch.global=4096")
    add_nproc(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from bellwether.launcher.local import train

    return train(arguments.config, arguments.overrides, arguments.nproc)

"""``bellwether bench data``: the speed of the data loader alone."""

from __future__ import annotations

import argparse
import json

from bellwether.commands.arguments import Commands, add_config


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "bench",
        help="measure the data loader alone",
        description="Measure how fast the training data of a config become batches: on one core, and with data.workers "
        "processes. Prepares the data first, unless they are prepared.",
    )
    parser.add_argument("part", choices=["data"], metavar="data", help="the part of a run that is measured")
    add_config(parser, "data.workers=8")
    parser.add_argument(
        "--seconds", type=float, default=5.0, metavar="S", help="duration of each measurement; default: 5"
    )
    parser.add_argument("--json", action="store_true", help="print the result as a JSON object")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from bellwether.trainer import log
    from bellwether.trainer.config import load
    from bellwether.trainer.data.bench import measure

    log.setup()
    found = measure(load(arguments.config, arguments.overrides), arguments.seconds).to_json()
    if arguments.json:
        print(json.dumps(found, indent=1))
        return 0
    stages = found.pop("stages")
    for name, value in found.items():
        print(f"{name.replace('_', ' '):<24} {value:,}")
    for name, share in stages.items():
        print(f"  {name:<22} {share:.1%}")
    return 0

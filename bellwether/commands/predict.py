"""``bellwether predict``: the predictions of a trained model for a file of texts."""

from __future__ import annotations

import argparse

from bellwether.commands.arguments import Commands
from bellwether.commands.evaluate import add_model, columns


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "predict",
        help="predictions of a trained model for a file of texts",
        description="Write a row for each text of a file, in its order: the text, the predicted class with its probability, or the "
        "predicted number.",
    )
    add_model(parser)
    parser.add_argument("--data", metavar="FILE", required=True, help="texts, with or without labels")
    parser.add_argument("--output", metavar="FILE", required=True, help="a new .jsonl, .csv, .tsv or .parquet file")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from bellwether.trainer import scoring

    return scoring.predict(
        arguments.model, arguments.data, arguments.output, columns(arguments), arguments.batch, arguments.device
    )

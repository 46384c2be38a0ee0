"""``bellwether evaluate``: scores of a trained model, without training."""

from __future__ import annotations

import argparse

from bellwether.commands.arguments import Commands, positive_int


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="scores of a trained model on held-out data",
        description="Score a finished run, its export, or a folder with a fine-tuned model on a file of labelled texts, words or questions, in one process. "
        "For runs of other kinds, loss and accuracy on their held-out data or on --data.",
    )
    add_model(parser)
    parser.add_argument("--data", metavar="FILE", help="labelled data; default: the held-out data of the run")
    parser.add_argument("--label-column", metavar="NAME", help="default: that of the run, or label")
    parser.add_argument("--json", action="store_true", help="print one object with the scores by name")
    parser.set_defaults(run=run)


def add_model(parser: argparse.ArgumentParser) -> None:
    """The model, and how to run it; for predict as well."""
    parser.add_argument("model", metavar="RUN_OR_FOLDER", help="a run directory, an export, or a folder with a model")
    parser.add_argument(
        "--text-columns",
        metavar="NAMES",
        type=lambda text: text.split(","),
        help="default: those of the run, or text; of a token classifier the column with the words",
    )
    parser.add_argument(
        "--sequence-length", metavar="N", type=positive_int, help="longest text; default: that of the run, or 128"
    )
    parser.add_argument("--batch", metavar="N", type=positive_int, default=32, help="texts at a time; default: 32")
    parser.add_argument(
        "--device", metavar="NAME", default="auto", help="cpu or cuda; default: cuda where there is one"
    )


def run(arguments: argparse.Namespace) -> int:
    from bellwether.trainer import scoring

    return scoring.evaluate(
        arguments.model, arguments.data, columns(arguments), arguments.batch, arguments.device, as_json=arguments.json
    )


def columns(arguments: argparse.Namespace) -> dict[str, object]:
    """The options that name columns and lengths, of those that were given."""
    given = {key: getattr(arguments, key, None) for key in ("text_columns", "label_column", "sequence_length")}
    return {key: value for key, value in given.items() if value is not None}

"""``bellwether predict``: the predictions of a trained model for texts, sentences, questions or images."""

from __future__ import annotations

import argparse

from bellwether.commands.arguments import Commands
from bellwether.commands.evaluate import add_model, columns


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "predict",
        help="predictions of a trained model for texts, sentences, questions or images",
        description="Write a row for each row of a file, in its order. Of texts: the text, the predicted class with its probability, or "
        "the predicted number. Of lists of words: a tag for each word. Of questions: the answer, its score and where in the text it is. "
        "Of a run on images: for each image of a folder, glob or file, sorted by path, the predicted class with its probability.",
    )
    add_model(parser)
    parser.add_argument(
        "--data",
        metavar="FILE",
        required=True,
        help="data of the kind that it was trained on, with or without labels; images: files, as a folder or a glob",
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        required=True,
        help="a new .jsonl or .parquet file; of texts, answers and images also .csv or .tsv, of words .txt as CoNLL-2003, of "
        "questions .json as the official script of SQuAD reads it",
    )
    parser.add_argument(
        "--empty-answers",
        choices=("yes", "no"),
        help="whether a text may have no answer; default: if the model was trained on such texts",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from bellwether.trainer import scoring

    return scoring.predict(
        arguments.model,
        arguments.data,
        arguments.output,
        columns(arguments),
        arguments.batch,
        arguments.device,
        None if arguments.empty_answers is None else arguments.empty_answers == "yes",
    )

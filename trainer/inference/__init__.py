"""A trained model without an engine, in one process: its loss, its scores and its predictions on labelled or unlabelled data."""

from bellwether.trainer.inference.exported import export_of, held_out_of, task_of
from bellwether.trainer.inference.images import ImageClassifier
from bellwether.trainer.inference.predictor import Predictor, Results
from bellwether.trainer.inference.questions import QuestionAnswerer
from bellwether.trainer.inference.runs import results_of_run
from bellwether.trainer.inference.texts import TextClassifier
from bellwether.trainer.inference.words import WordTagger

__all__ = [
    "PREDICTORS",
    "ImageClassifier",
    "Predictor",
    "QuestionAnswerer",
    "Results",
    "export_of",
    "held_out_of",
    "results_of_run",
    "task_of",
]

#: By what the architecture's name in config.json ends with.
PREDICTORS: dict[str, type[Predictor]] = {
    each.architecture: each for each in (TextClassifier, WordTagger, QuestionAnswerer)
}

"""Scores of predictions on held-out data, as the GLUE benchmark defines them (Wang et al. 2018, 1804.07461, table 1)."""

from __future__ import annotations

import math
import re
import string
import typing
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

#: Scores that an evaluation may report besides loss and accuracy.
Score = Literal["exact_match", "f1", "f1_macro", "matthews", "pearson", "spearman", "perplexity", "perplexity_cache"]
NAMES: tuple[str, ...] = typing.get_args(Score)
#: The results that are better when lower; all others are better when higher.
LOWER_IS_BETTER = ("loss", "perplexity", "perplexity_cache")


def score(classes: Sequence[str] | None, predictions: Array, labels: Array) -> dict[str, float]:
    """The scores of a classification or, without classes, of a regression."""
    if classes is None:
        return regression(predictions, labels)
    return classification(predictions.argmax(axis=1), labels, len(classes))


def classification(predicted: Array, labels: Array, classes: int) -> dict[str, float]:
    """Matthews' correlation, and F1: of two classes that of class 1, of more the mean over the classes that occur.

    Args:
        predicted, labels: class numbers, [N], [N].

    >>> import numpy as np
    >>> classification(np.array([0, 1, 1, 0]), np.array([0, 1, 0, 0]), 2)
    {'f1': 0.6666666666666666, 'matthews': 0.5773502691896258}
    """
    from sklearn.metrics import f1_score, matthews_corrcoef

    if classes == 2:
        f1 = {"f1": float(f1_score(labels, predicted, pos_label=1, zero_division=0))}
    else:
        f1 = {"f1_macro": float(f1_score(labels, predicted, average="macro", zero_division=0))}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a single class on both sides, where the correlation is 0
        return {**f1, "matthews": float(matthews_corrcoef(labels, predicted))}


def regression(predicted: Array, labels: Array) -> dict[str, float]:
    """Pearson's and Spearman's correlation; 0 where either side is constant, for which they are not defined.

    >>> import numpy as np
    >>> regression(np.array([1.0, 2.0, 4.0]), np.array([1.0, 2.0, 3.0]))["spearman"]
    1.0
    """
    from scipy.stats import pearsonr, spearmanr

    if len(labels) < 2 or any((side == side[0]).all() for side in (predicted, labels)):
        return {"pearson": 0.0, "spearman": 0.0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nearly constant predictions, as those of a model before its training
        return {
            "pearson": float(pearsonr(predicted, labels).statistic),
            "spearman": float(spearmanr(predicted, labels).statistic),
        }


def by_class(classes: Sequence[str], predicted: Array, labels: Array) -> dict[str, dict[str, float]]:
    """Precision, recall, F1 and number of examples of each class, by its name.

    >>> import numpy as np
    >>> by_class(["a", "b"], np.array([0, 1, 1]), np.array([0, 1, 0]))["b"]
    {'precision': 0.5, 'recall': 1.0, 'f1': 0.6666666666666666, 'examples': 1}
    """
    from sklearn.metrics import precision_recall_fscore_support

    table = precision_recall_fscore_support(labels, predicted, labels=range(len(classes)), zero_division=0)
    keys = ("precision", "recall", "f1")
    return {
        name: {**{key: float(table[row][index]) for row, key in enumerate(keys)}, "examples": int(table[3][index])}
        for index, name in enumerate(classes)
    }


def tokens(classes: Sequence[str], predicted: Sequence[Array], labels: Sequence[Array]) -> dict[str, float]:
    """Accuracy over all words; F1 of whole entities where the classes are of the forms ``B-X``, ``I-X`` and ``O``, else over the classes.

    An entity is right if its words and its type are (CoNLL-2003, Tjong Kim Sang and De Meulder 2003).

    Args:
        predicted, labels: class numbers of the words of each sentence.
    """
    import numpy as np

    every, wanted = np.concatenate(predicted), np.concatenate(labels)
    accuracy = {"accuracy": float((every == wanted).mean())}
    if not all(name == "O" or name[:2] in ("B-", "I-") for name in classes):
        return {**accuracy, **classification(every, wanted, max(3, len(classes)))}
    right = found = true = 0
    for guess, truth in zip(predicted, labels, strict=True):
        ours, theirs = (entities([classes[i] for i in row]) for row in (guess, truth))
        right, found, true = right + len(ours & theirs), found + len(ours), true + len(theirs)
    return {**accuracy, "f1": 2 * right / (found + true) if found + true else 0.0}


def entities(tags: Sequence[str]) -> set[tuple[int, int, str]]:
    """First word, word after the last and type of each entity; ``I-X`` that follows no X begins one, as in conlleval.

    >>> sorted(entities(["B-PER", "I-PER", "O", "I-LOC", "B-LOC", "I-ORG"]))
    [(0, 2, 'PER'), (3, 4, 'LOC'), (4, 5, 'LOC'), (5, 6, 'ORG')]
    """
    found: set[tuple[int, int, str]] = set()
    begin, kind = 0, ""
    for index, tag in enumerate([*tags, "O"]):
        continues = tag[:2] == "I-" and tag[2:] == kind
        if kind and not continues:
            found.add((begin, index, kind))
            kind = ""
        if tag != "O" and not continues:
            begin, kind = index, tag[2:]
    return found


def perplexity(loss: float) -> float:
    """The exponential of a mean loss per token, in nats; infinite where that is no number of Python's.

    >>> perplexity(0.0), perplexity(1e4)
    (1.0, inf)
    """
    return math.exp(loss) if not loss > 700 else math.inf


def answers(pairs: Sequence[tuple[str, Sequence[str]]]) -> dict[str, float]:
    """Exact match and F1 of answers, as SQuAD defines them: the mean over the questions of the best score over the right answers.

    Without right answers, an empty one scores 1 and any other 0 (Rajpurkar et al. 2016 and 2018, 1606.05250 and 1806.03822).

    Args:
        pairs: a predicted answer and the right ones, for each question.

    >>> answers([("the Eiffel Tower", ["Eiffel Tower!"]), ("in Paris", ["Paris", "France"]), ("", [])])["exact_match"]
    0.6666666666666666
    """
    known = [(_words(p), [words for r in right if (words := _words(r))] or [[]]) for p, right in pairs]
    exact = [max(float(p == r) for r in right) for p, right in known]
    f1 = [max(_overlap(p, r) for r in right) for p, right in known]
    count = max(1, len(pairs))
    return {"exact_match": sum(exact) / count, "f1": sum(f1) / count}


def _words(text: str) -> list[str]:
    """The words of an answer without case, punctuation and articles."""
    kept = "".join(character for character in text.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", kept).split()


def _overlap(predicted: list[str], right: list[str]) -> float:
    if not predicted or not right:
        return float(predicted == right)
    common = sum((Counter(predicted) & Counter(right)).values())
    return 2 * common / (len(predicted) + len(right))

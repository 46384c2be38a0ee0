"""Scores against their definitions, computed here from counts."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bellwether.trainer import scores
from bellwether.trainer.best import BestEvaluation
from bellwether.trainer.config import Target

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("count", [7, 50, 400])
def test_scores_of_two_classes(count: int) -> None:
    labels, predicted = RANDOM.integers(0, 2, (2, count))
    tp, tn = (int(((labels == c) & (predicted == c)).sum()) for c in (1, 0))
    fp, fn = int((predicted > labels).sum()), int((predicted < labels).sum())
    found = scores.score(["no", "yes"], np.eye(2)[predicted], labels)
    assert found["f1"] == pytest.approx(2 * tp / (2 * tp + fp + fn))
    # Matthews 1975.
    matthews = (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert found["matthews"] == pytest.approx(matthews)
    assert set(found) == {"f1", "matthews"}


def test_single_class_has_scores_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    ones = np.ones(3, dtype=np.int64)
    assert scores.classification(ones, ones, 2) == {"f1": 1.0, "matthews": 0.0}
    assert scores.classification(ones[:1], ones[:1] * 0, 3) == {"f1_macro": 0.0, "matthews": 0.0}
    assert not recwarn.list


def test_macro_f1_is_the_mean_over_the_classes() -> None:
    labels, predicted = RANDOM.integers(0, 4, (2, 100))
    each = [
        2 * ((labels == c) & (predicted == c)).sum() / ((labels == c).sum() + (predicted == c).sum()) for c in range(4)
    ]
    found = scores.score(list("abcd"), np.eye(4)[predicted], labels)
    assert found["f1_macro"] == pytest.approx(np.mean(each))
    by_class = scores.by_class(list("abcd"), predicted, labels)
    assert [row["f1"] for row in by_class.values()] == pytest.approx(each)
    assert [row["examples"] for row in by_class.values()] == [(labels == c).sum() for c in range(4)]


def test_scores_of_a_regression() -> None:
    labels = RANDOM.normal(size=60)
    predicted = labels**3 + 0.1 * RANDOM.normal(size=60)
    found = scores.score(None, predicted, labels)
    assert found["pearson"] == pytest.approx(np.corrcoef(predicted, labels)[0, 1])
    ranks = [np.argsort(np.argsort(side)) for side in (predicted, labels)]
    assert found["spearman"] == pytest.approx(np.corrcoef(*ranks)[0, 1])


@pytest.mark.parametrize(
    ("predicted", "labels"),
    [(np.ones(5), np.arange(5.0)), (np.arange(5.0), np.ones(5)), (np.array([1.0]), np.array([2.0]))],
)
def test_constant_predictions_have_no_correlation(predicted: scores.Array, labels: scores.Array) -> None:
    assert scores.regression(predicted, labels) == {"pearson": 0.0, "spearman": 0.0}


def test_lowest_loss_is_the_best() -> None:
    best = BestEvaluation("loss")
    assert [best.update(step, {"loss": loss}) for step, loss in enumerate([2.0, 1.0, math.nan, 1.5, 0.5])] == [
        True, True, False, False, True,
    ]  # fmt: skip
    assert (best.step, best.value, best.since) == (4, 0.5, 0)


def test_score_that_was_not_measured_is_never_the_best() -> None:
    best = BestEvaluation("f1")
    assert not best.update(1, {"loss": 1.0})
    assert best.step == -1


def test_perplexity_is_better_when_lower() -> None:
    best = BestEvaluation("perplexity")
    assert [best.update(step, {"perplexity": value}) for step, value in enumerate([90.0, 80.0, 85.0])] == [
        True, True, False,
    ]  # fmt: skip
    assert Target.parse("perplexity <= 80").holds({"perplexity": 79.5})
    assert not Target.parse("val/perplexity_cache <= 80").holds({"perplexity": 79.5})
    with pytest.raises(ValueError, match="a loss or a perplexity at most; write 'perplexity <= 80'"):
        Target.parse("perplexity >= 80")
    with pytest.raises(ValueError, match=r"write 'f1 >= 0\.5'"):
        Target.parse("f1 <= 0.5")


TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
# Truth, prediction, and the numbers of entities that are in both, predicted and true; counted by hand.
SENTENCES = [
    ("B-PER I-PER O B-LOC", "B-PER I-PER O B-LOC", (2, 2, 2)),
    ("B-PER I-PER O B-LOC", "B-PER O O B-LOC", (1, 2, 2)),  # too short
    ("B-PER I-PER O O", "B-PER I-LOC O O", (0, 2, 1)),  # I-LOC begins an entity
    ("B-LOC B-LOC O", "B-LOC I-LOC O", (0, 1, 2)),
    ("O O O", "O I-PER I-PER", (0, 1, 0)),
]


@pytest.mark.parametrize("case", range(len(SENTENCES)))
def test_entities_are_right_as_a_whole(case: int) -> None:
    truth, guess, (right, found, true) = SENTENCES[case]
    labels, predicted = (np.array([TAGS.index(tag) for tag in tags.split()]) for tags in (truth, guess))
    scored = scores.tokens(TAGS, [predicted], [labels])
    assert scored["f1"] == pytest.approx(2 * right / (found + true))
    assert scored["accuracy"] == pytest.approx(np.mean(labels == predicted))


def test_classes_without_entities_have_macro_f1() -> None:
    labels, predicted = RANDOM.integers(0, 3, (2, 40))
    found = scores.tokens(["noun", "verb", "other"], [predicted], [labels])
    assert found == {**scores.classification(predicted, labels, 3), "accuracy": np.mean(labels == predicted)}

"""The ranking of optimizers, against values by hand, all changes of signs, and simulations in which the truth is known."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from bellwether import cli
from bellwether.experiments import report
from bellwether.experiments.analysis.aggregate import group_trials
from bellwether.experiments.analysis.comparison import Comparison, compare, holm, p_value
from bellwether.experiments.sweep.measurements import Target, Trial, write

TARGET = Target("val/accuracy", 0.9, True)
INF = math.inf


def trial(optimizer: str, seed: int, steps: float, batch: int = 64, lr: float = 0.1, speed: float = 50.0) -> Trial:
    """A run that reaches the target after so many steps; one that never does makes 1,000."""
    last, accuracy = (int(steps), 0.9) if math.isfinite(steps) else (1000, 0.5)
    rows = [{"step": last, "samples": last * batch, "val/accuracy": accuracy, "train/samples_per_s": speed}]
    return Trial(0, "digits", "resnet", optimizer, batch, seed, "complete", {"optimizer.lr": lr}, rows)


def numbered(trials: Sequence[Trial]) -> list[Trial]:
    return [replace(each, trial=number) for number, each in enumerate(trials)]


def ranked(trials: Sequence[Trial]) -> Comparison:
    found = compare({"sweep": group_trials(numbered(trials), TARGET)}, lambda run: run.steps)
    assert found is not None
    return found


def raced(times: Mapping[str, Sequence[float]], batch: int = 64) -> list[Trial]:
    """The trials of optimizers with one setting each: a time for each seed."""
    return [trial(name, seed, steps, batch) for name, of_seeds in times.items() for seed, steps in enumerate(of_seeds)]


def test_profile_score_rank_and_ratio_by_hand() -> None:
    found = ranked(raced({"a": [100, 100, 300, INF], "b": [200, 100, 100, 500]}))
    a, b = (next(each for each in found.standings if each.name == name) for name in "ab")
    # Ratios: a 1, 1, 3, inf; b 2, 1, 1, 1.
    assert found.profile("a", np.array([1.0, 2.9, 3.0, 4.0])).tolist() == [0.5, 0.5, 0.75, 0.75]
    assert found.profile("b", np.array([1.0, 2.0])).tolist() == [0.75, 1.0]
    assert (a.score, b.score) == (pytest.approx((3 + 3 + 1 + 0) / 12), pytest.approx((2 + 3 + 3 + 3) / 12))
    assert (a.rank, b.rank) == ((1 + 1.5 + 2 + 2) / 4, (2 + 1.5 + 1 + 1) / 4)
    assert (a.reached, b.reached) == (3, 4)
    assert (a.ratio, b.ratio) == (2.0, 1.0)
    assert [each.name for each in found.standings] == ["b", "a"]


def test_score_is_the_mean_height_of_the_profile() -> None:
    generator = np.random.default_rng(0)
    found = ranked(raced({name: generator.integers(50, 500, 9).tolist() for name in "abc"}))
    grid = np.linspace(1, 4, 30_001)
    for standing in found.standings:
        assert standing.score == pytest.approx(found.profile(standing.name, grid).mean(), abs=1e-3)


def test_p_value_is_that_of_all_changes_of_signs() -> None:
    differences = np.array([-0.3, -0.1, 0.2, -0.2, -INF, 0.05, -0.4])
    ranks = stats.rankdata([0.3, 0.1, 0.2, 0.2, 9.0, 0.05, 0.4])
    observed = ranks @ np.sign(differences)
    extreme = [abs(ranks @ np.array(signs)) >= abs(observed) - 1e-9 for signs in itertools.product((-1, 1), repeat=7)]
    assert p_value(differences) == pytest.approx(sum(extreme) / 128)


@pytest.mark.parametrize(
    ("differences", "p"),
    [([0.0, 0.0, 0.0], 1.0), ([-INF, -INF, 0.0], 0.5), ([-0.1] * 10, 2 / 1024), ([], 1.0)],
    ids=["equal", "two misses of the other", "ten wins", "no race"],
)  # fmt: skip
def test_p_value_of_ties_and_misses(differences: list[float], p: float) -> None:
    assert p_value(np.array(differences)) == pytest.approx(p)


def test_p_value_without_ties_is_scipys_exact_one() -> None:
    differences = np.random.default_rng(1).normal(0.3, 1.0, 12)
    assert p_value(differences) == pytest.approx(stats.wilcoxon(differences, method="exact").pvalue)


def test_holm_by_hand() -> None:
    assert holm([0.001, 0.2, 0.02, 0.02]) == pytest.approx([0.004, 0.2, 0.06, 0.06])
    assert holm([0.6, 0.9]) == [1.0, 1.0]


def test_clear_order_gives_each_its_place() -> None:
    times = {"c": [300 + s for s in range(10)], "a": [100 + s for s in range(10)], "b": [200 + s for s in range(10)]}
    found = ranked(raced(times))
    assert [(each.name, each.places) for each in found.standings] == [("a", (1, 1)), ("b", (2, 2)), ("c", (3, 3))]
    assert {pair.winner for pair in found.pairs} == {"a", "b"}


def test_equal_optimizers_share_all_places() -> None:
    generator = np.random.default_rng(2)
    found = ranked(raced({name: generator.integers(90, 110, 8).tolist() for name in "abc"}))
    assert {each.places for each in found.standings} == {(1, 3)}


def test_places_hold_together_as_often_as_they_say() -> None:
    """Of 150 sweeps of four equal optimizers at most 10 % may call any of them faster; 23 of 150 would be 4 % by chance."""
    generator, wrong = np.random.default_rng(3), 0
    for _ in range(150):
        # The seeds differ, which all optimizers share, and each run has its own noise.
        seeds = generator.normal(0, 0.3, 8)
        times = {name: np.exp(7 + seeds + generator.normal(0, 0.1, 8)).tolist() for name in "abcd"}
        wrong += any(pair.winner for pair in ranked(raced(times)).pairs)
    assert wrong < 23


def test_missed_races_count_against_an_optimizer_however_fast_it_is_else() -> None:
    found = ranked(raced({"fast": [100, INF] * 6, "sure": [150] * 12}))
    assert [each.name for each in found.standings] == ["sure", "fast"]
    assert found.pairs[0].winner is None  # six races each


def test_seed_of_the_search_is_left_out() -> None:
    lucky = [trial("a", 0, 50, lr=0.1), trial("a", 0, 60, lr=0.2), trial("a", 1, 200), trial("a", 2, 210)]
    other = [
        trial("b", 0, 100, lr=0.3),
        trial("b", 0, 130, lr=0.4),
        trial("b", 1, 110, lr=0.3),
        trial("b", 2, 120, lr=0.3),
    ]
    found = ranked(lucky + other)
    assert [(race.seed, race.times) for race in found.races] == [(1, {"a": 200, "b": 110}), (2, {"a": 210, "b": 120})]


def test_batch_sizes_are_races_of_their_own() -> None:
    found = ranked(raced({"a": [100, 90], "b": [110, 95]}) + raced({"a": [60], "b": [50]}, batch=128))
    assert [(race.batch, race.seed) for race in found.races] == [(64, 0), (64, 1), (128, 0)]


@pytest.mark.parametrize(
    ("trials", "note"),
    [
        (raced({"a": [1, 2, 3], "b": [2, 3, 4]}), "only 3 seeds at some batch size"),
        (
            raced({"a": [1, 2, 3], "b": [2, 3, 4], "c": [3, 4, 5]}),
            "3 races cannot tell 3 optimizers apart: 6 are the least",
        ),
        ([*raced({"a": [1, 2], "b": [2, 3]}), trial("a", 0, 9, lr=0.3)], "numbers of settings differ"),
        ([*raced({"a": [1, 2], "b": [2, 3]}), trial("a", 0, 9, lr=0.3)], "the best learning rate of a is the lowest"),
        (raced({"a": [1, INF], "b": [2, INF]}), "in 1 of 2 races nobody reached the target"),
        (raced({"a": [1, 2], "b": [2]}), "b lacks seeds that others ran on"),
    ],
)
def test_what_weakens_a_comparison_is_named(trials: list[Trial], note: str) -> None:
    assert any(note in text for text in ranked(trials).notes)


def test_good_comparison_has_no_notes() -> None:
    assert ranked(raced({"a": [1, 2, 3, 4, 5, 6, 7], "b": [2, 3, 4, 5, 6, 7, 8]})).notes == []


def stored(path: Path, trials: Sequence[Trial], target: str | None = "accuracy >= 0.9") -> Path:
    path.mkdir()
    write(path / "measurements.csv", numbered(trials))
    if target is not None:
        (path / "sweep.yaml").write_text(f"name: {path.name}\ntarget: {target}\n")
    return path


CLEAR = {"adamw": [200 + s for s in range(8)], "lamb": [100 + s for s in range(8)]}


def test_command_prints_places_and_draws_the_profiles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = stored(tmp_path / "sweep", raced(CLEAR))
    assert cli.main(["compare", str(path)]) == 0
    out = capsys.readouterr().out
    assert "8 races (1 batch sizes), by steps" in out
    assert "lamb before adamw (p up to 0.0078)" in out
    assert (path / "compare.png").stat().st_size > 5000


def test_command_joins_sweeps_and_prints_json_that_any_parser_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [stored(tmp_path / name, raced({"a": [10, INF], "b": [20, INF]})) for name in ("one", "two")]
    assert cli.main(["compare", *map(str, paths), "--json", "--output", str(tmp_path / "x.png")]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=lambda text: pytest.fail(text))
    assert [race["times"] for race in found["races"]] == [{"a": 10, "b": 20}, {"a": None, "b": None}] * 2
    assert {race["workload"] for race in found["races"]} == {"one", "two"}
    assert (tmp_path / "x.png").exists()


def test_seconds_use_the_measured_throughput(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slow = [trial("muon", seed, 100 + seed, speed=10.0) for seed in range(8)]
    fast = [trial("lamb", seed, 200 + seed, speed=100.0) for seed in range(8)]
    path = stored(tmp_path / "sweep", slow + fast)
    for by, first in (("steps", "muon"), ("seconds", "lamb")):
        assert cli.main(["compare", str(path), "--by", by, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["standings"][0]["name"] == first


@pytest.mark.parametrize(
    ("trials", "target", "message"),
    [
        (raced(CLEAR), None, "has no target"),
        (raced({"a": [1, 2]}), "accuracy >= 0.9", "no two optimizers have run on the same batch size and seed"),
        (raced(CLEAR), "loss <= 2", "no run measured val/loss"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    trials: list[Trial], target: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["compare", str(stored(tmp_path / "sweep", trials, target))]) == 2
    assert message in capsys.readouterr().err


def test_picture_is_not_written_over_a_table_and_a_missing_sweep_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = stored(tmp_path / "sweep", raced(CLEAR)) / "measurements.csv"
    before = path.read_bytes()
    assert cli.main(["compare", str(path.parent), "--output", str(path)]) == 2
    assert "--output" in capsys.readouterr().err
    assert path.read_bytes() == before
    for name in ("none", "none.csv"):
        assert cli.main(["compare", str(tmp_path / name)]) == 2
        assert f"'{tmp_path / name}': does not exist" in capsys.readouterr().err


def test_report_of_a_sweep_ranks_its_optimizers(tmp_path: Path) -> None:
    path = stored(tmp_path / "sweep", raced(CLEAR))
    page = report.write(path, report.load(path)).read_text()
    assert "Which optimizer is first" in page
    assert (path / "plots" / "compare.png").exists()
    alone = stored(tmp_path / "alone", raced({"a": [1, 2]}))
    assert "Which optimizer is first" not in report.write(alone, report.load(alone)).read_text()

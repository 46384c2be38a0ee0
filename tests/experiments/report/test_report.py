"""The report of a sweep: its numbers against hand-computed ones, and pages of complete, sparse and hostile tables."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bellwether import cli
from bellwether.experiments import report
from bellwether.experiments.analysis.aggregate import Cell, default_metric, group_trials
from bellwether.experiments.analysis.outcome import EarlyStop
from bellwether.experiments.report import panels, pictures
from bellwether.experiments.report.facts import Facts, Throughput
from bellwether.experiments.report.lr_scaling import law
from bellwether.experiments.report.panels import shown
from bellwether.experiments.sweep.measurements import Target, Trial, write
from bellwether.trainer.config import ConfigErrors, Duration
from tests.tiers import covering
from tests.trainer.test_report import Page, Run

TARGET = Target("val/accuracy", 0.9, True)
NAME = "<b>\"lamb'</b>&amp;"


def trial(
    number: int, batch: int = 64, steps: float = 10, optimizer: str = "lamb", lr: float = 0.1, seed: int = 0,
    status: Any = "complete", best: float = 0.8, **more: Any,
) -> Trial:  # fmt: skip
    """A run that reaches the target after `steps`; if they are infinite, it reaches `best` in 100 steps."""
    reached = math.isfinite(steps)
    rows: list[dict[str, float]] = [{"step": 1, "samples": batch, "val/accuracy": 0.1, "train/samples_per_s": 50.0}]
    last = int(steps) if reached else 100
    rows.append({"step": last, "samples": last * batch, "val/accuracy": 0.9 if reached else best})
    parameters = {"optimizer.lr": lr, **more.pop("parameters", {})}
    return Trial(
        number, "digits", "resnet", optimizer, batch, seed, status, parameters, rows, run=f"trials/{number:04}", **more
    )


def numbered(trials: Sequence[Trial]) -> list[Trial]:
    return [replace(t, trial=i, run=f"trials/{i:04}") for i, t in enumerate(trials)]


def facts(trials: Sequence[Trial], target: Target | None = TARGET, root: Path = Path(), **more: Any) -> Facts:
    return Facts("sweep", root, numbered(trials), target, **more)


def curve(s_min: float = 6400, b_crit: float = 256, optimizer: str = "lamb", power: float = 0.5) -> list[Trial]:
    """Five batches, five lrs, three seeds; the best lr is the middle one, 0.01 (B / 64)^power."""
    made = []
    for batch in (64, 128, 256, 512, 1024):
        for place in (-2, -1, 0, 1, 2):
            for seed in (0, 1, 2):
                steps = round((s_min / batch + s_min / b_crit) * (1 + 0.2 * place**2) + seed - 1)
                lr = 0.01 * (batch / 64) ** power * 2.0**place
                made.append(trial(0, batch, steps, optimizer, lr, seed))
    return made


# Median over the seeds, where a miss is infinite: of three one may miss, of two neither.
MEDIANS = [
    ([10, 30, 20], 20), ([10, 20], 15), ([10, 30, math.inf], 30), ([10, math.inf], math.inf),
    ([10, math.inf, math.inf], math.inf), ([math.inf], math.inf),
]  # fmt: skip


@pytest.mark.parametrize(("steps", "median"), MEDIANS)
def test_the_median_counts_a_miss_as_infinite(steps: list[float], median: float) -> None:
    [cell] = group_trials([trial(i, steps=s, seed=i) for i, s in enumerate(steps)], TARGET)
    assert cell.best.steps == median
    assert cell.best.samples == 64 * median
    assert cell.reached == math.isfinite(median)


def test_failed_and_unfinished_runs_do_not_count_and_pruned_ones_missed() -> None:
    states = ["failed", "unfinished", "diverged", "pruned", "complete"]
    runs = [trial(i, steps=math.inf, seed=i, status=state) for i, state in enumerate(states)]
    [cell] = group_trials([*runs, trial(9, steps=40, seed=9, status="failed")], TARGET)
    assert [run.verdict for run in cell.best.runs] == [
        "failed",
        "unfinished",
        "diverged",
        "pruned",
        "missed",
        "reached",
    ]
    assert len(cell.best.valid_runs) == 4
    [cell] = group_trials(runs[:2], TARGET)
    assert (cell.best.valid_runs, cell.reached) == ([], False)
    assert facts(runs).verdicts == {"missed": 1, "pruned": 1, "diverged": 1, "failed": 1, "unfinished": 1}


def test_run_ended_at_the_sweeps_target_does_not_miss_a_stricter_one() -> None:
    strict = Target("val/accuracy", 0.95, True)
    missed, beaten = trial(0, 128, math.inf), trial(0, 128, math.inf, lr=0.2, status="pruned")
    made = facts([trial(0), trial(0, 128, 20, lr=0.3), missed, beaten], strict, own=EarlyStop(TARGET, {}))
    assert made.verdicts == {"missed": 1, "ended early": 2, "pruned": 1}
    assert [cell.missed for cell in made.cells] == [False, False]  # what was best at 128 was not let go on
    summary = report.summary(made, Path("report.html"))
    assert "ended at the sweep's own target, val/accuracy >= 0.9, and do not count" in summary
    assert "at batch 128: no result: 1 missed, 1 ended early, 1 pruned" in summary
    assert "missed at batch" not in summary
    # Without a target of the sweep nothing ended them.
    assert facts([trial(0)], strict).verdicts == {"missed": 1}
    # A run that got further than the target counts.
    assert facts([trial(0)], TARGET, own=EarlyStop(TARGET, {})).verdicts == {"reached": 1}
    # A run that reached the sweep's target at the last step of its budget was not ended by it.
    for steps, verdict in [(10, "missed"), (11, "ended early")]:
        own = EarlyStop(TARGET, {"lamb": Duration(64 * steps, "samples")})
        assert facts([trial(0, steps=10)], strict, own=own).verdicts == {verdict: 1}


STANDING = [
    (["unfinished"], "no result yet: 1 unfinished"),
    (["failed", "failed"], "no result: 2 failed"),
    (["missed", "unfinished"], "missed so far"),
    (["missed", "failed"], "missed"),
    (["reached", "missed"], "1 of 2 seeds reached"),
    (["reached", "missed", "unfinished"], "1 of 2 seeds reached so far"),
]


@pytest.mark.parametrize(("ends", "expected"), STANDING, ids=[" ".join(ends) for ends, _ in STANDING])
def test_only_completed_runs_can_miss(ends: list[str], expected: str) -> None:
    runs = [
        trial(0, 128, 20 if end == "reached" else math.inf, seed=i, status=end if end in ("failed", "unfinished") else "complete")
        for i, end in enumerate(ends)
    ]  # fmt: skip
    made = facts([trial(0), *runs])
    assert made.cells[1].shortfall == expected
    [note] = [note for note in made.series[0].notes if "128" in note]
    assert note == (
        "the target was missed at batch 128: the steps needed there are unknown" if expected == "missed"
        else f"at batch 128: {expected}"
    )  # fmt: skip
    assert f"lamb    {expected}" in report.summary(facts(runs), Path("report.html")).replace("  \n", "\n")


def test_report_of_running_sweep_counts_the_runs_to_come(tmp_path: Path) -> None:
    asked = "name: s\nconfig: a.yaml\nbatches: [64, 128]\nspace: {optimizer.lr: [0.1, 0.2]}\nsearch: {kind: grid}\nseeds: 2\nrepeat: all\n"
    path = directory(tmp_path / "sweep", [trial(0), trial(1, 128, math.inf, status="unfinished")], asked)
    assert report.load(path).to_come == 0  # a table without its runs
    (path / "trials").mkdir(exist_ok=True)
    for begun in ("config-64-000-0.yaml", "config-128-000-0.yaml"):
        (path / "trials" / begun).touch()
    made = report.load(path, "accuracy >= 0.9")
    assert (made.planned, made.to_come) == (8, 6)
    assert report.summary(made, path).startswith("s: 2 of 8 runs,")
    text = Page(report.write(path, made).read_text(encoding="utf-8")).text
    assert "2 of 8 runs have begun. Runs that have not ended: 1. The results may change." in text
    assert facts([trial(0)]).notes == []


def best(*runs: Trial) -> Any:
    [cell] = group_trials(runs, TARGET)
    return cell.best.parameters["optimizer.lr"]


def test_best_setting_has_the_least_median_among_the_most_repeated() -> None:
    lucky, other = trial(0, steps=9, lr=0.2), trial(1, steps=30, lr=0.3)
    seeds = [trial(2 + s, steps=10 + s, lr=0.1, seed=s) for s in range(3)]
    assert best(lucky, other) == 0.2
    assert best(lucky, other, *seeds) == 0.1
    # A setting whose second and third seed missed beats one that was never repeated ...
    missed = [replace(run, measurements=run.measurements[:1]) for run in seeds[1:]]
    assert best(other, seeds[0], *missed) == 0.1
    # ... but a repeated setting that always missed does not beat one that reached the target.
    assert best(other, *[replace(run, measurements=run.measurements[:1]) for run in seeds]) == 0.3
    # If nothing reached the target, the nearest is the best.
    assert best(trial(0, steps=math.inf, best=0.7), trial(1, steps=math.inf, best=0.8, lr=0.5)) == 0.5


def test_fit_recovers_a_curve_and_misses_are_noted() -> None:
    made = facts([*curve(), *[trial(0, 2048, math.inf, lr=0.01, seed=s) for s in range(3)]])
    [series] = made.series
    assert series.fit is not None
    assert series.fit.b_crit == pytest.approx(256, rel=0.03)  # steps are whole numbers
    assert (series.fit.batches, series.fit.missed) == (6, 3)
    band = series.fit.band(np.array([256.0]))
    assert band is not None
    assert 0 < band[0][0] < band[1][0]
    assert any("missed at batch 2,048" in note for note in series.notes)
    [alone] = facts([trial(0), trial(1, steps=math.inf, seed=1), trial(2, seed=2)]).series
    assert alone.fit is None
    assert "reached at one batch alone:" in alone.notes[0]
    assert any("1 seed of best settings missed" in note for note in alone.notes)


def test_best_lr_follows_a_power_with_the_error_of_the_search() -> None:
    [series] = facts(curve(power=0.5)).series
    assert series.law is not None
    assert series.law.exponent == pytest.approx(0.5)
    # Steps of a factor of two, at five batches of a factor of two: ln 2 / sqrt(12) / (ln 2 sqrt(10)).
    assert series.law.error == pytest.approx(1 / math.sqrt(120))
    assert series.law.interval == pytest.approx((0.5 - 2.35 / math.sqrt(120), 0.5 + 2.35 / math.sqrt(120)))
    assert (series.law.edges, series.law.notes) == ([], [])
    # Without the two largest lrs of each batch the best is at an end of the range.
    narrow = [t for t in curve() if t.parameters["optimizer.lr"] <= 0.0101 * (t.batch_size / 64) ** 0.5]  # type: ignore[operator]
    [series] = facts(narrow).series
    assert series.law is not None
    assert series.law.edges == [(b, "highest") for b in (64, 128, 256, 512, 1024)]
    assert "highest that was tried at batch 64, 128" in series.law.notes[0]


def test_zero_exponent_has_no_sign() -> None:
    # Best lrs that hardly fall as the batch grows.
    runs = [trial(0, b, 10 + 5 * i, lr=lr * b**-0.001) for b in (64, 128, 256) for i, lr in enumerate((0.1, 0.2))]
    made = facts(runs)
    assert made.series[0].law is not None
    assert -0.005 < (made.series[0].law.exponent or 0) < 0
    assert "to the power 0.00 ±" in report.summary(made, Path("report.html"))


def test_diverged_lr_bounds_the_search_and_a_single_lr_is_no_search() -> None:
    tried = [trial(0, lr=0.1), trial(1, lr=0.05, steps=30)]
    [cell] = group_trials(tried, TARGET)
    assert cell.lr_edge == "highest"
    [cell] = group_trials([*tried, trial(2, lr=0.2, steps=math.inf, status="diverged")], TARGET)
    assert cell.lr_edge is None
    [cell] = group_trials([*tried, trial(2, lr=0.2, steps=math.inf, status="failed")], TARGET)
    assert cell.lr_edge == "highest"
    assert law(group_trials([trial(0), trial(1, batch=128)], TARGET)) is None


def test_time_and_cost() -> None:
    # 3,600 samples at the median; 50 samples a second are measured.
    runs = [trial(i, 10, steps, seed=i, processes=4) for i, steps in enumerate((300, 360, 900))]
    bill = _bill(facts(runs, price=2.5))
    assert bill.hours == pytest.approx(3600 / 50 / 3600)
    assert bill.process_hours == pytest.approx(4 * bill.hours)
    assert bill.cost == pytest.approx(2.5 * 4 * bill.hours)
    # Given for one process: four of them are four times as fast.
    assert _bill(facts(runs, throughput=Throughput(10.0))).hours == pytest.approx(3600 / 40 / 3600)
    assert _bill(facts(runs, throughput=Throughput({10: 20.0}))).hours == pytest.approx(3600 / 80 / 3600)
    other = facts(runs, throughput=Throughput({11: 20.0}))
    assert other.bill(other.cells[0]) is None


def _bill(made: Facts) -> Any:
    return made.bill(made.cells[0])


def gridded(optimizer: str = "adamw", batch: int = 64, count: int = 9) -> list[Trial]:
    pairs = [(lr, decay) for lr in (0.1, 0.01, 0.001) for decay in (0, 1e-4, 1e-2)][:count]
    return [
        trial(0, batch, math.inf, optimizer, lr, best=0.5 + lr + decay, parameters={"optimizer.weight_decay": decay})
        for lr, decay in pairs
    ]


def test_grid_of_two_numbers_is_distinguished_from_random_search() -> None:
    [grid] = facts(gridded(count=8)).grids
    assert (grid.x, grid.y) == ("optimizer.lr", "optimizer.weight_decay")
    assert (grid.xs, grid.ys) == ([0.001, 0.01, 0.1], [0, 1e-4, 1e-2])
    assert grid.settings[0.1, 1e-4].mean == pytest.approx(0.6001)
    assert len(grid.settings) == 8
    scattered = [trial(i, lr=0.1 * i, parameters={"optimizer.weight_decay": 0.01 * i}) for i in range(1, 6)]
    assert facts(scattered).grids == []
    assert facts(curve()).grids == []
    words = [replace(t, parameters={**t.parameters, "schedule": f"s{i % 2}"}) for i, t in enumerate(gridded())]
    assert facts(words).grids == []
    many = facts([t for batch in range(1, 60) for t in gridded(batch=batch)]).grids
    assert (len(many), len(shown(many))) == (59, 24)


def test_without_target_settings_are_compared_by_a_measured_metric() -> None:
    runs = gridded()
    made = facts(runs, None)
    assert (made.metric.metric, made.metric.at_least) == ("val/accuracy", True)
    assert made.cells[0].best.parameters == {"optimizer.lr": 0.1, "optimizer.weight_decay": 0.01}
    assert made.verdicts == {"complete": 9}
    losses = [replace(t, measurements=[{"step": 1, "samples": 64, "val/loss": float(i)}]) for i, t in enumerate(runs)]
    assert default_metric(losses).metric == "val/loss"
    assert facts(losses, None).cells[0].best.mean == 0


def test_mean_and_deviation_over_the_seeds() -> None:
    values = (0.7, 0.8, 0.6)
    [cell] = group_trials([trial(i, steps=math.inf, seed=i, best=v) for i, v in enumerate(values)], TARGET)
    assert cell.best.mean == pytest.approx(0.7)
    assert cell.best.std == pytest.approx(0.1)
    assert cell.best.median_run.best == 0.7
    assert cell.best_value == 0.8


def test_captions_describe_only_what_is_drawn() -> None:
    whole = facts([*curve(), trial(0, 2048, math.inf)])
    assert pictures.steps_note(whole) == (
        "median and range over the seeds; pale dots: other settings; missed: more than the most that was tried"
    )
    assert "; band: 90 %; " in pictures.samples_note(whole)
    few = facts([trial(0), trial(0, 128)])
    assert pictures.steps_note(few) == pictures.samples_note(facts([trial(0)])) == "median and range over the seeds"
    assert pictures.samples_note(few).startswith("line: ")
    assert "band" not in pictures.samples_note(few)


def test_learning_curves_side_by_side_share_their_axes() -> None:
    made = facts([trial(0, best=0.2, steps=math.inf), trial(0, optimizer="sgd", best=0.6, steps=math.inf)], None)
    limits = []
    for index in range(2):
        chart = panels.course(index)(made)
        assert chart is not None
        limits.append((chart.ax.get_xlim(), chart.ax.get_ylim()))
    assert limits[0] == limits[1]
    assert limits[0][1][0] < 0.1 < 0.6 < limits[0][1][1]


def test_best_optimizer_at_each_batch() -> None:
    runs = [
        trial(0, 64, 20, "a"),
        trial(1, 64, 10, "b"),
        trial(2, 128, 5, "a"),
        trial(3, 128, math.inf, "b"),
        trial(4, 256, math.inf, "b"),
    ]
    won: dict[int, Cell] = facts(runs).winners
    assert {batch: cell.optimizer for batch, cell in won.items()} == {64: "b", 128: "a"}


def directory(path: Path, trials: Sequence[Trial], sweep: str = "target: accuracy >= 0.9\n") -> Path:
    """A sweep's directory, where every second run has a report."""
    path.mkdir(exist_ok=True)
    trials = numbered(trials)
    write(path / "measurements.csv", trials)
    (path / "sweep.yaml").write_text(sweep)
    for t in trials[::2]:
        (path / t.run).mkdir(parents=True)
        (path / t.run / "report.html").write_text("a run")
    return path


def test_page_where_half_of_the_seeds_missed_at_every_batch(tmp_path: Path) -> None:
    """Some seeds reached the target, so there is a fit, though no batch size reached it in the median."""
    runs = [trial(0, batch, 100 if seed else math.inf, seed=seed) for batch in (64, 128, 256) for seed in (0, 1)]
    path = directory(tmp_path / "sweep", runs, "target: accuracy >= 0.9\n")
    assert report.write(path, report.load(path)).exists()


def test_page_of_a_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [*curve(), *curve(9000, 700, NAME), *[trial(0, 2048, math.inf, best=0.87, seed=s) for s in range(3)]]
    runs[3] = replace(runs[3], status="failed", measurements=[])
    path = directory(tmp_path / "sweep", runs, f"target: accuracy >= 0.9\nname: {json.dumps(NAME)}\nprice: 3\n")
    assert cli.main(["report", str(path)]) == 0
    output = capsys.readouterr().out
    assert re.search(r"B_crit +2[456]\d, ", output)
    assert "149 reached, 3 missed, 1 failed" in output
    raw = (path / "report.html").read_text(encoding="utf-8")
    page = Page(raw)
    assert '<b>"' not in raw
    assert not re.findall(r"https?:|<script[^>]|@import", raw)
    links = [ref for ref in page.references if not ref.startswith(("#", "data:"))]
    assert len(links) > 300
    assert all((path / link).exists() for link in links)
    for part in (
        NAME,
        "training alone",
        "missed (best accuracy 0.87)",
        "Cost of the target",
        "perfect scaling",
        "missed",
        "#151",
    ):
        assert part in page.text, part
    assert len(page.ids) == len(set(page.ids))
    assert ">2,048</text>" in raw  # batch sizes in full, on the axes too
    assert sorted(file.stem for file in (path / "plots").iterdir()) == [
        "best-lr", "compare", "cost", "course-0", "course-1", "hours", "samples", "steps",
    ]  # fmt: skip
    # All colours are variables of the page.
    assert set(re.findall(r"(?:stroke|fill): (#[0-9a-f]+)", raw)) == set()
    before = raw
    assert cli.main(["report", str(path)]) == 0
    assert (path / "report.html").read_text(encoding="utf-8") == before


NAN = {"step": 1, "samples": 64, "val/accuracy": math.nan, "train/samples_per_s": math.inf}
TABLES = [
    ("nothing", [], "nothing has been measured yet"),
    ("one", [trial(0)], "the target was reached at one batch alone"),
    ("one that missed", [trial(0, steps=math.inf)], "missed (best accuracy 0.8)"),
    ("nothing finite", [replace(trial(i, 2**i), measurements=[NAN], status="diverged") for i in range(3)], "No run has measured val/accuracy"),
    ("no rows", [replace(trial(i), measurements=[], status="failed") for i in range(3)], "no result: 3 failed"),
    ("no lr", [replace(trial(i, 64 * (i + 1)), parameters={}) for i in range(3)], "3 batch sizes are few for a curve"),
    ("two workloads", [trial(0), replace(trial(1), model="bert", dataset="text")], "lamb (bert text)"),
    ("seven optimizers", [trial(0, b, 100, f"o{i}") for i in range(7) for b in (8, 16, 32)], "o6"),
    ("a grid", gridded() + gridded("adam"), "Two hyperparameters at once"),
]  # fmt: skip


@covering(lambda kind, target: bool(target) or kind == "seven optimizers")
@pytest.mark.parametrize(("kind", "trials", "expected"), TABLES, ids=[kind for kind, _, _ in TABLES])
@pytest.mark.parametrize("target", ["target: accuracy >= 0.9\n", ""])
def test_any_table_gets_a_page(tmp_path: Path, kind: str, trials: list[Trial], expected: str, target: str) -> None:
    path = directory(tmp_path / "sweep", trials, target)
    made = report.load(path)
    page = Page(report.write(path, made).read_text(encoding="utf-8"))
    assert report.summary(made, path)
    if target:
        assert expected in page.text


def test_report_of_large_sweep_is_small(tmp_path: Path) -> None:
    trials = [
        trial(0, 2**i, 1000 // (i + 1) + seed, f"o{o}", lr=0.001 * (k + 1), seed=seed)
        for o in range(3) for i in range(4, 12) for k in range(30) for seed in range(3)
    ]  # fmt: skip
    path = directory(tmp_path / "sweep", trials)
    assert report.write(path, report.load(path)).stat().st_size < 3_000_000


def test_report_of_a_table_is_next_to_it_and_overwrites_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("back.csv", "a.parquet"):
        write(tmp_path / name, numbered(curve()))
        assert cli.main(["report", str(tmp_path / name), "--target", "val/accuracy >= 0.9"]) == 0
    pages = [tmp_path / "a.report.html", tmp_path / "back.report.html"]
    assert sorted(tmp_path.glob("*.html")) == pages
    assert all("B_crit" in page.read_text(encoding="utf-8") for page in pages)
    assert not (tmp_path / "plots").exists()
    pages[1].write_text("<p>mine</p>")
    assert cli.main(["report", str(tmp_path / "back.csv")]) == 2
    assert "is in the way" in capsys.readouterr().err
    assert pages[1].read_text() == "<p>mine</p>"


REFUSED = [
    (["run", "--price", "2"], "--price: 2.0: is for sweeps"),
    (["run", "--throughput", "8=2"], "--throughput: {8: 2.0}: is for sweeps"),
    (["run", "--runs"], "--runs: True: is for sweeps"),
    (["sweep", "--target", "good"], "--target: 'good': is not a target"),
    (["nowhere"], "neither a run directory"),
    (["empty"], "nothing has been measured yet"),
    (["broken"], "sweep.yaml: price: 'dear': must be a number"),
    (["sweep/sweep.yaml"], "has an unknown suffix"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "words"), REFUSED, ids=[" ".join(arguments) for arguments, _ in REFUSED])
def test_wrong_arguments_are_config_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    for name in ("run", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "run" / "config.yaml").write_text("name: a\n")
    (tmp_path / "empty" / "sweep.yaml").write_text("name: a\n")
    directory(tmp_path / "sweep", [trial(0)])
    directory(tmp_path / "broken", [trial(0)], "price: dear\n")
    assert cli.main(["report", str(tmp_path / arguments[0]), *arguments[1:]]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error


@pytest.mark.parametrize("option", ["--price=-1", "--price=nan", "--throughput=0", "--throughput=8=", "--throughput=a"])
def test_invalid_numbers_are_rejected(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["report", "runs/sweep", option])
    assert "expected" in capsys.readouterr().err


def test_links_stay_inside_the_sweep(tmp_path: Path) -> None:
    (tmp_path / "a #1").mkdir()
    (tmp_path / "a #1" / "report.html").write_text("a run")
    made = facts([trial(0)], root=tmp_path)
    found = {
        run: made.link(replace(trial(i), run=run)) for i, run in enumerate(("a #1", "javascript:alert(1)", "", "/etc"))
    }
    assert found == {
        "a #1": "./a%20%231/report.html",
        "javascript:alert(1)": None,
        "": None,
        "/etc": None,
    }


def test_missing_reports_of_runs_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = directory(tmp_path / "sweep", [trial(i, steps=10 + i, seed=i) for i in range(3)])
    Run(path / "trials/0001", steps=4, layers=4).launch(0, 4, reason="finished")
    assert cli.main(["report", str(path)]) == 0
    assert 'href="./trials/0001/"' in (path / "report.html").read_text()
    assert cli.main(["report", str(path), "--runs"]) == 0
    assert 'href="./trials/0001/report.html"' in (path / "report.html").read_text()
    assert (path / "trials/0000/report.html").read_text() == "a run"


def test_newest_of_table_and_runs_counts_and_sweep_sets_the_metric(tmp_path: Path) -> None:
    runs = [replace(t, measurements=[{**m, "val/loss": 1.0} for m in t.measurements]) for t in gridded()]
    path = directory(tmp_path / "sweep", runs, "base: {data: {kind: text}}\n")
    assert report.load(path).metric.metric == "val/loss"
    (path / "sweep.yaml").write_text("base: {data: {kind: images}}\n")
    assert report.load(path).metric.metric == "val/accuracy"
    record = path / "trials" / "lamb-64-000-0.json"
    record.write_text("{}")
    os.utime(record, (2e9, 2e9))
    with pytest.raises(ConfigErrors):  # the study is read, and this one is incomplete
        report.load(path)


def test_fit_reads_the_measurements_of_a_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "measurements.csv"
    write(path, numbered([*curve(), trial(0, 2048, math.inf)]))
    assert cli.main(["fit", str(path)]) == 2
    assert "measurements without a target" in capsys.readouterr().err
    assert cli.main(["fit", str(path), "--target", "val/accuracy >= 0.9"]) == 0
    output = capsys.readouterr().out
    assert "16 runs at 6 batch sizes; 1 run missed the target" in output
    (tmp_path / "sweep.yaml").write_text("target: accuracy >= 0.9\n")
    assert cli.main(["fit", str(path)]) == 0
    assert capsys.readouterr().out == output
    write(path, numbered([*curve(), *curve(9000, 700, "adamw")]))
    assert cli.main(["fit", str(path)]) == 2
    assert "has 2 optimizers: adamw, lamb; write --optimizer" in capsys.readouterr().err
    assert cli.main(["fit", str(path), "--optimizer", "adamw"]) == 0
    assert re.search(r"B_crit  [67]\d\d, ", capsys.readouterr().out)
    assert cli.main(["fit", str(path), "--optimizer", "sgd"]) == 2
    assert "has no runs of it; it has adamw, lamb" in capsys.readouterr().err

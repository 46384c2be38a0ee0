"""SWEEP.yaml, the runs that it stands for, and the settings that are tried."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

import pytest
import yaml

from bellwether.experiments.sweep import search, spec
from bellwether.experiments.sweep.measurements import Trial
from bellwether.experiments.sweep.slots import slots
from bellwether.experiments.sweep.spec import Range, Sweep
from bellwether.trainer.config import ConfigError, ConfigErrors

LR = {"optimizer.lr": {"low": 1e-3, "high": 1.0, "log": True}}


def sweep(**changes: Any) -> Sweep:
    raw = {"name": "s", "config": "c.yaml", "batches": [64, 256], "target": "loss <= 1", "space": LR, **changes}
    return spec.validate(raw, "SWEEP.yaml")


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"batches": []}, "batches: "),
        ({"batches": [64, 64]}, "batches: .* each once"),
        ({"batch": [64]}, "batch: .* did you mean 'batches'"),
        ({"space": {"optimizer.lr": {"low": 1, "hig": 2}}}, r"space\.optimizer\.lr\.hig: 2: .* did you mean 'high'"),
        ({"space": {"optimizer.lr": {"low": 2, "high": 1}}}, "low: .* less than high"),
        ({"space": {"optimizer.lr": {"low": 0, "high": 1, "log": True}}}, "a logarithm needs numbers above 0"),
        ({"space": {"batch.global": [1, 2]}}, "batch.global is the sweep's own"),
        ({"search": {"kind": "grid"}}, r"search\.kind: .* a grid needs points: N for optimizer\.lr"),
        ({"search": {"kind": "gird"}}, "did you mean 'grid'"),
        ({"target": None, "stop": {"beaten": 1.5}}, r"stop\.beaten: .* needs a target"),
        ({"optimizers": {"a/b": {}}}, "optimizers"),
        ({"target": "perplexity <= 3"}, "target: .* not a target"),
        ({"target": "accuracy >= 90"}, "target: .* lies within 0 to 1; write 'accuracy >= 0.9'"),
    ],
)
def test_what_is_wrong_is_told_by_its_key(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigErrors, match=said):
        sweep(**changes)


def test_the_order_of_runs_and_their_names_which_stay_when_more_are_asked_for() -> None:
    first = sweep(optimizers={"lamb": {}, "sgd": {}}, search={"trials": 2}, seeds=2)
    names = [slot.name for slot in slots(first)]
    assert names[:5] == ["lamb-64-000-0", "sgd-64-000-0", "lamb-256-000-0", "sgd-256-000-0", "lamb-64-001-0"]
    assert names[8:] == ["lamb-64-best-1", "sgd-64-best-1", "lamb-256-best-1", "sgd-256-best-1"]
    more = sweep(optimizers={"lamb": {}, "sgd": {}}, search={"trials": 3}, seeds=3, batches=[64, 256, 1024])
    assert set(names) <= {slot.name for slot in slots(more)}
    for number in range(2):
        assert search.setting(first, "lamb", 256, number) == search.setting(more, "lamb", 256, number)
    every = [slot.name for slot in slots(sweep(search={"trials": 2}, seeds=2, repeat="all", batches=[64]))]
    assert every == ["config-64-000-0", "config-64-000-1", "config-64-001-0", "config-64-001-1"]


def test_a_grid_is_every_combination_and_moves_with_the_batch() -> None:
    space = {
        "optimizer.lr": {"low": 0.01, "high": 1.0, "log": True, "points": 3, "batch": "sqrt"},
        "optimizer.amsgrad": [True, False],
    }
    grid = sweep(space=space, search={"kind": "grid"})
    assert grid.settings("config") == 6
    found = [search.setting(grid, "config", 256, number) for number in range(6)]
    assert [s["optimizer.lr"] for s in found] == pytest.approx([0.02, 0.02, 0.2, 0.2, 2.0, 2.0])
    assert [s["optimizer.amsgrad"] for s in found] == [True, False] * 3


def test_quasi_random_settings_cover_the_range_better_than_chance() -> None:
    many = sweep(search={"trials": 32})
    shares = sorted(math.log10(search.setting(many, "config", 64, n)["optimizer.lr"]) / 3 + 1 for n in range(32))  # type: ignore[arg-type]
    assert all(0 <= share <= 1 for share in shares)
    # Largest gap: about log(32)/32 = 0.11 by chance; 2/32 at most for points that keep their distance.
    assert max(b - a for a, b in zip([0.0, *shares], [*shares, 1.0], strict=True)) < 2 / 32 + 1e-9


@pytest.mark.parametrize("kind", ["random", "tpe"])
def test_of_lists_alone_no_setting_is_tried_twice(kind: str) -> None:
    """Twice the same would look like two seeds."""
    asked = sweep(space={"optimizer.lr": [0.1, 0.2], "optimizer.clip": [0, 1]}, search={"kind": kind, "trials": 9})
    assert asked.settings("config") == 4
    found = [tuple(search.setting(asked, "config", 64, number).values()) for number in range(4)]
    assert set(found) == {(0.1, 0), (0.1, 1), (0.2, 0), (0.2, 1)}


def _steps(lr: float) -> int:
    """To the target: least at lr 0.03, twice that a factor of e away."""
    return round(100 * 2 ** abs(math.log(lr / 0.03)))


@pytest.mark.parametrize("kind, within", [("random", 1.6), ("tpe", 1.25)])
def test_tpe_comes_closer_than_random_with_the_same_budget(kind: str, within: float) -> None:
    """Median over five seeds of the best of 24 settings, in two parameters of which one does not matter."""
    space = {**LR, "schedule.warmup": {"low": 0.0, "high": 0.3}, "schedule.kind": ["linear", "cosine"]}
    best = []
    for seed in range(5):
        asked = sweep(space=space, search={"kind": kind, "trials": 24, "seed": seed})
        tried: list[Trial] = []
        for number in range(24):
            setting = search.setting(asked, "config", 64, number, tried)
            lr = setting["optimizer.lr"]
            assert isinstance(lr, float)
            lost = lr > 0.5  # diverges
            measured = [] if lost else [{"step": _steps(lr), "samples": 64 * _steps(lr), "val/loss": 0.9}]
            tried.append(Trial(number, "", "", "config", 64, 1, "diverged" if lost else "complete", setting, measured))
        best.append(min(m["step"] for trial in tried for m in trial.measurements))
    assert statistics.median(best) < 100 * within


def test_the_best_is_the_first_at_the_target_else_the_nearest() -> None:
    def trial(number: int, status: Any, *rows: tuple[int, float]) -> Trial:
        return Trial(
            number, "", "", "a", 64, 1, status, {}, [{"step": s, "samples": s, "val/loss": x} for s, x in rows]
        )

    goal = sweep().goal
    slow, fast, near, far = (
        trial(0, "complete", (10, 2.0), (20, 0.9)), trial(1, "complete", (10, 1.0)),
        trial(2, "complete", (10, 1.1)), trial(3, "diverged", (10, 0.1)),
    )  # fmt: skip
    assert search.best([slow, fast, near, far], goal, "val/loss", False) is fast
    assert search.best([near, slow], goal, "val/loss", False) is slow
    assert search.best([near, far], goal, "val/loss", False) is near
    assert search.best([], goal, "val/loss", False) is None


def test_a_file_is_read_with_its_config_beside_it(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({"name": "s", "config": "c.yaml", "batches": [64]}))
    assert spec.read(tmp_path / "sweep.yaml").config == str(tmp_path / "c.yaml")
    with pytest.raises(ConfigError, match=r"SWEEP: .* cannot be read"):
        spec.read(tmp_path / "none.yaml")


def test_a_range_is_walked_in_its_own_scale() -> None:
    assert Range(low=1, high=100, log=True).place(0.5, 1.0) == pytest.approx(10)
    assert Range(low=0, high=1, batch="linear").place(0.5, 4.0) == pytest.approx(2)

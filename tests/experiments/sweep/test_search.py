"""SWEEP.yaml, the trials it defines, and the choice of settings."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

import pytest
import transformers
import yaml

from bellwether.experiments.sweep import search, spec, start
from bellwether.experiments.sweep.measurements import Trial
from bellwether.experiments.sweep.spec import Range, Sweep
from bellwether.experiments.sweep.trial_ids import trial_ids
from bellwether.trainer.config import ConfigError, ConfigErrors, renamed

ROOT = Path(__file__).resolve().parents[3]
LR = {"optimizer.lr": {"low": 1e-3, "high": 1.0, "log": True}}


def make_sweep(**changes: Any) -> Sweep:
    raw = {"name": "s", "config": "c.yaml", "batches": [64, 256], "target": "loss <= 1", "space": LR, **changes}
    return spec.validate(raw, "SWEEP.yaml")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"batches": []}, "batches: "),
        ({"batches": [64, 64]}, "batches: .* each must appear once"),
        ({"batch": [64]}, "batch: .* did you mean 'batches'"),
        ({"space": {"optimizer.lr": {"low": 1, "hig": 2}}}, r"space\.optimizer\.lr\.hig: 2: .* did you mean 'high'"),
        ({"space": {"optimizer.lr": {"low": 2, "high": 1}}}, "low: .* less than high"),
        ({"space": {"optimizer.lr": {"low": 0, "high": 1, "log": True}}}, "low: .* above 0 for a logarithmic scale"),
        ({"space": {"batch.global": [1, 2]}}, "batch.global is set by the sweep"),
        ({"search": {"kind": "grid"}}, r"search\.kind: .* a grid needs points: N for optimizer\.lr"),
        ({"search": {"kind": "gird"}}, "did you mean 'grid'"),
        ({"target": None, "stop": {"prune_factor": 1.5}}, r"stop\.prune_factor: .* needs a target"),
        ({"optimizers": {"a/b": {}}}, "optimizers"),
        ({"target": "surprise <= 3"}, "target: .* not a target"),
        ({"target": "accuracy >= 90"}, "target: .* lies within 0 to 1; write 'accuracy >= 0.9'"),
    ],
)
def test_invalid_sweep_is_refused_and_names_the_key(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigErrors, match=message):
        make_sweep(**changes)


def test_renamed_key_is_accepted_and_reported(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renamed, "_reported", set())
    monkeypatch.delenv("BELLWETHER_WORLD_SIZE", raising=False)  # a test that trained in this process sets it
    assert make_sweep(stop={"beaten": 1.5}).stop.prune_factor == 1.5
    assert "SWEEP.yaml: stop.beaten was renamed to stop.prune_factor" in caplog.text
    with pytest.raises(
        ConfigErrors, match=r"stop\.beaten: 1.5: was renamed to stop.prune_factor, which is set as well"
    ):
        make_sweep(stop={"beaten": 1.5, "prune_factor": 1.5})


def test_extending_a_sweep_keeps_names_and_settings_of_trials() -> None:
    first = make_sweep(optimizers={"lamb": {}, "sgd": {}}, search={"trials": 2}, seeds=2)
    names = [trial_id.name for trial_id in trial_ids(first)]
    assert names[:5] == ["lamb-64-000-0", "sgd-64-000-0", "lamb-256-000-0", "sgd-256-000-0", "lamb-64-001-0"]
    assert names[8:] == ["lamb-64-best-1", "sgd-64-best-1", "lamb-256-best-1", "sgd-256-best-1"]
    more = make_sweep(optimizers={"lamb": {}, "sgd": {}}, search={"trials": 3}, seeds=3, batches=[64, 256, 1024])
    assert set(names) <= {trial_id.name for trial_id in trial_ids(more)}
    for number in range(2):
        assert search.setting(first, "lamb", 256, number) == search.setting(more, "lamb", 256, number)
    every = [
        trial_id.name for trial_id in trial_ids(make_sweep(search={"trials": 2}, seeds=2, repeat="all", batches=[64]))
    ]
    assert every == ["config-64-000-0", "config-64-000-1", "config-64-001-0", "config-64-001-1"]


def test_grid_has_every_combination_and_scales_with_the_batch_size() -> None:
    space = {
        "optimizer.lr": {"low": 0.01, "high": 1.0, "log": True, "points": 3, "batch": "sqrt"},
        "optimizer.amsgrad": [True, False],
    }
    grid = make_sweep(space=space, search={"kind": "grid"})
    assert grid.settings("config") == 6
    found = [search.setting(grid, "config", 256, number) for number in range(6)]
    assert [s["optimizer.lr"] for s in found] == pytest.approx([0.02, 0.02, 0.2, 0.2, 2.0, 2.0])
    assert [s["optimizer.amsgrad"] for s in found] == [True, False] * 3


def test_quasi_random_settings_cover_the_range_better_than_random_ones() -> None:
    many = make_sweep(search={"trials": 32})
    shares = sorted(math.log10(search.setting(many, "config", 64, n)["optimizer.lr"]) / 3 + 1 for n in range(32))  # type: ignore[arg-type]
    assert all(0 <= share <= 1 for share in shares)
    # The largest gap of random points is about log(32)/32 = 0.11; of evenly spread points it is at most 2/32.
    assert max(b - a for a, b in zip([0.0, *shares], [*shares, 1.0], strict=True)) < 2 / 32 + 1e-9


@pytest.mark.parametrize("kind", ["random", "tpe"])
def test_setting_from_lists_is_not_repeated(kind: str) -> None:
    """The same setting twice would look like two seeds."""
    sweep = make_sweep(space={"optimizer.lr": [0.1, 0.2], "optimizer.clip": [0, 1]}, search={"kind": kind, "trials": 9})
    assert sweep.settings("config") == 4
    found = [tuple(search.setting(sweep, "config", 64, number).values()) for number in range(4)]
    assert set(found) == {(0.1, 0), (0.1, 1), (0.2, 0), (0.2, 1)}


def _steps(lr: float) -> int:
    """Steps to the target: fewest at lr 0.03, twice as many a factor of e away."""
    return round(100 * 2 ** abs(math.log(lr / 0.03)))


@pytest.mark.parametrize("kind, within", [("random", 1.6), ("tpe", 1.25)])
def test_tpe_finds_a_better_setting_than_random_search(kind: str, within: float) -> None:
    """Median over five seeds of the best of 24 settings; only one of the three parameters matters."""
    space = {**LR, "schedule.warmup": {"low": 0.0, "high": 0.3}, "schedule.kind": ["linear", "cosine"]}
    best = []
    for seed in range(5):
        sweep = make_sweep(space=space, search={"kind": kind, "trials": 24, "seed": seed})
        tried: list[Trial] = []
        for number in range(24):
            setting = search.setting(sweep, "config", 64, number, tried)
            lr = setting["optimizer.lr"]
            assert isinstance(lr, float)
            diverged = lr > 0.5
            measured = [] if diverged else [{"step": _steps(lr), "samples": 64 * _steps(lr), "val/loss": 0.9}]
            tried.append(
                Trial(number, "", "", "config", 64, 1, "diverged" if diverged else "complete", setting, measured)
            )
        best.append(min(m["step"] for trial in tried for m in trial.measurements))
    assert statistics.median(best) < 100 * within


def test_best_trial_reaches_the_target_first_or_comes_nearest() -> None:
    def trial(number: int, status: Any, *rows: tuple[int, float]) -> Trial:
        return Trial(
            number, "", "", "a", 64, 1, status, {}, [{"step": s, "samples": s, "val/loss": x} for s, x in rows]
        )

    goal = make_sweep().goal
    slow, fast, near, far = (
        trial(0, "complete", (10, 2.0), (20, 0.9)), trial(1, "complete", (10, 1.0)),
        trial(2, "complete", (10, 1.1)), trial(3, "diverged", (10, 0.1)),
    )  # fmt: skip
    assert search.best([slow, fast, near, far], goal, "val/loss", False) is fast
    assert search.best([near, slow], goal, "val/loss", False) is slow
    assert search.best([near, far], goal, "val/loss", False) is near
    assert search.best([], goal, "val/loss", False) is None


@pytest.mark.parametrize("file", sorted((ROOT / "configs/experiments").glob("*.yaml")), ids=lambda file: file.stem)
def test_shipped_sweep_is_valid(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pretrained = tmp_path / "runs/bert-mini-books/export"  # by another recipe, ahead of the sweep
    transformers.BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2).save_pretrained(pretrained)
    sweep = spec.read(file)
    assert sweep.name == file.stem
    start.check(sweep, str(file), sweep.processes)


def test_config_path_is_relative_to_the_sweep_file(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({"name": "s", "config": "c.yaml", "batches": [64]}))
    assert spec.read(tmp_path / "sweep.yaml").config == str(tmp_path / "c.yaml")
    with pytest.raises(ConfigError, match=r"SWEEP: .* cannot be read"):
        spec.read(tmp_path / "none.yaml")


def test_range_interpolates_on_its_scale() -> None:
    assert Range(low=1, high=100, log=True).value_at(0.5, 1.0) == pytest.approx(10)
    assert Range(low=0, high=1, batch="linear").value_at(0.5, 4.0) == pytest.approx(2)

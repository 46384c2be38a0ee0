"""Branches of a run: their configs, and `bellwether branch` on a small run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from bellwether.experiments.branch.excess import limit
from bellwether.experiments.branch.points import Base, points
from bellwether.experiments.branch.show import BranchRequest, lines, prepare, schedule_text, show
from bellwether.experiments.branch.study import Result
from bellwether.trainer import config as c
from bellwether.trainer.checkpoint import Manifest, Position
from bellwether.trainer.config import ConfigError, Duration
from bellwether.trainer.metrics import Metrics, read
from bellwether.trainer.phases import plan, stop_step
from tests.ranks import Ranks
from tests.trainer.runs import run_config, text

ROWS = 1000


def run_of(folder: Path, **changes: Any) -> Path:
    """A run directory with metrics and the manifests of checkpoints at steps 10 and 20, of 40 steps of 32 samples."""
    raw = {
        "name": "base", "runs": str(folder), "duration": "40 steps", "model": {"kind": "bert", "size": "tiny"},
        "data": {"kind": "text"}, "batch": {"global": 32, "micro": 8}, "optimizer": {"name": "lamb", "lr": 1e-2},
        "schedule": {"kind": "linear", "warmup": "4 steps"}, **changes,
    }  # fmt: skip
    run = folder / "base"
    metrics = Metrics(run)
    metrics.write("start", step=0, samples=0, resumed_from=None)
    config = c.validate(raw)
    for phase in plan(c.phases(config), 1, [ROWS] * len(c.phases(config))):
        for step in range(phase.first_step + 10, phase.last_step + 1, 10):
            samples = phase.samples_at(step)
            epoch = (samples - phase.first_sample) / ROWS
            metrics.write(
                "train", step=step, samples=samples, phase=phase.index, epoch=epoch, loss=5.0, noise_scale=90.0 + step
            )
            if step in (10, 20):
                path = run / "checkpoints" / f"step-{step:08d}"
                path.mkdir(parents=True)
                Manifest(Position(step, samples, phase.index), "", 1, "Lamb", [], [], {}, {}, {}).write(path)
    metrics.close()
    (run / "config.yaml").write_text(c.to_yaml(config))
    return run


@pytest.mark.parametrize(
    ("changes", "rate"),
    [
        ({}, 1e-2 * 2),
        ({"optimizer": {"name": "sgd", "lr": 1e-2}}, 1e-2 * 4),
        ({"scaling": {"rule": "linear", "base_batch": 16}}, 2e-2 * 4),
        ({"scaling": {"rule": "sqrt", "base_batch": 16, "warmup": True}}, 1e-2 * 8**0.5),
    ],
)
def test_branch_goes_on_at_the_position_and_on_the_curve_of_its_run(
    tmp_path: Path, changes: dict[str, Any], rate: float
) -> None:
    base = Base.read(run_of(tmp_path, **changes))
    (own,) = base.planned
    (start, early, late), notes = points(base, Duration.parse("300 samples"), None, 4)
    assert (late.window, late.largest, notes, base.noise_scale(late.step)) == (256, 4, [], 110.0)
    for point in (start, early, late):
        raw = point.branch(base, 4, 1, base.rule, tmp_path / "branches")
        config = c.validate(raw)
        (branch,) = plan([config], 1, [ROWS])
        assert branch.samples_at(point.step) == point.samples
        assert branch.split_at(point.step + 1).global_batch == 128
        assert stop_step(config, [branch]) == point.step + 2
        assert branch.samples_at(point.step + 2) == point.samples + 256
        assert (branch.samples, branch.warmup) == (own.samples, own.warmup)
        factor = branch.lr * (128 / branch.batches.batch(0)) ** {"linear": 1, "sqrt": 0.5, "none": 0}[base.rule]
        assert factor == pytest.approx(rate)
        assert raw["seed"] != base.config.seed


def test_branch_of_a_phase_changes_that_phase_alone(tmp_path: Path) -> None:
    run = run_of(
        tmp_path, phases=[{"duration": "10 steps"}, {"duration": "30 steps", "batch": {"global": [[0, 64], [640, 96]]}}]
    )
    base = Base.read(run)
    (early, late), notes = points(base, Duration.parse("384 samples"), None, 4)
    assert len(notes) == 1  # the first phase is too short
    assert (early.phase.index, early.samples, early.batch, late.samples, late.batch) == (1, 320, 64, 320 + 640, 96)
    branch = plan(c.phases(c.validate(late.branch(base, 2, 0, "sqrt", tmp_path))), 1, [ROWS] * 2)
    assert [s.batch for s in branch[1].batches.segments] == [64, 192, 96]
    assert branch[1].samples_at(20) == late.samples
    assert branch[0].split == base.planned[0].split


def test_what_cannot_be_branched_is_refused(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    with pytest.raises(ConfigError, match=r"--at: 15: has no checkpoint; those kept are 10, 20"):
        prepare(BranchRequest(str(run), [2], at=[15]))
    with pytest.raises(ConfigError, match=r"--window.*less than two steps at 4 times the batch of 32"):
        prepare(BranchRequest(str(run), [4], window="200 samples"))
    with pytest.raises(ConfigError, match=r"--window.*less than two steps at twice the batch of 32"):
        prepare(BranchRequest(str(run), [2], window="100 samples"))
    with pytest.raises(ConfigError, match=r"--factors: 6: is no power of two"):
        prepare(BranchRequest(str(run), [2, 6], window="300 samples"))
    with pytest.raises(ConfigError, match=r"--window.*no checkpoint has so many samples"):
        prepare(BranchRequest(str(run), [2], window="5000 samples"))
    with pytest.raises(ConfigError, match=r"--output.*stays as it is"):
        prepare(BranchRequest(str(run), [2], output=str(run / "branches")))
    with pytest.raises(ConfigError, match="is no run directory"):
        prepare(BranchRequest(str(tmp_path / "other"), [2]))
    prepare(BranchRequest(str(run), [2], window="256 samples"))
    with pytest.raises(
        ConfigError, match=r"--window.*320 samples.*the branches in .*base-branches were made with 256 samples"
    ):
        prepare(BranchRequest(str(run), [2], window="320 samples"))
    (tmp_path / "base-branches" / "study.json").write_text('{"sweep": {}}')
    with pytest.raises(ConfigError, match=r"--output.*holds a study of another kind"):
        prepare(BranchRequest(str(run), [2], window="256 samples"))
    (tmp_path / "base-branches" / "study.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"--output.*its study\.json cannot be read.*name a new folder"):
        prepare(BranchRequest(str(run), [2], window="256 samples"))


def test_what_a_command_killed_after_a_branch_has_left_is_deleted(tmp_path: Path) -> None:
    """Each of them holds a whole checkpoint."""
    study, _ = prepare(BranchRequest(str(run_of(tmp_path)), [2], window="256 samples", at=[10], seeds=1))
    for point, factor, _ in study.branches():
        branch = study.folder / f"step-{point.step:08d}-x{factor}-seed-0"
        metrics = Metrics(branch)
        metrics.write("eval", step=20, samples=point.samples + point.window, phase=0, loss=4.0)
        metrics.close()
        (branch / "checkpoints" / "step-00000020").mkdir(parents=True)
        branch.with_name(f"{branch.name}.yaml").touch()
    assert study.train(lambda file: pytest.fail(f"{file} is trained again"), print) == 0
    assert not list(study.folder.rglob("checkpoints"))
    assert [path.name for path in study.folder.iterdir() if path.is_file()] == ["study.json"]
    assert len(study.results()) == 1


def test_factors_of_less_than_two_steps_are_left_out_and_named(tmp_path: Path) -> None:
    study, notes = prepare(BranchRequest(str(run_of(tmp_path)), [2, 4, 16], window="256 samples"))
    assert study.factors_at(study.points[0]) == [1, 2, 4]
    assert any("factor 16 takes less than two steps" in note for note in notes)


@pytest.mark.parametrize(
    ("excess", "advice", "written"),
    [
        ([0.1, 0.1], "no batch warm-up", 32),
        ([0.0, 0.0], "batch.global: 64, from the beginning", 64),
        ([0.1, 0.0], "batch.global: [[0, 32], [640, 64]]", [[0, 32], [640, 64]]),
    ],
)
def test_advice_and_written_schedule(tmp_path: Path, excess: list[float], advice: str, written: Any) -> None:
    """The rate stays that of the run's own batch, whatever the first one of the schedule is."""
    study, _ = prepare(BranchRequest(str(run_of(tmp_path)), [2], window="256 samples", at=[0, 20], tolerance=0.01))
    losses = [{1: [4.0, 4.1], 2: [4.0 + more, 4.1 + more]} for more in excess]
    results = [Result(point, limit(each, 0.01), each, None) for point, each in zip(study.points, losses, strict=True)]
    schedule = study.schedule(results)
    assert any(advice in line for line in lines(study, results, schedule, []))
    found = yaml.safe_load(schedule_text(study, schedule))
    assert found["batch"]["global"] == written
    assert (found["optimizer"]["lr"], found["scaling"]["base_batch"]) == (1e-2, 32)


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_branches_of_a_run(ranks: Ranks, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The branch at the run's own batch repeats the run; the run stays as it is; what is finished is not trained again."""
    words = " ".join(f"{a}{b}" for a in "abcdefgh" for b in "ijklmnop").split()
    (tmp_path / "corpus.txt").write_text("\n".join(" ".join(words[i : i + 9]) for i in range(len(words) - 9)) * 8)
    raw = text(
        tmp_path, "base", duration="10 steps", checkpoint={"every": "4 steps", "keep": 9, "export": False},
        evaluate={"every": "2 steps"}, batch={"global": 8}, data={"max_overlap": 1.0, "vocabulary_size": 150},
    )  # fmt: skip
    ranks.run(run_config, raw)
    run = Path(raw["runs"]) / "base"
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    trained = []

    def train(file: Path) -> int:
        trained.append(file.stem)
        ranks.run(run_config, yaml.safe_load(file.read_text()))
        return 0

    request = BranchRequest(str(run), [2], window="32 samples", at=[0, 4], seeds=2, json=True)
    capsys.readouterr()
    assert show(request, train) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(trained) == 8
    own = {line["step"]: line["loss"] for line in read(run).eval}
    assert [point["losses"]["1"][0] for point in found["points"]] == [own[4], own[8]]
    larger = read(Path(f"{run}-branches") / "step-00000004-x2-seed-0")
    assert [(line["step"], line["samples"], line["batch"]) for line in larger.train] == [(5, 48, 16), (6, 64, 16)]
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    assert (Path(f"{run}-branches") / "branch.png").stat().st_size > 10_000
    written = yaml.safe_load((Path(f"{run}-branches") / "schedule.yaml").read_text())
    c.validate({**raw, **written, "optimizer": {**raw["optimizer"], **written["optimizer"]}})
    (Path(f"{run}-branches") / "step-00000004-x2-seed-1" / "metrics.jsonl").unlink()
    assert show(BranchRequest(**{**vars(request), "json": False}), train) == 0
    assert trained[8:] == ["step-00000004-x2-seed-1"]
    assert "critical batch" in capsys.readouterr().out

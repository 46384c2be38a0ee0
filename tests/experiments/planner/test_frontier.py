"""``bellwether frontier``: its arithmetic, its output, its config, and MLPerf's rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bellwether import cli
from bellwether.experiments.analysis.critical_batch import fit
from bellwether.experiments.planner import frontier
from bellwether.experiments.planner.frontier import Option, Span
from bellwether.trainer.checked_config import load_checked
from bellwether.trainer.config import phases
from scripts import validate_frontier

ROOT = Path(__file__).resolve().parents[3]
TINY = str(ROOT / "configs" / "bert-tiny.yaml")


def option(gpus: int, hours: float) -> Option:
    span = Span(hours, 0.8 * hours, 1.25 * hours)
    return Option(gpus, 64, 1.0, Span(1, 1, 1), span, span.times(gpus), span.times(2 * gpus))


def measured(path: Path, b_crit: float = 1024) -> Path:
    random = np.random.default_rng(0)
    rows = [
        f"{b},{1e6 * (1 + b / b_crit) * np.exp(0.03 * random.standard_normal()):.0f}"
        for b in (64, 256, 1024, 4096)
        for _ in range(3)
    ]
    file = path / "runs.csv"
    file.write_text("\n".join(["batch_size,samples", *rows]) + "\n")
    return file


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    cli.main(["frontier", TINY, *arguments, "--json"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_front_holds_what_nothing_beats_and_the_picks_lie_within_their_limits() -> None:
    found = [
        option(1, 100),
        option(2, 52),
        option(4, 30),
        option(4, 40),
        option(8, 28),
        option(16, 27.9),
        option(32, 40),
    ]
    front = frontier.front(found)
    assert [o.gpus for o in front] == [1, 2, 4, 8, 16]
    assert frontier.best_batch(found)[2].hours.middle == 30
    assert frontier.limit(front).gpus == 4
    assert frontier.by_deadline(found, 65.0) == found[1]  # 52 x 1.25
    assert frontier.by_deadline(found, 64.9) == found[2]
    assert frontier.by_deadline(found, 1.0) is None
    assert frontier.within_budget(found, 300) == found[2]  # 4 x 30 x 2 x 1.25
    assert frontier.within_budget(found, 299) == found[1]
    assert frontier.within_budget(found, 1) is None


def test_hours_are_samples_over_throughput_with_the_uncertainty_of_both() -> None:
    batches = np.repeat([16.0, 64, 256, 1024, 4096], 3)
    curve = fit(batches, 1e6 * (1 + batches / 512) * np.exp(0.02 * np.random.default_rng(0).standard_normal(15)))
    few, many = frontier.options(curve, lambda gpus, batch: batch / (100 * gpus), [8, 512], [512, 65536], 3.0)
    assert (few.batch, few.gpus, many.gpus) == (512, 8, 512)  # 65,536 was not measured
    assert few.hours.middle == pytest.approx(2e6 / 800 / 3600, rel=0.05)
    assert few.gpu_hours.middle == pytest.approx(8 * few.hours.middle)
    assert few.cost is not None
    assert few.cost.high == pytest.approx(24 * few.hours.high)
    assert few.hours.high / few.hours.low > few.samples.high / few.samples.low
    assert many.hours.high / many.hours.low > few.hours.high / few.hours.low
    assert frontier.options(curve, lambda gpus, batch: None, [8], [512], None) == []


def test_table_picture_and_config_of_the_recommended_point(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = measured(tmp_path)
    arguments = ["--from", str(file), "--throughput", "1000", "--gpu", "h100", "--max-gpus", "64", "batch.micro=32"]
    found = run(capsys, *arguments, "--price", "2", "--deadline", "0.1")
    recommended = found["recommended"]
    assert recommended["hours"]["high"] <= 0.1
    assert recommended["cost"]["middle"] == pytest.approx(2 * recommended["gpu_hours"]["middle"])
    cheaper = [o for o in found["options"] if o["cost"]["middle"] < recommended["cost"]["middle"]]
    assert cheaper
    assert all(o["hours"]["high"] > 0.1 for o in cheaper)
    assert {o["gpus"] for o in found["options"]} == {1, 2, 4, 8, 16, 32, 64}
    assert Path(found["picture"]).read_bytes().startswith(b"\x89PNG")
    (config,) = phases(load_checked(found["config"], []))
    assert config.batch.global_ == recommended["batch"]
    assert config.duration.samples(1, 1) >= recommended["samples"]["high"]
    text = Path(found["config"]).read_text()
    assert "bellwether launch" in text
    assert cli.main(["frontier", TINY, *arguments]) == 0
    output = capsys.readouterr().out
    assert "up to 64 GPUs (--max-gpus 64) more of them pay" in output
    assert "recommended: " in output
    assert "batch sizes above 4,096 were not measured" in output
    assert "GPU hours" in output
    assert cli.main(["frontier", TINY, *arguments, "--max-gpus", "4096"]) == 0
    assert "do not go beyond" in capsys.readouterr().out
    assert cli.main(["frontier", TINY, *arguments, "--budget", "0.001"]) == 1
    assert "no option is the least time within a budget of 0.001 GPU hours" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "text", "message"),
    [
        ([], "batch_size,samples\n64,10\n128,12\n", "two batch sizes give no error estimate"),
        ([], "batch_size,samples\n64,10\n", "two or more batch sizes"),
        (["--max-gpus", "8", "--gpus-per-node", "7"], "batch_size,samples\n1,10\n3,12\n5,13\n", None),
        (["phases=[{},{}]"], "batch_size,samples\n64,10\n128,12\n256,14\n", "needs a config with one phase"),
    ],
)
def test_error_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], text: str, message: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs.csv").write_text(text)
    status = cli.main(["frontier", TINY, "--from", "runs.csv", "--throughput", "10", *arguments])
    if message is None:
        assert status == 0
        return
    assert status == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_recommended_point_of_mlperfs_file_has_its_recipe(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    points = {
        f"r{b}": {
            "Benchmark": "bert",
            "BS": b,
            "Epochs to converge": [2.4e6 * (1 + b / 8192) * f for f in (0.97, 1.0, 1.04)],
        }
        for b in (256, 1024, 4096, 16384)
    }
    Path("rcps_bert.json").write_text(json.dumps(points))
    found = run(capsys, "--from", "rcps_bert.json", "--throughput", "1000", "--max-gpus", "16", "engine.world_size=3")
    (config,) = phases(load_checked(found["config"], []))
    assert config.schedule.recipe == "mlperf-bert"
    assert config.engine.world_size == found["recommended"]["gpus"]
    assert "engine.world_size=3" not in Path(found["config"]).read_text()
    assert found["workload"] == "MLPerf bert"


def test_config_after_a_sweep_has_the_settings_of_the_chosen_optimizer_at_the_batch_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    head = (
        "trial,dataset,model,optimizer,batch_size,seed,status,parameter/optimizer.lr,parameter/optimizer.betas,"
        "parameter/optimizer.lr_scale.*.query.weight,step,samples,val/loss"
    )
    rows = [
        f'{n},text,bert-tiny,{name},{batch},0,complete,{lr},"[0.8, 0.99]",3,{steps},{steps * batch},{loss}'
        for n, (name, batch, lr, end) in enumerate(
            (o, b, f * b, 4000 / b + f) for o, f in (("adamw", 1), ("lamb", 2)) for b in (64, 256, 1024)
        )
        for steps, loss in ((int(end) - 1, 3.0), (int(end) + 1, 1.9))
    ]
    Path("measurements.csv").write_text("\n".join([head, *rows]) + "\n")
    Path("sweep.yaml").write_text(
        "target: loss <= 2\nset: {schedule: {warmup: 0.2}, averaging.kind: ema, data.sequence_length: 32}\noptimizers: {lamb: {set: {optimizer.name: lamb}}, adamw: {}}\n"
    )
    assert (
        cli.main(["frontier", TINY, "--from", ".", "--throughput", "9", "--optimizer", "lamb", "--output", "out"]) == 0
    )
    (file,) = Path("out").glob("*.yaml")
    (config,) = phases(load_checked(str(file), []))
    assert (config.optimizer.name, config.optimizer.lr) == ("lamb", pytest.approx(2 * config.batch.global_))
    assert str(config.schedule.warmup) == "0.2"
    assert (config.optimizer.betas, config.optimizer.lr_scale) == ((0.8, 0.99), {"*.query.weight": 3})
    assert config.averaging.kind == "ema"
    assert config.data.sequence_length == 64  # of the config that is planned
    assert "the best of the sweep" in file.read_text()


def test_times_agree_with_mlperfs() -> None:
    found = list(validate_frontier.predictions())
    assert len(found) > 100
    error = np.array([abs(np.log(p.ratio)) for p in found])
    size = np.array([p.run.gpus for p in found])
    assert np.mean(error[size < 100] < np.log(1.15)) >= 0.8
    assert np.mean(error[size >= 100] < np.log(1.3)) >= 0.85
    assert np.mean([p.covered for p in found]) >= 0.85

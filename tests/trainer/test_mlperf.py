"""MLPerf: the checkers of mlcommons/logging read the log of a run, and the report places the run among others."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bellwether.trainer import report
from bellwether.trainer.config import ConfigErrors, validate
from bellwether.trainer.metrics import Metrics
from bellwether.trainer.mlperf import placement
from bellwether.trainer.mlperf.benchmarks import BENCHMARKS
from bellwether.trainer.mlperf.result_log import ResultLog
from bellwether.trainer.phases import Phase, plan
from bellwether.trainer.report.facts import Facts
from tests.ranks import Ranks
from tests.trainer.runs import images, run_config

mlp_compliance = pytest.importorskip("mlperf_logging.compliance_checker.mlp_compliance")
rcp_checker = pytest.importorskip("mlperf_logging.rcp_checker.rcp_checker")

IMAGENET = 1_281_167
DIVISION = {"division": "closed", "organization": "a lab", "status": "onprem"}


def bert(**changes: Any) -> Phase:
    raw = {
        "name": "run", "duration": "3_000_000 samples", "model": {"kind": "bert", "size": "large"},
        "data": {"kind": "text", "source": "python-docs"}, "batch": {"global": 3072, "micro": 64},
        "optimizer": {"name": "lamb", "lr": 2e-3, "betas": [0.83, 0.925], "weight_decay": 0.0166},
        "schedule": {"kind": "polynomial", "warmup": "9216 samples"},
        "log": {"mlperf": {"benchmark": "bert", **DIVISION}},
    }  # fmt: skip
    return plan([validate({**raw, **changes})], 8, [1_000_000])[0]


def resnet(**changes: Any) -> Phase:
    raw = {
        "name": "run", "duration": "37 epochs", "model": {"kind": "resnet", "depth": 50},
        "data": {"kind": "images", "source": "digits"}, "batch": {"global": 1632, "micro": 204},
        "optimizer": {"name": "lars", "lr": 7.4, "weight_decay": 5e-5, "eps": 1e-30},
        "schedule": {"kind": "polynomial", "power": 2, "warmup": "2 epochs", "final": 1e-4 / 7.4},
        "log": {"mlperf": {"benchmark": "resnet", **DIVISION}},
    }  # fmt: skip
    return plan([validate({**raw, **changes})], 4, [IMAGENET])[0]


def train(run: Path, phase: Phase, accuracies: list[float], first: int = 0, every: int = 100) -> None:
    """What one launch of a run writes: an evaluation every so many steps, from step ``first`` on."""
    batch = phase.split.global_batch
    run.mkdir(exist_ok=True)
    log = phase.config.log.mlperf
    metrics = Metrics(run, result_log=ResultLog(run, phase) if log.benchmark is not None else None)
    metrics.write("start", step=first, samples=first * batch, world_size=8, device="cuda:0", startup=2.5)
    for number, accuracy in enumerate(accuracies, 1):
        step = first + number * every
        metrics.write("train", step=step, samples=step * batch, phase=0, epoch=0.1, loss=2.0, lr=1e-3)
        metrics.write(
            "eval", step=step, samples=step * batch, phase=0, loss=2.0, accuracy=accuracy, examples=10_000, seconds=0.0
        )
    metrics.write("end", step=step, samples=step * batch, seconds=1.0, reason="finished")
    metrics.close()
    (run / "config.yaml").write_text("name: run\n")


def entries(run: Path) -> list[dict[str, Any]]:
    lines = (run / "mllog.txt").read_text().splitlines()
    assert all(line.startswith(":::MLLOG {") for line in lines)
    return [json.loads(line.removeprefix(":::MLLOG ")) for line in lines]


def values(run: Path, key: str) -> list[Any]:
    return [entry["value"] for entry in entries(run) if entry["key"] == key]


def accepted(run: Path, rules: str, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.chdir(run)  # the checker writes beside itself
    checker = mlp_compliance.make_checker("training", rules, False, False)
    return bool(mlp_compliance.main(str(run / "mllog.txt"), f"training_{rules}/common.yaml", checker)[0])


@pytest.mark.parametrize("accuracies, is_accepted", [([0.6, 0.71, 0.7201], True), ([0.6, 0.71, 0.7199], False)])
def test_closed_log_of_bert_passes_the_compliance_checker_once_it_reaches_the_target(
    accuracies: list[float], is_accepted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path / "run", bert(), accuracies)
    assert accepted(tmp_path / "run", "5.0.0", monkeypatch) is is_accepted


def test_closed_log_of_resnet_passes_all_but_the_epsilon_that_mlperf_fixes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    train(tmp_path / "run", resnet(), [0.5, 0.76], every=785)
    assert not accepted(tmp_path / "run", "4.0.0", monkeypatch)
    assert "lars_epsilon" in caplog.text + capsys.readouterr().out
    log = tmp_path / "run" / "mllog.txt"
    log.write_text(log.read_text().replace("1e-30", "0.0"))
    assert accepted(tmp_path / "run", "4.0.0", monkeypatch)


def test_checker_of_convergence_reads_the_count_at_the_target(tmp_path: Path) -> None:
    train(tmp_path / "bert", bert(), [0.71, 0.73])
    assert rcp_checker.read_submission_file(tmp_path / "bert" / "mllog.txt", "5.0.0", False) == (
        0, 200 * 3072, 3072, "bert"
    )  # fmt: skip
    # With `--bert_train_samples` it reads another line.
    assert rcp_checker.read_submission_file(tmp_path / "bert" / "mllog.txt", "5.0.0", True)[1] == 200 * 3072
    train(tmp_path / "resnet", resnet(), [0.7, 0.7591], every=785)
    found = rcp_checker.read_submission_file(tmp_path / "resnet" / "mllog.txt", "4.0.0", False)
    assert found == (0, round(2 * 785 * 1632 / IMAGENET, 3), 1632, "resnet")


def test_log_holds_what_was_trained(tmp_path: Path) -> None:
    train(tmp_path / "run", bert(), [0.7])
    expected = {
        "global_batch_size": 3072, "gradient_accumulation_steps": 6, "opt_name": "lamb", "opt_base_learning_rate": 2e-3,
        "opt_lamb_beta_1": 0.83, "opt_lamb_beta_2": 0.925, "opt_lamb_epsilon": 1e-6, "opt_lamb_weight_decay_rate": 0.0166,
        "opt_learning_rate_training_steps": 977, "opt_learning_rate_warmup_steps": 3, "seed": 1,
        "submission_platform": "8 x cuda:0", "submission_org": "a lab", "submission_division": "closed",
        "train_samples": 307_200, "eval_samples": 10_000,
    }  # fmt: skip
    assert {key: values(tmp_path / "run", key) for key in expected} == {key: [value] for key, value in expected.items()}
    times = {entry["key"]: entry["time_ms"] for entry in entries(tmp_path / "run")}
    assert times["run_start"] - times["init_start"] == 2500


def test_log_ends_at_the_target_although_the_run_goes_on(tmp_path: Path) -> None:
    train(tmp_path / "run", bert(), [0.71, 0.73, 0.71, 0.74])
    assert values(tmp_path / "run", "eval_accuracy") == [0.71, 0.73]
    (stop,) = [entry for entry in entries(tmp_path / "run") if entry["key"] == "run_stop"]
    assert stop["metadata"]["status"] == "success"


def test_log_of_a_run_that_misses_the_target_says_so(tmp_path: Path) -> None:
    train(tmp_path / "run", bert(), [0.71])
    (stop,) = [entry for entry in entries(tmp_path / "run") if entry["key"] == "run_stop"]
    assert stop["metadata"]["status"] == "aborted"


def test_resumed_run_has_each_step_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tmp_path / "run", bert(), [0.5, 0.6, 0.7])
    train(tmp_path / "run", bert(), [0.65, 0.73], first=100)
    assert values(tmp_path / "run", "eval_accuracy") == [0.5, 0.65, 0.73]
    assert [len(values(tmp_path / "run", key)) for key in ("run_start", "run_stop", "train_samples")] == [1, 1, 1]
    assert accepted(tmp_path / "run", "5.0.0", monkeypatch)


def test_log_of_others_is_read_with_what_precedes_the_token(tmp_path: Path) -> None:
    log = tmp_path / "result_0.txt"
    log.write_text(
        '0: :::MLLOG {"key": "submission_benchmark", "value": "bert", "metadata": {}}\n'
        'noise\n:::MLLOG {"key": "glob:::MLLOG {"key": "seed", "value": 3, "metadata": {}}\n'
        '0: :::MLLOG {"key": "global_batch_size", "value": 448, "metadata": {}}\n'
        '0: :::MLLOG {"key": "eval_accuracy", "value": 0.7206, "metadata": {"epoch_num": 2800592}}\n'
        '0: :::MLLOG {"key": "run_stop", "value": null, "metadata": {"status": "success"}}\n'
    )
    assert placement.read(log) == placement.Result(BENCHMARKS["bert"], 448, 2800592.0, 2800592.0, 0.7206)


RESULT = placement.Result(BENCHMARKS["bert"], 3072, 2_700_000.0, 2_700_000.0, 0.721)


def test_run_is_placed_beside_the_reference_and_the_submissions_of_its_batch() -> None:
    placed = placement.place(RESULT)
    assert placed.reference is not None
    # rcps_bert.json of training 5.0.0, bert_ref_3072: 20 runs; the mean of the 18 without the best and the worst.
    counts = sorted(placed.reference.counts)
    assert (len(counts), counts[0]) == (20, 2_482_176)
    assert placed.reference.mean == pytest.approx(sum(counts[1:-1]) / 18)
    assert placed.reference.mean == pytest.approx(2_764_498.67, abs=0.01)
    assert placed.reference.least == pytest.approx(2_643_732, abs=2)
    assert {each.batch for each in placed.submissions} == {3072}
    assert str(placed).startswith("0.72 after 2,700,000 samples; reference 2,764,499 (2,482,176 to ")
    assert ", 0.98 of it; " in str(placed)


def test_fewer_samples_than_mlperf_accepts_are_named() -> None:
    assert "less than MLPerf accepts" in str(placement.place(replace(RESULT, count=2_600_000.0)))
    assert "less than MLPerf accepts" not in str(placement.place(replace(RESULT, count=2_650_000.0)))


def test_batch_without_a_reference_point_names_the_nearest() -> None:
    placed = placement.place(replace(RESULT, batch=2000))
    assert (placed.reference, placed.nearest) == (None, (1536, 3072))
    assert "no reference point at batch 2,000; the nearest are 1,536 and 3,072" in str(placed)
    assert placement.place(replace(RESULT, batch=100_000)).nearest == (16_384,)


def test_without_the_package_the_reference_is_named_as_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "find_spec", lambda name: None)
    placed = placement.place(RESULT)
    assert placed.reference is None
    assert placed.submissions
    assert "pip install mlperf-logging" in str(placed)


def test_submissions_of_resnet_are_in_epochs() -> None:
    placed = placement.place(placement.Result(BENCHMARKS["resnet"], 3264, 36.0, 36.0, 0.76))
    assert placed.submissions
    assert all(34 < each.count < 40 for each in placed.submissions)


def test_report_and_summary_show_the_place(tmp_path: Path) -> None:
    train(tmp_path / "run", bert(), [0.70, 0.7206], every=439)
    page = report.write(tmp_path / "run").read_text()
    assert "<h2>MLPerf</h2>" in page
    for text in ("2,697,216", "2,764,499", "2,643,732"):
        assert text in page
    assert (tmp_path / "run" / "plots" / "mlperf.png").exists()
    assert "MLPerf bert" in report.summary(tmp_path / "run")


def test_report_of_a_run_short_of_the_target_says_how_far_it_came(tmp_path: Path) -> None:
    train(tmp_path / "run", bert(), [0.61])
    assert "not reached: 0.6100 after 307,200" in report.write(tmp_path / "run").read_text()


def test_report_without_mlperf_has_no_such_part(tmp_path: Path) -> None:
    train(tmp_path / "run", bert(log={}), [0.61])
    assert not (tmp_path / "run" / "mllog.txt").exists()
    assert "MLPerf" not in report.write(tmp_path / "run").read_text()
    assert Facts.load(tmp_path / "run").placement is None


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"log": {"mlperf": {"benchmark": "resnet"}}}, "log.mlperf.benchmark: 'resnet': needs data.kind: images"),
        (
            {"phases": [{"duration": "1 epochs"}, {}]},
            "log.mlperf.benchmark: 'bert': has one batch size and schedule, and the run 2 phases",
        ),
        (
            {"log": {"mlperf": {"benchmark": "bert"}}, "batch": {"global": [[0, 8], [64, 16]]}},
            "log.mlperf.benchmark: 'bert': has one batch size, and batch.global grows",
        ),
        ({"log": {"mlperf": {"benchmark": "bert", "organization": ""}}}, "log.mlperf.organization"),
    ],
)
def test_runs_that_mlperf_cannot_measure_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        bert(**changes)
    assert message in str(caught.value)


@pytest.mark.parametrize("ranks", [1], indirect=True)
def test_a_training_run_writes_its_log_and_goes_on_with_it(
    ranks: Ranks, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = {"mlperf": {"benchmark": "resnet", "platform": "a desk"}}
    raw = images(workspace, "mlperf", duration="4 steps", stop_after="2 steps", log=log, evaluate={"every": "2 steps"})
    ranks.run(run_config, raw)
    run = Path(raw["runs"]) / raw["name"]
    assert len(values(run, "eval_accuracy")) == 1
    ranks.run(run_config, {**raw, "stop_after": None})
    assert len(values(run, "eval_accuracy")) == 2
    assert values(run, "submission_platform") == ["a desk"]
    assert accepted(run, "4.0.0", monkeypatch)

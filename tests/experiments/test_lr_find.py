"""The learning rate range test: its analysis of losses, and one real run."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from bellwether.cli import main
from bellwether.experiments.lr_find import analyze, range_test_config
from bellwether.trainer.config import ConfigError
from bellwether.trainer.divergence import DivergenceDetector

RATES = [10 ** (-6 + 6 * i / 200) for i in range(201)]


def test_analysis_finds_the_minimum_of_the_loss() -> None:
    """A loss that is a parabola in log(rate), lowest at 1e-2, steepest where it starts to fall."""
    losses = [
        1 + (min(0.0, math.log10(rate) + 2) ** 2 if rate < 1e-2 else 5 * (math.log10(rate) + 2) ** 2) for rate in RATES
    ]
    found = analyze(RATES, losses)
    # The mean over ten losses lags by up to ten steps of 10^0.03.
    assert 1e-2 <= found.lowest < 2e-2
    assert found.suggestion == found.lowest / 10
    assert found.steepest < 1e-5


def test_non_finite_losses_are_ignored() -> None:
    found = analyze(RATES, [1 - i / 100 for i in range(50)] + [math.nan] * 151)
    assert len(found.rates) == len(found.losses) == len(found.smooth) == 50
    assert found.lowest == RATES[49]
    with pytest.raises(ConfigError, match=r"--from.*start at a lower rate"):
        analyze(RATES, [2.0] * 5 + [math.inf] * 196)


@pytest.mark.parametrize(
    "losses, message",
    [
        ([2 - i / 201 for i in range(201)], "raise --to"),
        ([2 + i / 201 for i in range(201)], "lower --from"),
        ([2 - i / 100 for i in range(100)] + [math.nan] * 101, ""),
        ([2 + abs(i - 100) / 100 for i in range(201)], ""),
    ],
)
def test_minimum_at_an_end_gives_an_unreliable_suggestion(losses: list[float], message: str) -> None:
    found = analyze(RATES, losses)
    assert message in found.note
    assert bool(message) == bool(found.note)


def test_range_test_of_a_growing_batch_is_at_its_first_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, _ = range_test_config("bert-tiny", [f"runs={tmp_path}", "batch.global=[[0, 64], [999, 128]]"], 1e-6, 1.0, 50)
    assert (found["batch"]["global"], found["evaluate"]["limit"]) == (64, 64)
    assert "the test is at its first batch size, 64" in capsys.readouterr().err


def test_range_test_raises_both_rates_of_muon_and_writes_no_export_or_log_of_mlperf(tmp_path: Path) -> None:
    keys = [
        "optimizer={name: muon, lr: 0.02, adam_lr: 0.001}",
        "log.mlperf.benchmark=bert",
        "evaluate.target=accuracy >= 0.5",
    ]
    found, _ = range_test_config("bert-tiny", [f"runs={tmp_path}", *keys], 1e-4, 1.0, 50)
    assert (found["optimizer"]["lr"], found["optimizer"]["adam_lr"]) == (1.0, pytest.approx(0.05))
    assert found["log"]["mlperf"] == {}
    assert found["checkpoint"]["export"] is False
    assert range_test_config("bert-tiny", [f"runs={tmp_path}"], 1e-4, 1.0, 50)[0]["optimizer"]["adam_lr"] is None


@pytest.mark.parametrize(
    "loss, factor, diverged", [(1.0, 4.0, False), (math.nan, 4.0, True), (1e3, 4.0, True), (1e3, None, False)]
)
def test_divergence_is_detected_by_a_multiple_of_the_lowest_loss(
    loss: float, factor: float | None, diverged: bool
) -> None:
    detector = DivergenceDetector(factor)
    assert not any(detector.diverged(2.0) for _ in range(5))
    assert detector.diverged(loss) == diverged


@pytest.mark.process
def test_range_test_runs_in_a_new_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "small.yaml"
    config.write_text(
        f"name: small\nruns: {tmp_path}/runs\nduration: 1 epochs\nmodel: {{kind: cifar-resnet, depth: 8}}\n"
        f"data: {{kind: images, source: digits, size: 8, mean: [0.3], std: [0.3], workers: 0, cache: {tmp_path}/cache}}\n"
        f"batch: {{global: 16}}\noptimizer: {{name: sgd, lr: 0.1, clip: 0, lr_scale: {{'*.classifier.*': 2}}}}\nlog: {{trackers: []}}\n"
        "engine: {device: cpu, heartbeat: 0}\nphases: [{duration: 1 epochs}, {batch: {global: 32}}]\n"
    )
    (tmp_path / "runs" / "small-lr-find").mkdir(parents=True)  # existing directories are not changed
    assert main(["lr-find", str(config), "--from", "1e-4", "--to", "1e3", "--steps", "60", "--nproc", "1"]) == 0
    run = tmp_path / "runs" / "small-lr-find-2"
    found = json.loads((run / "lr-find.json").read_text())
    assert 1e-4 < found["suggestion"] < found["lowest"] < 1e3
    assert found["rates"][0] == pytest.approx(1e-4 * 10 ** (7 / 120))  # the rate in the middle of the step
    assert len(found["rates"]) < 60  # the run diverged
    assert (run / "lr-find.png").stat().st_size > 10_000
    assert not (run / "checkpoints").exists()
    out = capsys.readouterr().out
    assert "suggestion" in out
    assert "; lr x 2: " in out  # and the rates above are those of factor 1
    assert not list((tmp_path / "runs" / "small-lr-find").iterdir())


def test_invalid_range_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lr-find", "configs/bert-tiny.yaml", "--from", "1", "--to", "0.1"]) == 2
    assert "--from" in capsys.readouterr().err

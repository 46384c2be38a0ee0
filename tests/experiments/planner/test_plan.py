"""``bellwether plan``: its output, its errors and its arithmetic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bellwether import cli
from bellwether.experiments.planner import critical_batch, gpus
from bellwether.experiments.planner.network import Network
from bellwether.trainer.config import ConfigError
from bellwether.trainer.report.facts import Facts

ROOT = Path(__file__).resolve().parents[3]
TINY = str(ROOT / "configs" / "bert-tiny.yaml")
HERE = ["data.source=texts/*.txt", "batch.global=4096", "duration=100 steps"]


def plan(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert cli.main(["plan", *arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_text_output_has_every_section_and_fits_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [TINY, *HERE, "--nodes", "2", "--gpu", "h100", "--price", "2", "--critical-batch", "1000"]
    assert cli.main(["plan", *arguments]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    for expected in (
        "bert-tiny on 2 x 8 h100", "4,096 = 64 micro x 4 accumulation x 16 processes", "largest micro-batch", "all-reduce",
        "peak lr", "batch 4,096 is above the critical batch size of 1,000 (as given)", "worth 20% of", "kWh", "assumptions",
        "the tokenizer was not read", " 4,096 ", "host memory: 0.00 GiB per process hold the copy of a checkpoint",
    ):  # fmt: skip
        assert expected in text
    assert "epochs of" not in text


def test_numbers_of_a_plan_are_consistent(capsys: pytest.CaptureFixture[str]) -> None:
    found = plan(capsys, TINY, *HERE, "--nodes", "2", "--gpu", "h100", "--throughput", "100", "--price", "3")
    (phase,) = found["phases"]
    for stage in phase["stages"]:
        peak = stage["peak"]
        parts = sum(peak[key] for key in ("parameters", "gradients", "optimizer", "buffers", "activations"))
        assert peak["total"] == pytest.approx(parts)
    assert phase["step"]["compute"] == pytest.approx(4096 / 16 / 100)
    assert phase["hours"] == pytest.approx(100 * phase["step"]["total"] / 3600)
    assert phase["gpu_hours"] == pytest.approx(16 * phase["hours"])
    assert phase["price"] == pytest.approx(3 * phase["gpu_hours"])
    assert phase["kwh"] == pytest.approx(0.7 * phase["gpu_hours"])
    assert [row["gpus"] for row in phase["strong"]] == [16 * 2**n for n in range(9)]
    assert [row["batch"] for row in phase["weak"]] == [4096 * 2**n for n in range(9)]
    assert phase["strong"][0]["step"] == phase["weak"][0]["step"]
    assert all(
        row["micro"] * row["accumulation"] * row["gpus"] == row["batch"] for row in phase["strong"] + phase["weak"]
    )
    assert phase["strong"][-1]["efficiency"] < phase["weak"][-1]["efficiency"] <= 1


def test_plan_of_a_growing_batch_adds_the_time_of_each_size(capsys: pytest.CaptureFixture[str]) -> None:
    """Memory and the shown step are those of the largest batch, and so is the number of GPUs that every size allows."""
    sizes = "batch.global=[[0, 64], [6400, 256]]"
    arguments = [TINY, "data.source=texts/*.txt", sizes, "duration=200 steps", "--gpu", "h100", "--throughput", "100"]
    (phase,) = plan(capsys, *arguments)["phases"]
    assert (phase["split"]["global_batch"], phase["samples"]) == (256, 100 * 64 + 100 * 256)
    (of_64,) = plan(capsys, *arguments, "batch.global=64", "duration=100 steps")["phases"]
    (of_256,) = plan(capsys, *arguments, "batch.global=256", "duration=100 steps")["phases"]
    assert phase["hours"] == pytest.approx(of_64["hours"] + of_256["hours"])
    assert phase["strong"][0]["hours"] == pytest.approx(phase["hours"])
    assert [row["gpus"] for row in phase["strong"]] == [8, 16, 32, 64]
    assert len(phase["weak"]) == 1
    assert cli.main(["plan", *arguments]) == 0
    text = capsys.readouterr().out
    assert "a step at the largest batch, 256, takes" in text
    assert max(map(len, text.splitlines())) <= 100


def test_weak_scaling_follows_the_recipe_and_warns_beyond_published_batch_sizes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    # Without the duration of HERE, because the recipe sets it.
    arguments = [TINY, "data.source=texts/*.txt", "schedule=lamb-bert", "batch.global=16384", "--gpu", "h100"]
    found = plan(capsys, *arguments, "--nodes", "2", "--critical-batch", "16384")
    rows = found["phases"][0]["weak"]
    assert rows[1]["batch"] == 32768
    assert rows[1]["lr"] == pytest.approx(5e-3)
    assert rows[1]["warmup"] == pytest.approx(0.2)
    assert rows[1]["notes"] == []
    assert "its rule is extrapolated" in rows[2]["notes"][0]
    # A sample is worth 1/2 at B_crit and 1/3 at twice that: 1.5 times as many samples are needed.
    assert (rows[0]["worth"], rows[1]["worth"]) == (pytest.approx(1 / 2), pytest.approx(1 / 3))
    samples = [row["hours"] * row["samples_per_s"] for row in rows]
    assert samples[1] / samples[0] == pytest.approx(1.5)


def test_interval_of_the_critical_batch_is_carried_to_the_hours_and_another_workload_is_flagged(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    table = tmp_path / "rcps_bert.json"
    points = {
        f"r{b}": {
            "Benchmark": "bert",
            "BS": b,
            "Epochs to converge": [2.4e6 * (1 + b / 8192) * f for f in (0.97, 1.0, 1.04)],
        }
        for b in (256, 1024, 4096, 16384)
    }
    table.write_text(json.dumps(points))
    arguments = [TINY, *HERE, "--gpu", "h100", "--critical-batch", str(table)]
    first, *rows = plan(capsys, *arguments)["phases"][0]["weak"]
    assert first["hours_low"] == pytest.approx(first["hours_high"])
    assert all(row["hours_low"] < row["hours"] < row["hours_high"] for row in rows)
    assert rows[-1]["hours_high"] > 1.1 * rows[-1]["hours"]
    assert cli.main(["plan", *arguments]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    assert "90 % interval" in text
    assert "it was measured on MLPerf bert, not on bert-tiny *.txt" in text


def test_time_of_a_step_has_a_fixed_part_and_one_for_each_sample(capsys: pytest.CaptureFixture[str]) -> None:
    found = plan(capsys, TINY, *HERE, "--gpu", "h100", "--throughput", "1000")
    rows = found["phases"][0]["strong"]
    # The throughput was measured with micro-batches of 64; smaller ones are slower, because a part of the time does not shrink.
    assert rows[0]["micro"] == 64
    assert rows[0]["step"]["compute"] == pytest.approx(4096 / 8 / 1000)
    small = rows[-1]
    assert small["micro"] == 1
    assert small["step"]["compute"] == pytest.approx(small["accumulation"] * ((0.064 - 42 * 20e-6) / 64 + 42 * 20e-6))


def test_mean_length_shortens_the_samples_of_text_and_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", TINY, *HERE, "--gpu", "h100"]) == 0
    assert "give the mean of yours as --mean-length" in " ".join(capsys.readouterr().out.split())
    full = plan(capsys, TINY, *HERE, "--gpu", "h100")["phases"][0]["step"]["compute"]
    half = plan(capsys, TINY, *HERE, "--gpu", "h100", "--mean-length", "32")["phases"][0]["step"]["compute"]
    assert half < full


def test_weak_scaling_follows_the_scaling_rule(capsys: pytest.CaptureFixture[str]) -> None:
    rule = ["scaling.rule=sqrt", "scaling.base_batch=4096", "duration=1_000_000 samples"]
    rows = plan(capsys, TINY, *HERE, *rule, "--gpu", "h100")["phases"][0]["weak"]
    assert [row["lr"] for row in rows[:3]] == [pytest.approx(2e-2 * 2 ** (n / 2)) for n in range(3)]
    assert rows[1]["warmup"] == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--gpu", "h10"], "did you mean h100"),
        (["--gpu", "nothing.yaml"], "cannot be read"),
        (["--gpu", "v100", "engine.precision=bf16"], "v100 does not support it"),
        (["--gpu", "h100", "duration=3 epochs"], "--dataset-size"),
        (["--gpu", "h100", "schedule.warmup=1 epochs"], "schedule.warmup"),
        (["--gpu", "h100", "batch.global=100"], "the nearest that can"),
        (
            ["--gpu", "h100", "engine.world_size=4"],
            "engine.world_size: 4: the plan is for --nodes 1 of --gpus-per-node 8",
        ),
        (["--gpu", "h100", "--critical-batch", "0"], "is not a batch size"),
        (["--gpu", "h100", "--critical-batch", "tests"], "has no metrics.jsonl"),
    ],
)
def test_error_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert cli.main(["plan", TINY, *HERE, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_dataset_size_option_sets_the_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    (phase,) = plan(capsys, TINY, *HERE, "duration=3 epochs", "--dataset-size", "40960", "--gpu", "a100")["phases"]
    assert phase["samples"] == 3 * 40960


def test_gpu_is_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("base: h100\nmemory: 60\n")
    mine = gpus.find(str(file))
    assert (mine.name, mine.memory, mine.bf16) == ("mine", 60, gpus.GPUS["h100"].bf16)
    for text, message in (
        ("memory: 60", "its keys differ"),
        ("base: h100\nmemory: much", "not a number"),
        ("3", "not a mapping"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=message):
            gpus.find(str(file))


def test_critical_batch_is_read_from_a_run_or_a_file(tmp_path: Path) -> None:
    values = [1.0, 900.0, 1000.0, 1200.0, float("nan")]
    lines = [{"event": "train", "step": 100 * i, "samples": i, "noise_scale": v} for i, v in enumerate(values)]
    texts = [json.dumps(line).replace("NaN", '"nan"') for line in lines]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*texts, '{"event": "eval", "noise_scale": 5}', '{"cut']))
    found = critical_batch.read(str(tmp_path))
    noise = Facts.load(tmp_path).noise
    assert noise is not None
    assert found.size == noise.scale == 1200  # the latest, as in the run's report
    assert (found.low, found.high) == (100, 14400)
    assert "a guess from the gradient noise scale" in found.source
    table = tmp_path / "runs.csv"
    table.write_text(
        "batch_size,samples\n" + "".join(f"{b},{1e5 * (1 + b / 500)}\n" for b in (32, 128, 512, 2048, 8192))
    )
    found = critical_batch.read(str(table))
    assert found.size == pytest.approx(500, rel=1e-6)
    assert found.efficiency(1500) == pytest.approx(0.25, rel=1e-6)
    (tmp_path / "metrics.jsonl").write_text("\n".join(texts[:2]))
    with pytest.raises(ConfigError, match=r"a mean over 100 steps, and needs 200; .*write 900"):
        critical_batch.read(str(tmp_path))
    (tmp_path / "metrics.jsonl").write_text('{"event": "train", "step": 1, "samples": 1}\n')
    with pytest.raises(ConfigError, match="no noise_scale"):
        critical_batch.read(str(tmp_path))


@pytest.mark.parametrize(
    "kind, size, world_size, seconds",
    [
        ("all-reduce", 8e9, 1, 0.0),
        # Within a node: 2 x 7/8 x 8 GB at 100 GB/s, and 2 x 7 hops.
        ("all-reduce", 8e9, 8, 0.14 + 14e-6),
        ("all-gather", 8e9, 8, 0.07 + 7e-6),
        # Two nodes: in addition 1 GB per GPU, over a tree of one level, which equals a ring.
        ("all-reduce", 8e9, 16, 0.14 + 14e-6 + 0.1 + 2e-5),
        # 512 nodes and few bytes: a tree of 9 levels, not a ring of 511 hops.
        ("all-reduce", 8.0, 4096, 14e-6 + 18e-5),
        ("reduce-scatter", 8.0, 4096, 7e-6 + 9e-5),
        # Many bytes: as a ring, (n - 1) / n of 1 GB per GPU.
        ("all-gather", 8e9, 4096, 0.07 + 7e-6 + 0.1 * 511 / 512 + 9e-5),
    ],
)
def test_time_of_a_collective(kind: Any, size: float, world_size: int, seconds: float) -> None:
    network = Network(8, 100e9, 10e9, hop_in=1e-6, hop_out=1e-5, start=0.0)
    assert network.seconds(kind, size, world_size) == pytest.approx(seconds, rel=1e-4)


@pytest.mark.parametrize("gpu, tflops", [("a100", 156), ("h100", 494.5), ("v100", 15.7)])
def test_tf32_is_half_as_fast_as_bf16_where_a_gpu_has_both(gpu: str, tflops: float) -> None:
    assert gpus.find(gpu).peak("tf32") == pytest.approx(1e12 * tflops)


def test_auto_micro_batch_is_planned_for_the_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [TINY, *HERE, "--nodes", "1", "--gpus-per-node", "1", "--gpu", "rtx4090"]
    found = [plan(capsys, *arguments, f"batch.micro={micro}")["phases"][0] for micro in ("auto", "64")]
    assert found[0]["split"] == found[0]["best_split"] == found[1]["best_split"]
    assert found[0]["split"]["micro"] > 64

"""Checks before the first trial of a sweep, and its outline."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from bellwether.experiments.sweep import spec
from bellwether.experiments.sweep.start import check_target, outline
from bellwether.experiments.sweep.start import sweep as start
from bellwether.launcher.launch import LaunchRequest
from bellwether.trainer.config import ConfigError, ConfigErrors, load
from tests.experiments.sweep.digits_sweep import ROOT, SWEEP, write


@pytest.mark.parametrize(
    "changes, request_, message",
    [
        ({"set": {"duration": "x"}}, {}, "duration: 'x': not a duration"),
        ({"optimizers": {"a": {"set": {"optimizer.nam": "sgd"}}}}, {}, "did you mean 'name'"),
        ({"space": {"optimizer.lrr": [1.0]}}, {}, "did you mean 'lr'"),
        ({"space": {"optimizer.lr": [1.0, -1.0]}}, {}, "optimizer.lr: -1.0: must be greater than 0"),
        ({"space": {"optimizer.freeze": [[], ["nope.*"]]}}, {}, "nope.*this pattern matches no parameter"),
        ({"space": {"schedule": [{"kind": "linear"}, {"kind": "cosin"}]}}, {}, "did you mean 'cosine'"),
        (
            {"set": {"engine.world_size": 4}, "processes": 2},
            {},
            "world_size: 4: 2 processes would .* write processes: 4",
        ),
        ({"set": {"stop_after": "2 steps"}}, {}, "stop_after: '2 steps': has no effect in a sweep"),
        ({"set": {"evalute.every": "1 steps"}}, {}, r"SWEEP.yaml: set: evalute: .*did you mean 'evaluate'"),
        (
            {"optimizers": {"a": {"set": {"optimizer.name": "sdg"}}}},
            {},
            r"SWEEP.yaml: optimizers.a at batch 32: .*mean 'sgd'",
        ),
        ({"space": {"optimizer.lr": []}}, {}, "space: .* optimizer.lr is an empty list"),
        ({"optimizers": {}}, {}, "optimizers: {}: write at least 1"),
        ({"batches": []}, {}, r"batches: \[\]: write at least 1"),
        ({"set": {"batch.global": 64}}, {}, "set: .* batch.global is set by the sweep"),
        ({"batches": [32, 33], "processes": 2}, {}, "batch.global: 33: cannot be divided equally among 2 .* 32 and 34"),
        ({"set": {"phases": [{"batch": {"global": 64}}]}}, {}, "config: .* has phases with batch sizes of their own"),
        ({}, {"nodes": 2}, "--nodes: 2: has no effect on this machine"),
    ],
)
def test_sweep_with_an_invalid_config_is_refused_before_the_first_trial(
    tmp_path: Path, changes: dict[str, Any], request_: dict[str, Any], message: str
) -> None:
    file = write(tmp_path, **changes)
    with pytest.raises((ConfigError, ConfigErrors), match=message):
        start(str(file), LaunchRequest(config=str(file), overrides=(), on="local", **request_), None, False)
    assert not (tmp_path / "runs").exists()


def test_target_that_token_frequencies_reach_is_refused_before_the_first_trial(tmp_path: Path) -> None:
    words = [f"{a}{b}" for a in ("ba", "ko", "ri", "su") for b in ("ten", "la", "mo", "vi")]
    draw = random.Random(0)
    lines = [" ".join(draw.choices(words, k=20)) for _ in range(300)]
    (tmp_path / "lines.txt").write_text("\n".join(lines) + "\n")
    text = {
        "config": str(ROOT / "configs/bert-tiny.yaml"), "optimizers": {"lamb": {"set": {"optimizer.name": "lamb"}}},
        "set": {"data.source": str(tmp_path / "lines.txt"), "data.vocabulary_size": 128, "data.sequence_length": 32},
    }  # fmt: skip
    text["set"] |= {
        "duration": "4 steps",
        "evaluate.every": "2 steps",
        "batch.micro": 16,
        "data.cache": str(tmp_path / "cache"),
    }  # type: ignore[operator]
    raw = {**SWEEP, "runs": str(tmp_path / "runs"), **text, "target": "loss <= 3.5"}
    file = tmp_path / "SWEEP.yaml"
    file.write_text(yaml.safe_dump(raw))
    request = LaunchRequest(config=str(file), overrides=(), on="local")
    with pytest.raises(
        ConfigError, match=r"target: .*token frequencies alone have a held-out loss of [23]\.\d\d .*clearly below"
    ):
        start(str(file), request, None, False)
    assert not (tmp_path / "runs").exists()
    check_target(spec.read(write_target(file, raw, "loss <= 1.5")), str(file), prepare=True)
    check_target(spec.read(write_target(file, raw, "accuracy >= 0.01")), str(file), prepare=True)


def test_perplexity_that_token_frequencies_reach_is_refused(tmp_path: Path) -> None:
    draw = random.Random(0)
    lines = [" ".join(draw.choices([f"w{n}" for n in range(20)], k=20)) for _ in range(100)]
    (tmp_path / "lines.txt").write_text("\n".join(lines) + "\n")
    config = {
        "name": "lm", "duration": "4 steps", "model": {"kind": "awd-lstm"}, "batch": {"global": 4},
        "data": {"kind": "token-stream", "source": str(tmp_path / "lines.txt"), "cache": str(tmp_path / "cache"), "length": 8},
        "optimizer": {"name": "adamw", "lr": 1e-3},
    }  # fmt: skip
    (tmp_path / "lm.yaml").write_text(yaml.safe_dump(config))
    raw = {
        "name": "lm", "config": str(tmp_path / "lm.yaml"), "batches": [4],
        "optimizers": {"adamw": {"set": {"optimizer.name": "adamw"}}}, "space": {"optimizer.lr": [1e-3]},
    }  # fmt: skip
    file = tmp_path / "sweep.yaml"
    with pytest.raises(ConfigError, match=r"target: .*held-out perplexity of (19|2\d)\.\d\d \(unigram perplexity\)"):
        check_target(spec.read(write_target(file, raw, "perplexity <= 40")), str(file), prepare=True)
    sweep = spec.read(write_target(file, raw, "perplexity <= 10"))
    check_target(sweep, str(file), prepare=True)
    assert sweep.metric == ("val/perplexity", False)


def write_target(file: Path, raw: dict[str, Any], target: str) -> Path:
    file.write_text(yaml.safe_dump({**raw, "target": target}))
    return file


def test_config_is_refused_as_a_sweep_and_a_sweep_as_a_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"SWEEP: .* is the config of a run"):
        spec.read(ROOT / "configs/bert-tiny.yaml")
    with pytest.raises(ConfigErrors, match=r"CONFIG: .* is a sweep; bellwether sweep runs it"):
        load(write(tmp_path))


def test_outline_warns_if_trials_are_evaluated_only_at_their_end(tmp_path: Path) -> None:
    for every, warns in [("2 steps", False), ("8 steps", True), (None, True)]:
        sweep = spec.read(write(tmp_path, target="accuracy >= 0.9", set={"evaluate.every": every}))
        assert ("set evaluate.every" in outline(sweep)) == warns

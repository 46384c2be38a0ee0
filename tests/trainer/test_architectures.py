"""Whole runs of transformers' architectures on two processes: every family under ZeRO, resumed, exported and started from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.ranks import Ranks
from tests.tiers import covering
from tests.trainer.models import families
from tests.trainer.runs import images, last, losses, run_config, tensors, text, weights


def masked_lm(workspace: Path, name: str, family: str, **changes: Any) -> dict[str, Any]:
    raw = text(workspace, name, **{"duration": "4 steps", "batch": {"global": 8, "micro": 2}, **changes})
    return {**raw, "model": {"kind": "masked-lm", "config": families.keys(family)}}


def assert_resumes(ranks: Ranks, whole: dict[str, Any], halves: dict[str, Any]) -> None:
    ranks.run(run_config, whole)
    ranks.run(run_config, {**halves, "stop_after": "2 steps"})
    ranks.run(run_config, halves)
    wanted, found = tensors(last(whole)), tensors(last(halves))
    assert last(halves).name == last(whole).name == "step-00000004"
    assert wanted.keys() == found.keys()
    for key, value in wanted.items():
        assert torch.equal(value, found[key]), key
    assert losses(halves) == losses(whole)


@covering(lambda family, stage: (family, stage) == ("modernbert", 3))
@pytest.mark.parametrize("ranks", [2], indirect=True)
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("family", families.ENCODERS)
def test_encoder_resumes_bit_for_bit(ranks: Ranks, workspace: Path, family: str, stage: int) -> None:
    engine = {"stage": stage, "activation_checkpointing": True}
    whole, halves = (
        masked_lm(workspace, f"{part}-{family}-{stage}", family, engine=engine) for part in ("whole", "halves")
    )
    assert_resumes(ranks, whole, halves)


OBJECTIVES: dict[str, dict[str, Any]] = {
    "documents": {"packing": "documents", "whole_words": True},
    "pairs": {"next_sentence": True},
    "sentences": {"next_sentence": True, "sentences": "lines", "documents": "paragraphs"},
}


@covering(lambda objective, stage: (objective, stage) in {("documents", 2), ("pairs", 3)})
@pytest.mark.parametrize("ranks", [2], indirect=True)
@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_objective_resumes_bit_for_bit(ranks: Ranks, workspace: Path, objective: str, stage: int) -> None:
    data = OBJECTIVES[objective]
    if objective == "sentences":
        lines = (workspace / "corpus.txt").read_text().splitlines()
        stories = workspace / "stories.txt"
        stories.write_text("\n\n".join("\n".join(lines[begin : begin + 7]) for begin in range(0, len(lines), 7)))
        data = {**data, "source": str(stories)}
    changes = {"engine": {"stage": stage, "activation_checkpointing": True}, "data": data}
    whole, halves = (
        masked_lm(workspace, f"{part}-{objective}-{stage}", "bert", **changes) for part in ("whole", "halves")
    )
    assert_resumes(ranks, whole, halves)


@covering(lambda family, stage: (family, stage) == ("convnext", 2))
@pytest.mark.parametrize("ranks", [2], indirect=True)
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("family", families.CLASSIFIERS)
def test_classifier_resumes_bit_for_bit(ranks: Ranks, workspace: Path, family: str, stage: int) -> None:
    changes = {
        "duration": "4 steps",
        "batch": {"global": 8, "micro": 2},
        "engine": {"stage": stage, "activation_checkpointing": True},
    }
    whole, halves = (images(workspace, f"{part}-{family}-{stage}", **changes) for part in ("whole", "halves"))
    for raw in (whole, halves):
        raw["model"] = {"kind": "image-classifier", "config": families.classifier(family)}
    assert_resumes(ranks, whole, halves)


@pytest.mark.full
@pytest.mark.parametrize("ranks", [2], indirect=True)
@pytest.mark.parametrize("family", families.ENCODERS)
def test_stages_train_the_same_weights(ranks: Ranks, workspace: Path, family: str) -> None:
    found = []
    for stage in (0, 3):
        raw = masked_lm(workspace, f"stages-{family}-{stage}", family, engine={"stage": stage}, optimizer={"lr": 1e-3})
        raw["model"]["config"] |= (
            {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0} if family in ("bert", "roberta") else {}
        )
        ranks.run(run_config, raw)
        found.append((losses(raw), weights(last(raw))))
    (losses0, weights0), (losses3, weights3) = found
    assert losses0 == pytest.approx(losses3, rel=1e-5)
    assert weights0.keys() == weights3.keys()


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_run_starts_from_the_weights_and_the_tokenizer_of_an_export(ranks: Ranks, workspace: Path) -> None:
    first = masked_lm(workspace, "pretrains", "roberta")
    ranks.run(run_config, first)
    export = workspace / "runs" / "pretrains" / "export"
    second = text(
        workspace,
        "continues",
        duration="1 steps",
        batch={"global": 8, "micro": 2},
        optimizer={"lr": 1e-12},
        engine={"stage": 3},
    )
    second["model"] = {"kind": "masked-lm", "init": str(export)}
    ranks.run(run_config, second)
    saved, loaded = load_file(export / "model.safetensors"), weights(last(second))
    assert len(loaded) == len(saved)
    for name, value in saved.items():
        assert torch.allclose(torch.from_numpy(loaded[f"model.{name}"]).view_as(value), value, atol=1e-9), name
    assert losses(second)[0] < losses(first)[0]
    vocabularies = [
        (workspace / "runs" / name / "export" / "tokenizer.json").read_text() for name in ("pretrains", "continues")
    ]
    assert vocabularies[0] == vocabularies[1]

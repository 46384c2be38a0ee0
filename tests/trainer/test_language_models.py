"""Whole runs of language models that carry their state: resume, other numbers of ranks, held-out perplexity."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from bellwether.cli import main
from bellwether.trainer import config as c
from bellwether.trainer.checkpoint import Manifest
from bellwether.trainer.data.sampling import fold_in
from bellwether.trainer.metrics import read
from bellwether.trainer.models import auto_classes
from tests.precision import skip_without
from tests.ranks import Ranks
from tests.tiers import covering
from tests.trainer.runs import last, losses, merged, run_config, tensors, text, train_lines, weights

DROPOUTS = {f"{name}_dropout": 0.0 for name in ("input", "hidden", "output", "embedding", "weight")}


def stream(workspace: Path, name: str, **changes: Any) -> dict[str, Any]:
    """The config of a short run of a small AWD-LSTM on parallel streams, with changes to its sections."""
    raw = text(workspace, name)
    raw |= {
        "duration": "6 steps",
        "model": {"kind": "awd-lstm", "embedding_size": 12, "hidden_size": 16, "layers": 2},
        "data": {
            "kind": "token-stream", "source": str(workspace / "corpus.txt"), "length": 9, "validation_streams": 3,
            "cache": str(workspace / "cache"), "workers": 0,
        },
        "batch": {"global": 8, "micro": 2}, "engine": {"stage": 1}, "evaluate": {},
    }  # fmt: skip
    return merged(raw, changes)


@pytest.fixture(scope="module")
def one() -> Iterator[Ranks]:
    one = Ranks(1)
    yield one
    one.close()


@covering(lambda kind, stage: (kind, stage) == ("awd-lstm", 1))
@pytest.mark.parametrize("ranks", [2], indirect=True)
@pytest.mark.parametrize(("kind", "stage"), [*(("awd-lstm", stage) for stage in range(4)), ("qrnn", 1)])
def test_killed_run_resumes_with_the_state_of_its_streams(ranks: Ranks, workspace: Path, kind: str, stage: int) -> None:
    """The epoch ends at step 4 of the short text of this run, where all streams begin again."""
    short = workspace / "short.txt"
    short.write_text("\n".join((workspace / "corpus.txt").read_text().split("\n")[:17]))
    source = {"source": str(short), "validation": str(workspace / "corpus.txt"), "max_overlap": 1.0}
    name = f"{kind}-{stage}"
    changes: dict[str, Any] = {"data": {**source, "minimum_count": 1}, "engine": {"stage": stage}}
    whole = stream(workspace, f"stream-{name}", model={"kind": kind}, **changes)
    halves = merged(whole, {"name": f"stream-halves-{name}", "evaluate": {"every": "2 steps"}})
    ranks.run(run_config, whole)
    ranks.run(run_config, {**halves, "checkpoint": {"every": "2 steps"}, "stop_after": "3 steps"})
    shutil.rmtree(last(halves))  # as if it was killed before this checkpoint
    assert last(halves).name == "step-00000002"
    ranks.run(run_config, halves)
    wanted, found = tensors(last(whole)), tensors(last(halves))
    assert wanted.keys() == found.keys()
    for key, value in wanted.items():
        assert torch.equal(value, found[key]), key
    assert losses(halves) == losses(whole)
    samples: Any = c.validate(whole).data.load().train
    of_whole, samples = Manifest.read(last(whole)), samples.arranged(8, fold_in(1, 0))
    assert (
        of_whole.first_token == Manifest.read(last(halves)).first_token == samples.first_token(of_whole.position.step)
    )
    (line,), evaluations = (read(Path(raw["runs"]) / raw["name"]).eval for raw in (whole, halves))
    assert line["perplexity"] == evaluations[-1]["perplexity"] == math.exp(line["loss"])
    assert len(evaluations) == 3


@pytest.mark.full
@pytest.mark.parametrize("ranks", [2], indirect=True)
@pytest.mark.parametrize("kind", ["awd-lstm", "qrnn"])
def test_losses_are_the_same_at_every_stage(ranks: Ranks, workspace: Path, kind: str) -> None:
    runs = [stream(workspace, f"{kind}-at-{n}", model={"kind": kind}, engine={"stage": n}) for n in range(4)]
    for raw in runs:
        ranks.run(run_config, raw)
        assert losses(raw) == pytest.approx(losses(runs[0]), rel=1e-5)


@pytest.mark.full
@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_state_of_streams_goes_on_at_another_number_of_ranks(ranks: Ranks, one: Ranks, workspace: Path) -> None:
    whole = stream(workspace, "stream-two", model=DROPOUTS)
    ranks.run(run_config, whole)
    raw = merged(whole, {"name": "stream-two-one"})
    ranks.run(run_config, {**raw, "stop_after": "3 steps"})
    there = weights(last(raw), "carried")
    shapes = Manifest.read(last(raw)).carried
    assert {name: math.prod(shape) for name, shape in shapes.items()} == {n: v.size for n, v in there.items()}
    assert all(shape[0] == 8 for shape in shapes.values())
    one.run(run_config, merged(raw, {"batch": {"micro": 4}}))
    assert losses(raw) == pytest.approx(losses(whole), rel=1e-5)
    for wanted in ("carried", "weight"):
        ours, theirs = weights(last(raw), wanted), weights(last(whole), wanted)
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            np.testing.assert_allclose(ours[name], value, atol=2e-5, err_msg=name)
    # Windows of another length lie elsewhere in the text.
    started = str(last(raw).with_name("step-00000003"))
    longer = merged(raw, {"name": "stream-longer", "resume": started, "data": {"length": 7}, "batch": {"micro": 4}})
    one.run(run_config, {**longer, "duration": "4 steps"})
    output = "".join(
        file.read_text() for file in (Path(raw["runs"]) / "stream-longer" / "logs").rglob("*") if file.is_file()
    )
    assert "go on from an empty state" in output
    # Another batch cuts the text elsewhere.
    other = merged(whole, {"name": "stream-branch", "resume": str(last(raw).with_name("step-00000003"))})
    other["batch"] = {"global": 4, "micro": 2}
    with pytest.raises(AssertionError, match="resume with the batch size that it was made with"):
        ranks.run(run_config, other)


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_perplexity_is_that_of_a_loop_in_float64(
    ranks: Ranks, workspace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = stream(workspace, "perplexity", duration="2 steps", data={"max_overlap": 1.0})
    ranks.run(run_config, raw)
    run = Path(raw["runs"]) / raw["name"]
    model = auto_classes.AwdLstmForCausalLM.from_pretrained(run / "export").double().eval()
    words = AutoTokenizer.from_pretrained(run / "export")
    data = c.validate(raw).data.load()
    samples: Any = data.validation
    tokens = torch.from_numpy(samples.stream.read(np.arange(len(samples.stream))))
    assert int(tokens[-1]) == words.eos_token_id
    perplexity, length = of_loop(model, tokens)
    line = read(run).eval[-1]
    assert line["perplexity"] == pytest.approx(perplexity, rel=1e-5)
    assert line["examples"] == round(3 * length / 9)
    # Other text, in the words of the model: a vocabulary that is made anew would have other ones.
    other = workspace / "other.txt"
    other.write_text("\n".join((workspace / "corpus.txt").read_text().split("\n")[100:130]))
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")  # or DeepSpeed, first imported here, prints what it found
    capsys.readouterr()
    assert main(["evaluate", str(run), "--data", str(other), "--json"]) == 0
    ids = [[*words.encode(text), words.eos_token_id] for text in other.read_text().split("\n")]
    perplexity, _ = of_loop(model, torch.tensor([token for each in ids for token in each]))
    assert json.loads(capsys.readouterr().out)["perplexity"] == pytest.approx(perplexity, rel=1e-5)


def of_loop(model: Any, tokens: torch.Tensor) -> tuple[float, int]:
    """Perplexity of three streams, token by token, and the length of each."""
    length = (len(tokens) - 1) // 3
    total = 0.0
    with torch.no_grad():
        for stream_of in (tokens[i * length : (i + 1) * length + 1] for i in range(3)):
            state = model.initial_state(1)
            for token, following in itertools.pairwise(stream_of):
                output = model(token.view(1, 1), state)
                state = output.state
                total -= float(model.decode(output.last_hidden_state)[0, 0].log_softmax(0)[following])
    return math.exp(total / (3 * length)), length


@pytest.mark.full
@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_varying_length_scales_the_rate_and_resumes(ranks: Ranks, workspace: Path) -> None:
    whole = stream(
        workspace, "stream-varying", data={"varying_length": True}, schedule={"kind": "constant", "warmup": 0}
    )
    halves = merged(whole, {"name": "stream-varying-halves"})
    ranks.run(run_config, whole)
    ranks.run(run_config, {**halves, "stop_after": "3 steps"})
    ranks.run(run_config, halves)
    assert losses(halves) == losses(whole)
    wanted, found = tensors(last(whole)), tensors(last(halves))
    assert all(torch.equal(value, found[key]) for key, value in wanted.items())
    rates = {line["lr"] for line in train_lines(whole)}
    assert len(rates) > 1
    assert {round(rate / 1e-2 * 9, 9) % 1 for rate in rates} == {0.0}, "multiples of a ninth"


@pytest.mark.full
@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_phases_averages_sets_and_cache(
    ranks: Ranks, workspace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = (workspace / "corpus.txt").read_text().split("\n")
    for name, part in (("near", lines[:40]), ("far", lines[40:60])):
        (workspace / f"{name}.txt").write_text("\n".join(" ".join(reversed(line.split())) for line in part))
    raw = stream(
        workspace, "stream-phases", averaging={"kind": "ema"}, optimizer={"name": "adamw"},
        data={"validation": {name: str(workspace / f"{name}.txt") for name in ("near", "far")}},
        evaluate={"cache_pointer": {"window": 20}, "every": "2 steps", "best": "perplexity_cache"},
        phases=[{"duration": "2 steps"}, {"batch": {"global": 12}, "duration": "3 steps"}],
    )  # fmt: skip
    ranks.run(run_config, raw)
    run = Path(raw["runs"]) / raw["name"]
    evaluation = read(run).eval[-1]
    assert evaluation["perplexity"] == evaluation["perplexity_near"] != evaluation["perplexity_far"]
    assert evaluation["perplexity_cache"] == evaluation["perplexity_cache_near"] != evaluation["perplexity"]
    assert evaluation["perplexity_averaged"] == math.exp(evaluation["loss_averaged"])
    assert all(shape[0] == 12 for shape in Manifest.read(last(raw)).carried.values())
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")  # or DeepSpeed, first imported here, prints what it found
    assert main(["evaluate", str(run), "--json"]) == 0
    # The export is the average.
    assert json.loads(capsys.readouterr().out)["perplexity"] == pytest.approx(
        evaluation["perplexity_averaged"], rel=1e-5
    )


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"batch": {"global": [[0, 8], [16, 16]]}}, "batch.global: .*cuts the text into as many streams"),
    ({"trajectory": {"interpolate": {"steps": [1]}}}, "trajectory.interpolate: .*computes a step's batch again"),
    ({"data": {"varying_length": True}, "engine": {"compile": "layers"}}, "engine.compile: .*data.varying_length"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_what_streams_cannot_have_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    raw = stream(tmp_path, "refused")
    with pytest.raises(c.ConfigErrors, match=message):
        c.validate(merged(raw, changes))


def test_cache_pointer_needs_a_language_model(tmp_path: Path) -> None:
    with pytest.raises(c.ConfigErrors, match=r"evaluate\.cache_pointer: .*needs a language model"):
        c.validate(text(tmp_path, "refused", evaluate={"cache_pointer": {}}))


@pytest.mark.full
@pytest.mark.parametrize("ranks", [2], indirect=True)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_sixteen_bits(ranks: Ranks, workspace: Path, precision: str, stage: int) -> None:
    skip_without(precision, ranks)
    raw = stream(workspace, f"stream-{precision}-{stage}", engine={"precision": precision, "stage": stage})
    ranks.run(run_config, {**raw, "stop_after": "3 steps"})
    ranks.run(run_config, raw)
    whole = merged(raw, {"name": f"stream-{precision}-{stage}-whole"})
    ranks.run(run_config, whole)
    assert losses(raw) == losses(whole)
    kinds = {v.dtype for k, v in load_file(last(raw) / "rank-00000.safetensors").items() if k.startswith("carried")}
    assert kinds == {torch.bfloat16 if precision == "bf16" else torch.float16}

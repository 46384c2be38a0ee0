"""Checkpoints that a run resumes from or refuses, and the ends of a run: divergence, target, pending evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bellwether.trainer import config as c
from bellwether.trainer.checkpoint import Manifest
from bellwether.trainer.metrics import read
from tests.ranks import Ranks
from tests.trainer.runs import last, losses, merged, run_config, tensors, text


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_damaged_newest_checkpoint_is_skipped(ranks: Ranks, workspace: Path) -> None:
    whole = text(workspace, "undamaged")
    ranks.run(run_config, whole)
    raw = text(workspace, "damaged", checkpoint={"every": "2 steps"})
    ranks.run(run_config, {**raw, "stop_after": "6 steps"})
    for _ in range(2):  # also twice at the same step
        file = last(raw) / "rank-00001.safetensors"
        file.write_bytes(file.read_bytes()[:-50])
        ranks.run(run_config, {**raw, "stop_after": "6 steps"})
    ranks.run(run_config, raw)
    assert losses(raw) == losses(whole)
    assert (last(raw).parent / "step-00000006.damaged").is_dir()
    assert (last(raw).parent / "step-00000006.damaged-2").is_dir()


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_nan_loss_ends_the_run_with_an_error(ranks: Ranks, workspace: Path) -> None:
    raw = text(workspace, "diverged", optimizer={"name": "adamw", "lr": 1e30, "clip": 0}, schedule={"warmup": 0})
    with pytest.raises(AssertionError, match=r"optimizer\.lr: 1e\+30: the loss is not a number at step"):
        ranks.run(run_config, raw)
    assert not (Path(raw["runs"]) / "diverged" / "export").exists()


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_divergence_keeps_the_last_good_checkpoint_and_repeats_at_the_same_step(ranks: Ranks, workspace: Path) -> None:
    raw = text(
        workspace, "range", duration="40 steps", divergence=2.0, optimizer={"name": "sgd", "lr": 1e4, "clip": 0},
        schedule={"kind": "exponential", "start": 1e-6, "final": 1.0, "warmup": 0}, checkpoint={"every": "7 steps", "keep": 1},
    )  # fmt: skip
    ranks.run(run_config, raw)
    run = Path(raw["runs"]) / "range"
    first, last_good = read(run), last(raw)
    assert first.state == "diverged"
    assert 5 < first.train[-1]["step"] < 40
    assert first.train[-1]["loss"] > 2 * first.train[0]["loss"]
    assert Manifest.read(last_good).position.step == (first.train[-1]["step"] - 1) // 7 * 7
    assert first.train[-1]["step"] - Manifest.read(last_good).position.step > 1  # steps that are trained again
    assert not (run / "finished.json").exists()
    ranks.run(run_config, raw)
    again = read(run)
    assert again.state == "diverged"
    assert [line["loss"] for line in again.train] == [line["loss"] for line in first.train]
    assert last(raw) == last_good


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_resume_with_changed_data_is_refused(ranks: Ranks, workspace: Path) -> None:
    corpus = workspace / "growing.txt"
    corpus.write_bytes((workspace / "corpus.txt").read_bytes())
    raw = text(workspace, "growing", data={"source": str(corpus), "max_overlap": 1.0}, stop_after="3 steps")
    ranks.run(run_config, raw)
    corpus.write_text(corpus.read_text() * 2)
    with pytest.raises(AssertionError, match=r"data\.source.*the data has changed"):
        ranks.run(run_config, {**raw, "stop_after": None})
    phase = {"data": {"source": str(workspace / "corpus.txt")}}
    with pytest.raises(AssertionError, match=r"phases\[1\]\.data.*vocabulary"):
        ranks.run(
            run_config,
            {**raw, "name": "mixed", "phases": [{}, phase | {"data": {**phase["data"], "lowercase": False}}]},
        )


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_checkpoint_at_or_after_the_last_step_is_refused(ranks: Ranks, workspace: Path) -> None:
    first = text(workspace, "long-one")
    ranks.run(run_config, first)
    for duration in ("8 steps", "5 steps"):
        raw = text(workspace, "short-one", duration=duration, resume=str(last(first)))
        with pytest.raises(AssertionError, match="the checkpoint is at step 8, this run ends at step"):
            ranks.run(run_config, raw)


REJECTED_BY_DEEPSPEED: list[dict[str, Any]] = [
    {"zero_optimization": {"nope": 1}},
    {"zero_optimization": 5},
    {"zero_optimization": {"reduce_bucket_size": "big"}},
]


@pytest.mark.parametrize("ranks", [2], indirect=True)
@pytest.mark.parametrize("given", REJECTED_BY_DEEPSPEED, ids=str)
def test_keys_that_deepspeed_rejects_are_named(ranks: Ranks, workspace: Path, given: dict[str, Any]) -> None:
    raw = text(workspace, "refused", engine={"stage": 2, "deepspeed": given})
    with pytest.raises(AssertionError, match=r"engine\.deepspeed.*DeepSpeed (rejects it|has no such key)"):
        ranks.run(run_config, raw)


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_engine_deepspeed_keys_reach_deepspeed(ranks: Ranks, workspace: Path) -> None:
    given = {"zero_optimization": {"offload_optimizer": {"device": "cpu"}, "round_robin_gradients": True}}
    raw = text(workspace, "passed-on", engine={"stage": 2, "deepspeed": given})
    plain = text(workspace, "not-passed-on", engine={"stage": 2})
    ranks.run(run_config, raw)
    ranks.run(run_config, plain)
    assert losses(raw) == pytest.approx(losses(plain), rel=1e-5)
    # With round_robin_gradients each rank holds other parameters.
    assert tensors(last(raw)).keys() != tensors(last(plain)).keys()


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_state_of_another_optimizer_is_refused(ranks: Ranks, workspace: Path) -> None:
    first = text(workspace, "lamb", stop_after="3 steps")
    ranks.run(run_config, first)
    with pytest.raises(AssertionError, match=r"the state of Lamb, not of AdamW; set optimizer\.name: lamb"):
        ranks.run(run_config, text(workspace, "adamw", resume=str(last(first)), optimizer={"name": "adamw"}))


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_other_batch_size_cannot_resume_between_its_steps(ranks: Ranks, workspace: Path) -> None:
    first = text(workspace, "first", stop_after="3 steps")
    ranks.run(run_config, first)
    other = text(workspace, "other", batch={"global": 32}, resume=str(last(first)))
    with pytest.raises(AssertionError, match="resume with the batch size that it was made with"):
        ranks.run(run_config, other)
    ranks.run(run_config, text(workspace, "same", resume=str(last(first)), engine={"stage": 3}))
    assert len(losses(text(workspace, "same"))) == 5


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_target_ends_the_run_when_it_is_reached(ranks: Ranks, workspace: Path) -> None:
    """A restart of the finished run does not train; with a changed target the run resumes."""
    easy = {"every": "1 steps", "target": "loss <= 1e9"}
    raw = text(workspace, "target", evaluate={"every": "3 steps", "target": "loss <= 1e9"})
    run = Path(raw["runs"]) / raw["name"]
    for _ in range(2):
        ranks.run(run_config, raw)
        history = read(run)
        assert (history.state, history.train[-1]["step"], len(history.eval)) == ("reached", 3, 1)
        assert last(raw).name == "step-00000003"
    assert (run / "finished.json").exists()
    assert (run / "export" / "model.safetensors").exists()

    ranks.run(run_config, merged(raw, {"evaluate": {**easy, "target": "loss <= 0.01"}}))
    assert read(run).state == "finished"
    assert last(raw).name == "step-00000008"


@pytest.mark.parametrize("ranks", [2], indirect=True)
@pytest.mark.parametrize("step", [4, 8])
def test_pending_evaluation_is_made_on_resume(ranks: Ranks, workspace: Path, step: int) -> None:
    """The run was killed between checkpoint and evaluation, in the middle or at the end."""
    raw = text(workspace, f"cut-{step}", evaluate={"every": "4 steps"}, checkpoint={"every": "4 steps"})
    raw |= {"stop_after": f"{step} steps"}
    ranks.run(run_config, raw)
    run = Path(raw["runs"]) / raw["name"]
    whole = read(run).eval
    lines = [line for line in (run / "metrics.jsonl").read_text().splitlines() if f'"step": {step}' in line]
    cut = [line for line in lines if '"event": "eval"' in line or '"event": "end"' in line]
    assert len(cut) == 2
    text_ = (run / "metrics.jsonl").read_text()
    for line in cut:
        text_ = text_.replace(line + "\n", "")
    (run / "metrics.jsonl").write_text(text_)
    (run / "finished.json").unlink(missing_ok=True)
    ranks.run(run_config, merged(raw, {"stop_after": "8 steps"}))
    history = read(run)
    assert [line["step"] for line in history.eval] == [4, 8]
    assert history.eval[: len(whole)] == [
        {**old, "time": new["time"], "seconds": new["seconds"]} for old, new in zip(whole, history.eval, strict=False)
    ]
    assert history.state == "finished"
    assert (run / "finished.json").exists()


@pytest.mark.parametrize(
    "text_, values, holds",
    [
        ("accuracy >= 0.5", {"accuracy": 0.5}, True),
        ("val/Loss<=2", {"loss": 2.1}, False),
        ("loss <= 2", {"loss": float("nan")}, False),
        ("loss <= 2", {}, False),
    ],
)
def test_target_holds(text_: str, values: dict[str, float], holds: bool) -> None:
    assert c.Target.parse(text_).holds(values) is holds


@pytest.mark.parametrize("wrong", ["accuracy > 0.9", "loss <= e", "0.9", 0.9, "accuracy >= 90", "accuracy <= 0.9"])
def test_invalid_target_is_refused(workspace: Path, wrong: Any) -> None:
    with pytest.raises(c.ConfigErrors, match=r"evaluate\.target.*write 'accuracy >= 0\.9'"):
        c.validate(text(workspace, "wrong", evaluate={"target": wrong}))


@pytest.mark.parametrize(
    ("evaluate", "message"),
    [
        (
            {"target": "perplexity <= 3"},
            r"evaluate\.target: .*perplexity is not measured where data\.kind is text; name one of loss, accuracy",
        ),
        ({"best": "f1", "every": "1 steps"}, r"evaluate\.best: .*f1 is not measured"),
    ],
)
def test_target_that_no_evaluation_measures_is_refused(workspace: Path, evaluate: dict[str, str], message: str) -> None:
    with pytest.raises(c.ConfigErrors, match=message):
        c.validate(text(workspace, "wrong", evaluate=evaluate))

"""Keys of `engine` that make a step faster: compiled layers, channels_last, TF32, cuDNN's choice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bellwether.trainer import acceleration, compile
from bellwether.trainer import config as c
from bellwether.trainer.config.schema import ModelConfig
from bellwether.trainer.config.schema.engine import Engine
from bellwether.trainer.data import Dataset
from bellwether.trainer.models import build
from tests.ranks import Ranks
from tests.tiers import covering
from tests.trainer.models import families
from tests.trainer.models.test_bert import batch
from tests.trainer.runs import images, last, losses, run_config, tensors, text

NONE: Any = None
CPU = torch.device("cpu")
PIXELS = {"pixel_values": torch.rand(3, 3, 32, 32), "labels": torch.tensor([1, 0, 2])}
MODELS = {
    "bert": ({"kind": "bert", "size": "tiny"}, batch()),
    "cifar-resnet": ({"kind": "cifar-resnet", "depth": 14}, PIXELS),
    "resnet": ({"kind": "resnet", "depth": 18}, PIXELS),
    "resnet-50": ({"kind": "resnet", "depth": 50}, PIXELS),
    "convnext": ({"kind": "image-classifier", "config": families.classifier("convnext")}, PIXELS),
}  # fmt: skip


def task_of(model: str, **engine: Any) -> Any:
    torch.manual_seed(0)
    task = build(
        ModelConfig.model_validate(MODELS[model][0]),
        Dataset(NONE, NONE, vocabulary_size=100, classes=3, channels=3, labels=list("abc")),
    )
    acceleration.accelerate(task, Engine(**engine), CPU)
    return task


def passes(task: Any, given: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    torch.manual_seed(1)
    task.zero_grad()
    loss = task(**given)[0]
    loss.mean().backward()
    return [loss.detach(), *(p.grad for p in task.parameters())]


@covering(lambda model: model in ("bert", "cifar-resnet"))
@pytest.mark.parametrize("model", MODELS)
def test_compiled_layers_are_whole_graphs_with_the_same_results(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(compile, "BACKEND", backend)
    plain, given = task_of(model), MODELS[model][1]
    expected = passes(plain, given)
    task = task_of(model, compile="layers")
    found = passes(task, given)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
    assert list(task.state_dict()) == list(plain.state_dict())
    kinds = {tuple(p.shape for p in layer.parameters()) for layer in compile.layers(task.model)}
    assert len(kinds) <= len(graphs) <= 2 * len(kinds)  # a stride of 2 is another graph
    count = len(graphs)
    passes(task, given), passes(plain, given)
    assert len(graphs) == count  # nothing is compiled again
    task.eval()
    with torch.no_grad():
        assert torch.equal(task(**given)[0], plain.eval()(**given)[0])


@pytest.mark.full
@pytest.mark.process  # inductor's compiler
def test_inductor_compiles_a_layer_of_bert(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import torch._inductor.config as inductor

    monkeypatch.setattr(inductor, "compile_threads", 1)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    given = MODELS["bert"][1]
    results = [passes(task_of("bert", **engine).eval(), given) for engine in ({}, {"compile": "layers"})]
    for ours, theirs in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)  # fused operations round otherwise


def test_layer_that_cannot_be_compiled_names_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    def backend(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(compile, "BACKEND", backend)
    with pytest.raises(
        c.ConfigError, match=r"engine.compile: 'layers': BertLayer cannot be compiled: .*no compiler here.*; write none"
    ):
        passes(task_of("bert", compile="layers"), MODELS["bert"][1])
    with pytest.raises(c.ConfigError, match=r"the layers of Linear are not known; write none"):
        compile.compile_layers(nn.Linear(2, 2))


@pytest.mark.parametrize("engine, message", [
    ({"stage": 3}, "ZeRO 3 gathers the weights inside of each layer"),
    ({"activation_checkpointing": True}, "what activation_checkpointing recomputes would draw other dropout"),
])  # fmt: skip
def test_compiled_layers_are_refused_where_they_would_train_wrongly(engine: dict[str, Any], message: str) -> None:
    c.validate(text(Path("x"), "x", engine=engine))
    with pytest.raises(c.ConfigErrors, match=f"engine.compile: 'layers': {message}"):
        c.validate(text(Path("x"), "x", engine={**engine, "compile": "layers"}))


def _compiled(raw: dict[str, Any]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compile, "BACKEND", "aot_eager")
        run_config(raw)


@covering(lambda make, stage: (make, stage) == (text, 2))
@pytest.mark.parametrize("ranks", [2], indirect=True)
@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("make", [text, images])
def test_run_with_compiled_layers_resumes_to_the_same_bits(
    ranks: Ranks, workspace: Path, make: Any, stage: int
) -> None:
    def raw(name: str, **changes: Any) -> dict[str, Any]:
        engine = {"stage": stage, "compile": "layers"}
        return make(workspace, f"compiled-{make.__name__}-{stage}-{name}", duration="4 steps", engine=engine, **changes)

    straight, stopped = raw("straight"), raw("resumed", stop_after="2 steps")
    ranks.run(_compiled, straight)
    ranks.run(_compiled, stopped)
    resumed = {**stopped, "stop_after": None}
    ranks.run(_compiled, resumed)
    assert losses(resumed) == losses(straight)
    ours, theirs = tensors(last(resumed)), tensors(last(straight))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    # Checkpoints are those of the model itself: it continues without compilation.
    assert not [key for key in ours if "orig_mod" in key]


@pytest.mark.full
@pytest.mark.parametrize("ranks", [2], indirect=True)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_channels_last_trains_alike_in_all_stages(ranks: Ranks, workspace: Path, precision: str) -> None:
    found = {}
    for stage in (0, 1, 2, 3):
        for last_ in (True, False) if stage == 2 else (True,):
            raw = images(
                workspace, f"layout-{precision}-{stage}-{last_}", duration="3 steps", data={"mean": [0.3] * 3, "std": [0.3] * 3},
                engine={"stage": stage, "precision": precision, "channels_last": last_},
            )  # fmt: skip
            ranks.run(run_config, raw)
            found[stage, last_] = losses(raw)
    tolerance = 1e-5 if precision == "fp32" else 2e-2  # sums in another order; bf16 has 8 bits
    assert all(each == pytest.approx(found[2, False], rel=tolerance) for each in found.values())


def test_channels_last_reaches_every_convolution() -> None:
    for wanted in (True, False, None):
        task = task_of("cifar-resnet", channels_last=wanted)
        formats: list[bool] = []
        for module in task.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(
                    lambda module, args, out, formats=formats: formats.append(
                        args[0].is_contiguous(memory_format=torch.channels_last)
                    )
                )
                assert module.weight.is_contiguous()
        passes(task, PIXELS)
        assert len(formats) == 13
        assert all(each is bool(wanted) for each in formats)
        assert all(p.grad.is_contiguous() for p in task.parameters())  # as DeepSpeed takes it to be
    acceleration.accelerate(task, Engine(), torch.device("cuda"))
    assert task.channels_last


@pytest.mark.parametrize("tf32", [True, False])
def test_switches_of_torch_are_set_on_a_gpu_alone(tf32: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", calls.append)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", not tf32)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    acceleration.configure(Engine(tf32=tf32, cudnn_benchmark=True), CPU)
    assert not calls
    assert torch.backends.cudnn.allow_tf32 is not tf32
    acceleration.configure(Engine(tf32=tf32, cudnn_benchmark=True), torch.device("cuda"))
    assert calls == ["high" if tf32 else "highest"]
    assert torch.backends.cudnn.allow_tf32 is tf32
    assert torch.backends.cudnn.benchmark is True


def test_plan_names_what_differs_from_the_default() -> None:
    assert Engine().label == "ZeRO 2, fp32"
    every = Engine(stage=1, tf32=True, compile="layers", channels_last=True, cudnn_benchmark=True)
    assert every.label == "ZeRO 1, fp32, TF32 on GPUs, compiled layers, channels last, cuDNN's fastest convolutions"
    assert Engine(precision="bf16", tf32=True).label == "ZeRO 2, bf16"


def test_compiled_blocks_lose_the_same_branches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of stochastic depth. A second batch needs no other code."""
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(compile, "BACKEND", backend)
    monkeypatch.setitem(MODELS, "depth", ({"kind": "cifar-resnet", "depth": 14, "stochastic_depth": 0.5}, PIXELS))
    plain, task = task_of("depth"), task_of("depth", compile="layers")
    for keys in ([5, 6, 7], [8, 9, 10]):
        given = {**PIXELS, "sample_keys": torch.tensor(keys)}
        expected, found = passes(plain, given), passes(task, given)
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
    assert len(graphs) == len(compile.layers(task.model))

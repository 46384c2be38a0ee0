from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

from bellwether.optimizers import Lamb, groups
from bellwether.optimizers.param_groups import is_norm


def names(model: nn.Module, **keywords: Any) -> tuple[set[str], set[str]]:
    found = groups(model, **keywords)
    optimizer = torch.optim.SGD(found, lr=1.0)
    weights, others = optimizer.param_groups
    assert others["weight_decay"] == 0.0
    assert others["trust_ratio"] is False
    assert "trust_ratio" not in weights
    return set(weights["param_names"]), set(others["param_names"])


def test_torch_layers() -> None:
    model = nn.ModuleDict({
        "conv": nn.Conv2d(3, 4, 3), "bn": nn.BatchNorm2d(4), "gn": nn.GroupNorm(2, 4), "ln": nn.LayerNorm(4), "rms": nn.RMSNorm(4),
        "inorm": nn.InstanceNorm1d(4, affine=True), "sync": nn.SyncBatchNorm(4), "attention": nn.MultiheadAttention(4, 2),
        "embedding": nn.Embedding(5, 4),
    })  # fmt: skip
    weights, others = names(model, weight_decay=0.1)
    assert weights == {
        "conv.weight",
        "embedding.weight",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
    }
    assert "attention.in_proj_bias" in others
    assert {
        "bn.weight",
        "gn.weight",
        "ln.weight",
        "rms.weight",
        "inorm.weight",
        "sync.weight",
        "conv.bias",
    } <= others


def test_bert_tied_parameter_once_and_frozen_skipped() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    model = transformers.BertForMaskedLM(config)
    model.bert.embeddings.position_embeddings.weight.requires_grad = False
    weights, others = names(model)
    assert "bert.embeddings.word_embeddings.weight" in weights
    assert not any("decoder.weight" in n or "position_embeddings" in n for n in weights | others)
    assert "bert.embeddings.LayerNorm.weight" in others
    assert "cls.predictions.transform.LayerNorm.weight" in others
    assert "cls.predictions.bias" in others
    assert all("bias" in n or "LayerNorm" in n for n in others)
    assert not any("bias" in n or "LayerNorm" in n for n in weights)


@pytest.mark.parametrize(
    ("module", "path"),
    [("LlamaRMSNorm", "llama.modeling_llama"), ("T5LayerNorm", "t5.modeling_t5"), ("ConvNextLayerNorm", "convnext.modeling_convnext"),
     ("Qwen2RMSNorm", "qwen2.modeling_qwen2")],
)  # fmt: skip
def test_transformers_norms_are_recognized(module: str, path: str) -> None:
    models = pytest.importorskip(f"transformers.models.{path}")
    assert is_norm(getattr(models, module)(8))


def test_similar_names_are_no_norms() -> None:
    class Normaliser(nn.Module):
        pass

    class LayerNormLinear(nn.Linear):
        """As in Transformer Engine: a norm and a matrix in one module."""

    class NormedEmbedding(nn.Embedding):  # as in Inkling of transformers
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            found = super().forward(tokens)
            return found * torch.rsqrt(found.square().mean(-1, keepdim=True))

    assert not is_norm(NormedEmbedding(4, 2))
    assert not is_norm(Normaliser())
    assert not is_norm(LayerNormLinear(2, 2))
    assert not is_norm(nn.Linear(2, 2))


def test_empty_group_is_omitted() -> None:
    assert len(groups(nn.Linear(2, 2, bias=False))) == 1
    assert len(groups(nn.LayerNorm(2))) == 1


@pytest.mark.process
def test_the_package_needs_torch_alone() -> None:
    """`import bellwether.optimizers` imports neither DeepSpeed, transformers nor the trainer."""
    program = (
        "import sys; before = set(sys.modules); import torch; torched = set(sys.modules); import bellwether.optimizers;"
        "new = {m.split('.')[0] for m in set(sys.modules) - torched};"
        "assert new <= {'bellwether'} | set(sys.stdlib_module_names), new"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


class Block(nn.Module):
    """Parameters of all kinds, under names that lists of names miss."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((4,), 1e-6))  # LayerScale
        self.layer_scale = nn.Parameter(torch.full((4, 1, 1), 1e-6))
        self.rnn = nn.LSTM(4, 4)
        self.pos_bias_u = nn.Parameter(torch.zeros(2, 4))
        self.relative_attention_bias = nn.Embedding(5, 2)
        self.heads = HeadScale()
        self.norm = nn.LayerNorm((3, 4))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 4))
        self.cosine = Cosine()
        self.regression = nn.Linear(4, 1)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))


class HeadScale(nn.Module):
    """Root mean square normalization with a weight for each head, and no norm in its name."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._scaled(x) * self.weight

    def _scaled(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


class Cosine(nn.Module):
    """A matrix that is normalized is still a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ nn.functional.normalize(self.weight).T


def test_vectors_biases_and_norms_have_neither_decay_nor_ratio() -> None:
    weights, others = names(Block())
    assert weights == {
        "rnn.weight_ih_l0", "rnn.weight_hh_l0", "cls_token", "cosine.weight", "regression.weight",
        "normed.parametrizations.weight.original1",
    }  # fmt: skip
    assert {
        "gamma",
        "layer_scale",
        "rnn.bias_ih_l0",
        "pos_bias_u",
        "relative_attention_bias.weight",
        "heads.weight",
    } < others
    assert {"norm.weight", "normed.parametrizations.weight.original0"} < others


def test_layer_scale_grows_as_without_a_ratio() -> None:
    """LAMB left a gamma of 1e-6 at 2.7e-6 after 100 steps."""
    model = nn.Module()
    model.gamma = nn.Parameter(torch.full((4,), 1e-6))
    optimizer = Lamb(groups(model), lr=0.01)
    for _ in range(100):
        model.gamma.grad = torch.full((4,), -1.0)
        optimizer.step()
    assert model.gamma[0].item() == pytest.approx(1.0, rel=1e-3)


def test_whole_shape_under_zero_init() -> None:
    """deepspeed.zero.Init leaves a shape of (0,) and keeps the whole one in ds_shape."""
    model = nn.Module()
    model.first, model.second = nn.Parameter(torch.empty(0)), nn.Parameter(torch.empty(0))
    model.first.ds_shape, model.second.ds_shape = torch.Size((4, 4)), torch.Size((4,))
    assert names(model) == ({"first"}, {"second"})


def test_include_and_exclude_by_pattern() -> None:
    weights, others = names(Block(), include=["gamma"], exclude=["cls_*", "rnn.weight*"])
    assert "gamma" in weights
    assert {"cls_token", "rnn.weight_ih_l0"} < others
    with pytest.raises(ValueError, match=r"'clss_token' matches no parameter; the nearest of \d+ names: .*cls_token"):
        groups(Block(), exclude=["clss_token"])


def test_layer_decay_and_lr_scale() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
    )
    model = transformers.BertForSequenceClassification(config)
    optimizer = Lamb(groups(model, layer_decay=0.5, lr_scale={"classifier.*": 10.0}), lr=0.8)
    rates = {n: group["lr"] for group in optimizer.param_groups for n in group["param_names"]}
    assert rates["bert.embeddings.word_embeddings.weight"] == pytest.approx(0.1)
    assert rates["bert.encoder.layer.0.attention.self.query.weight"] == pytest.approx(0.2)
    assert rates["bert.encoder.layer.1.output.LayerNorm.bias"] == pytest.approx(0.4)
    assert rates["bert.pooler.dense.weight"] == pytest.approx(0.8)
    assert rates["classifier.weight"] == rates["classifier.bias"] == pytest.approx(8.0)
    assert all("lr_scale" not in group for group in optimizer.param_groups)
    with_lr = groups(model, lr=0.8, layer_decay=0.5)
    assert {round(g["lr"], 6) for g in with_lr} == {0.8, 0.4, 0.2, 0.1}


def test_deepspeed_moe_split_finds_the_experts() -> None:
    utils = pytest.importorskip("deepspeed.moe.utils")
    model = nn.ModuleDict({"dense": nn.Linear(4, 4), "expert": nn.Linear(4, 4)})
    for p in model["expert"].parameters():
        p.allreduce, p.group_name = False, "ep_size_1"
    split = utils.split_params_into_different_moe_groups_for_optimizer(groups(model, names=False))
    optimizer = Lamb(split)
    assert [(group["name"], group.get("moe", False)) for group in optimizer.param_groups] == [
        ("weights", False), ("others", False), ("ep_size_1", True), ("ep_size_1", True),
    ]  # fmt: skip
    assert [group["trust_ratio"] for group in optimizer.param_groups] == [True, False, True, False]


def test_layer_scale_named_ls_is_a_scale() -> None:
    model = nn.ParameterDict(
        {
            "ls": nn.Parameter(torch.ones(4, 1, 1)),
            "ls2": nn.Parameter(torch.ones(4, 1)),
            "false": nn.Parameter(torch.ones(4, 1)),
        }
    )
    assert names(model) == ({"false"}, {"ls", "ls2"})

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from bellwether.optimizers import groups
from bellwether.optimizers.param_groups import is_norm


def names(model: nn.Module, **keywords: float) -> tuple[set[str], set[str]]:
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

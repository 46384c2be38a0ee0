"""Muon: its iteration, its param groups, and each fault that DeepSpeed's own Muon had.

That sharded equals unsharded under every engine is tested by test_sharded.py and test_engines.py, for each optimizer.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from bellwether.optimizers import AdamW, Lookahead, Muon, Swats, attach, groups
from bellwether.optimizers.muon import newton_schulz
from bellwether.optimizers.shards import exchange
from bellwether.optimizers.shards.exchange import assign_owners
from tests.optimizers import sharded
from tests.optimizers.family import FAMILY
from tests.optimizers.reference import _newton_schulz as newton_schulz_of_singular_values
from tests.optimizers.test_sharded import check, expected
from tests.precision import skip_without
from tests.ranks import Ranks
from tests.tiers import covering

DEFAULT = (3.4445, -4.775, 2.0315)


@pytest.mark.parametrize("shape", [(5, 7), (7, 5), (4, 4), (1, 6), (6, 1)])
def test_iteration_acts_on_the_singular_values(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = newton_schulz(matrix, DEFAULT, 5, 1e-7)
    assert torch.allclose(found, torch.tensor(newton_schulz_of_singular_values(matrix.numpy())), atol=1e-12)
    # The coefficients of the Newton-Schulz iteration proper converge to U V^T.
    u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
    assert torch.allclose(newton_schulz(matrix, (1.5, -0.5, 0.0), 60, 1e-7), u @ vt, atol=1e-9)


OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "plain momentum": {"nesterov": False, "momentum": 0.8},
    "adamw's size": {"adjust_lr_fn": "match_rms_adamw", "weight_decay": 0.3},
    "other iteration": {"ns_steps": 3, "ns_coefficients": (3.0, -3.2, 1.2), "eps": 1e-3},
    "no momentum": {"momentum": 0.0, "adjust_lr_fn": "original", "weight_decay": 0.0},
}


@pytest.mark.parametrize("case", OPTIONS)
def test_arithmetic_is_that_of_torch(case: str) -> None:
    """To the rounding of 10 steps in fp32, in which torch rounds twice a step: bf16 matrices are the same bits."""
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(shape)) for shape in [(5, 7), (33, 9), (16, 16)]]
    twins = [nn.Parameter(p.detach().clone()) for p in params]
    ours, theirs = Muon(params, lr=0.02, **OPTIONS[case]), torch.optim.Muon(twins, lr=0.02, **OPTIONS[case])
    for _ in range(10):
        for p, q in zip(params, twins, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        ours.step()
        theirs.step()
    for p, q in zip(params, twins, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=2e-6)


def test_signature_begins_as_torch_s() -> None:
    ours, theirs = (inspect.signature(kind).parameters for kind in (Muon, torch.optim.Muon))
    for (name, own), (other_name, other) in zip(ours.items(), theirs.items(), strict=False):
        assert name == other_name
        assert (
            own.default == pytest.approx(other.default) if name == "ns_coefficients" else own.default == other.default
        )


def test_state_of_torch_s_muon_continues() -> None:
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(6, 4))]
    twins = [nn.Parameter(params[0].detach().clone())]
    ours, theirs = Muon(params, lr=0.5), torch.optim.Muon(twins, lr=0.02, ns_steps=4)
    gradients = torch.randn(6, 6, 4)
    for step, g in enumerate(gradients):
        twins[0].grad = g.clone()
        theirs.step()
        if step == 2:
            params[0].data.copy_(twins[0].data)
            ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
        elif step > 2:
            params[0].grad = g.clone()
            ours.step()
    torch.testing.assert_close(params[0], twins[0], rtol=0, atol=2e-6)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(11, 8)
        self.pos_embed = nn.Parameter(torch.zeros(1, 5, 8))
        self.layers = nn.ModuleList([nn.TransformerEncoderLayer(8, 2, 16) for _ in range(2)])
        self.gate = nn.Parameter(torch.ones(1, 8))
        self.head = nn.Linear(8, 11)


def kinds(found: list[dict[str, Any]]) -> dict[str, tuple[bool, bool]]:
    """Of each parameter: (whether Muon updates it, whether it has weight decay)."""
    return {name: (g["muon"], g.get("weight_decay", 1) > 0) for g in found for name, _ in g["params"]}


def test_groups_give_hidden_matrices_to_muon() -> None:
    found = kinds(groups(Encoder(), muon=True))
    matrices = {name for name, (muon, _) in found.items() if muon}
    per_layer = ("self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight")
    assert matrices == {f"layers.{i}.{name}" for i in range(2) for name in per_layer}
    decayed = {name for name, (muon, decays) in found.items() if decays and not muon}
    assert decayed == {"embeddings.weight", "pos_embed", "gate", "head.weight"}
    excluded = kinds(groups(Encoder(), muon=True, muon_exclude=["*.in_proj_weight"]))
    assert excluded["layers.0.self_attn.in_proj_weight"] == (False, True)
    with pytest.raises(ValueError, match=r"pattern 'nothing\*' matches no parameter"):
        groups(Encoder(), muon=True, muon_exclude=["nothing*"])
    names = [group["name"] for group in groups(Encoder(), muon=True, names=False)]
    assert names == ["matrices", "weights", "others"]


def test_groups_of_transformers_models() -> None:
    from transformers import (
        BertConfig,
        BertForMaskedLM,
        BertForPreTraining,
        BertForSequenceClassification,
        ResNetConfig,
        ResNetForImageClassification,
    )

    size = BertConfig(vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    found = kinds(groups(BertForMaskedLM(size), muon=True))
    assert not found["bert.embeddings.word_embeddings.weight"][0]  # and the output layer, which is tied to it
    assert found["cls.predictions.transform.dense.weight"] == (True, True)
    assert found["bert.encoder.layer.0.attention.self.query.weight"] == (True, True)
    assert found["cls.predictions.bias"] == (False, False)
    assert kinds(groups(BertForSequenceClassification(size), muon=True))["classifier.weight"] == (False, True)
    pretraining = kinds(groups(BertForPreTraining(size), muon=True))
    assert pretraining["cls.seq_relationship.weight"] == (False, True)
    assert pretraining["cls.predictions.transform.dense.weight"] == (True, True)
    net = ResNetConfig(embedding_size=4, hidden_sizes=[4, 4], depths=[1, 1], layer_type="basic")
    found = kinds(groups(ResNetForImageClassification(net), muon=True))
    assert not found["classifier.1.weight"][0]
    assert found["resnet.encoder.stages.0.layers.0.layer.0.convolution.weight"] == (True, True)


class WordEmbedding(nn.Module):
    """Of a class that is not torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(11, 8))


def test_embeddings_of_any_kind_are_not_muon_s() -> None:
    model = nn.ModuleDict({"words": WordEmbedding(), "hidden": nn.ModuleList([nn.Linear(8, 8)])})
    model["table"] = nn.ParameterDict(
        {name: nn.Parameter(torch.zeros(11, 8)) for name in ("wte", "wpe", "pos_emb", "x")}
    )
    matrices = {name for name, (muon, _) in kinds(groups(model, muon=True)).items() if muon}
    assert matrices == {"hidden.0.weight", "table.x"}


def test_output_layer_is_the_last_linear_outside_of_a_list() -> None:
    plain = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    assert {name for name, (muon, _) in kinds(groups(plain, muon=True)).items() if muon} == {"0.weight"}
    backbone = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])})
    assert all(muon for name, (muon, _) in kinds(groups(backbone, muon=True)).items() if "weight" in name)


def test_groups_of_adamw_take_its_steps() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 3)
    twin = nn.Parameter(layer.bias.detach().clone())
    given = [{"params": [layer.weight]}, {"params": [layer.bias], "muon": False, "weight_decay": 0.0}]
    ours = Muon(given, lr=0.1, adam_lr=0.01, betas=(0.8, 0.9), adam_eps=1e-3)
    assert [group["lr"] for group in ours.param_groups] == [0.1, 0.01]
    theirs = AdamW([twin], lr=0.01, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.0)
    for _ in range(5):
        layer.weight.grad, layer.bias.grad = torch.randn(3, 4), torch.randn(3)
        twin.grad = layer.bias.grad.clone()
        ours.step()
        theirs.step()
    assert torch.equal(layer.bias, twin)
    assert ours.state[layer.bias].keys() == {"step", "exp_avg", "exp_avg_sq"}
    assert ours.state[layer.weight].keys() == {"step", "momentum_buffer"}


def test_convolution_is_the_matrix_of_its_filters() -> None:
    torch.manual_seed(0)
    filters = nn.Parameter(torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last))
    matrix = nn.Parameter(filters.detach().reshape(4, 12).clone())
    for p in (filters, matrix):
        p.grad = torch.ones_like(p) + p.detach()
        Muon([p], lr=0.1, ns_dtype=torch.float32).step()
    torch.testing.assert_close(filters.reshape(4, 12), matrix)
    assert filters.is_contiguous(memory_format=torch.channels_last)


def two(**options: Any) -> dict[str, Any]:
    return {"params": [nn.Parameter(torch.ones(2, 2))], **options}


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "vector": ([nn.Parameter(torch.ones(3))], {}, r"of shape \(3,\) is not a matrix: .* muon=False"),
    "trust ratio": ([two(trust_ratio=True)], {}, "trust_ratio=True: Muon's update has its size from adjust_lr_fn"),
    "dtype": ([two()], {"ns_dtype": "float8"}, "ns_dtype='float8': must be one of bf16, fp16, fp32, fp64"),
    "dtype of a group": ([two(ns_dtype=torch.int8)], {}, "ns_dtype=torch.int8: must be one of bf16"),
    "steps": ([two()], {"ns_steps": 100}, "ns_steps=100: must be a whole number from 0 to 99"),
    "coefficients": ([two()], {"ns_coefficients": (1.0, 2.0)}, "must be three finite numbers"),
    "adjust_lr_fn": (
        [two()],
        {"adjust_lr_fn": "rms"},
        "adjust_lr_fn='rms': must be None, 'original' or 'match_rms_adamw'",
    ),
    "use_muon": ([two(use_muon=True)], {}, "use_muon=True: write muon=True"),
    "prox-metric": ([two()], {"weight_decay_mode": "prox-metric"}, "has no metric"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    params, options, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        Muon(params, **options)


def test_swats_is_refused() -> None:
    with pytest.raises(TypeError, match="Swats around Muon: it starts with Adam"):
        Swats(Muon([nn.Parameter(torch.ones(2, 2))]))


def test_owners_are_balanced_and_few_parameters_travel() -> None:
    costs = {(0, i): float(cost) for i, cost in enumerate([8, 7, 6, 5, 4, 3, 2, 1])}
    alone = assign_owners(costs, dict.fromkeys(costs, 0), 4)  # rank 0 holds all
    loads = [sum(costs[key] for key, owner in alone.items() if owner == rank) for rank in range(4)]
    assert loads == [9.0, 9.0, 9.0, 9.0]
    holders = {(0, i): i % 4 for i in range(8)}
    assert assign_owners(dict.fromkeys(costs, 1.0), holders, 4) == holders
    assert set(assign_owners({(0, 0): 1.0}, {(0, 0): 5}, 4096).values()) == {0}


# Each fault that DeepSpeed's Muon had in 2026, as a test. With its fault, each is off by far more than the tolerance.


@pytest.mark.parametrize("ranks", [2], indirect=True)
@pytest.mark.parametrize("stage", [1, 2])
def test_deepspeed_7807_parameters_across_partitions_with_reduce_scatter(ranks: Ranks, stage: int) -> None:
    """And #7776, #8090. ``big`` lies on both ranks."""
    results = ranks.run(sharded.train, "muon", {"stage": stage, "reduce_scatter": True})
    assert all("big" in result["owned"] for result in results)
    check(results, "muon")


def _overflow() -> list[float]:
    """Two steps, of which the first overflows in fp16; and the second alone."""
    weights = []
    for first in (True, False):
        engine, optimizer = sharded.engine(
            "muon", {"stage": 2}, fp16={"enabled": True, "initial_scale_power": 4, "hysteresis": 1, "min_loss_scale": 1}
        )
        if first:
            world, rank = dist.get_world_size(), dist.get_rank()
            batch = {k: torch.tensor(v[rank::world]) * 60000 for k, v in sharded.targets(0).items()}
            engine.backward(engine(batch))
            engine.step()
            assert engine.skipped_steps == 1
        sharded.feed(engine, 1)
        owned = sharded.owned(optimizer)
        weights += [float(np.concatenate([v for parts in owned.values() for _, v in parts]).sum())]
        engine.destroy()
    return weights


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_deepspeed_8432_overflow_does_not_enter_the_momentum(ranks: Ranks) -> None:
    skip_without("fp16", ranks)
    for after_overflow, alone in ranks.run(_overflow):
        # The loss scale is another after the overflow, and with it the rounding of fp16 gradients.
        assert after_overflow == pytest.approx(alone, rel=1e-3)
        assert np.isfinite(after_overflow)


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_deepspeed_8438_zero_init(ranks: Ranks) -> None:
    check(ranks.run(_with_init), "muon")


def _with_init() -> dict[str, Any]:
    return sharded.train("muon", {"stage": 3}, init=True)


def _classified() -> list[tuple[str, bool]]:
    import deepspeed

    config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}}
    with deepspeed.zero.Init(config_dict_or_path=config):
        model = Encoder()
    return sorted((name, muon) for name, (muon, _) in kinds(groups(model, muon=True)).items())


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_deepspeed_8438_groups_see_whole_shapes(ranks: Ranks) -> None:
    whole = sorted((name, muon) for name, (muon, _) in kinds(groups(Encoder(), muon=True)).items())
    assert ranks.run(_classified) == [whole, whole]


def test_deepspeed_8441_stage_0_orthogonalizes() -> None:
    """And #8442. Without it the step is momentum SGD: singular values as far apart as those of the gradient."""
    weight = nn.Parameter(torch.zeros(6, 6, dtype=torch.float64))
    weight.grad = torch.diag(torch.tensor([1.0, 0.5, 0.3, 0.2, 0.1, 0.1], dtype=torch.float64))
    Muon([weight], lr=1.0, ns_dtype="fp64").step()
    values = torch.linalg.svdvals(weight.detach())
    assert values.min() > 0.6
    assert values.max() < 1.25


@covering(lambda ranks, stage: ranks == 2 and stage == 3)
@pytest.mark.parametrize("ranks", [2, 4], indirect=True)
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_deepspeed_8443_accumulation_steps_once(ranks: Ranks, stage: int) -> None:
    check(ranks.run(_accumulated, stage), "muon", clip=1.0)


def _accumulated(stage: int) -> dict[str, Any]:
    return sharded.train("muon", {"stage": stage}, clip=1.0, accumulation=2)


def _bf16_optimizer() -> dict[str, Any]:
    return sharded.train(
        "muon", {"stage": 1}, bf16={"enabled": True}, data_types={"grad_accum_dtype": "fp32"}
    )  # fmt: skip


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_deepspeed_8461_bf16_optimizer_orthogonalizes(ranks: Ranks) -> None:
    """SGD would be off by more than 1, as the gradients are near 2. The tolerance is that of bf16 gradients."""
    skip_without("bf16", ranks)
    results = ranks.run(_bf16_optimizer)
    assert {result["wrapper"] for result in results} == {"BF16_Optimizer"}
    wanted = expected("muon", 0.0, "bf16").weights
    for result in results:
        for start, values in result["owned"].get("big", []):
            np.testing.assert_allclose(values, wanted["big"].ravel()[start : start + len(values)], atol=2**-7)


def _in_chunks(chunk: int) -> dict[str, Any]:
    before, exchange._CHUNK_NUMEL = exchange._CHUNK_NUMEL, chunk
    try:
        found = sharded.train("muon", {"stage": 3})
        return {**found, "digest": [value.tobytes() for parts in found["owned"].values() for _, value in parts]}
    finally:
        exchange._CHUNK_NUMEL = before


@covering(lambda ranks: ranks == 2)
@pytest.mark.parametrize("ranks", [2, 4], indirect=True)
def test_chunks_do_not_change_a_bit(ranks: Ranks) -> None:
    whole, cut = ranks.run(_in_chunks, 1 << 20), ranks.run(_in_chunks, 64)
    assert [result["digest"] for result in cut] == [result["digest"] for result in whole]
    if ranks.world_size == 2:  # four ranks have one matrix of a group each
        assert cut[0]["reduces"] > whole[0]["reduces"]


def test_lookahead_around_muon() -> None:
    weight = nn.Parameter(torch.zeros(3, 3))
    optimizer = Lookahead(Muon([weight], lr=0.1), k=2, alpha=0.5)
    for _ in range(2):
        weight.grad = torch.eye(3)
        optimizer.step()
    assert 0.04 < -weight[0, 0].item() < 0.13  # half of two steps of 0.7 to 1.2 times lr


class _TensorParallel:
    """Megatron's interface: two ranks, each with a half of the parameters."""

    def __init__(self) -> None:
        self.alone = [dist.new_group([rank]) for rank in range(2)][dist.get_rank()]

    def get_data_parallel_group(self) -> Any:
        return self.alone

    def get_model_parallel_group(self) -> Any:
        return dist.group.WORLD

    get_tensor_model_parallel_group = get_model_parallel_group

    def get_model_parallel_world_size(self) -> int:
        return 2

    get_tensor_model_parallel_world_size = get_model_parallel_world_size

    def get_data_parallel_world_size(self) -> int:
        return 1

    def get_data_parallel_rank(self) -> int:
        return 0

    def get_model_parallel_rank(self) -> int:
        return dist.get_rank()

    get_tensor_model_parallel_rank = get_model_parallel_rank


def _refused_under_tensor_parallelism(rule: str) -> str:
    import deepspeed
    from deepspeed.utils import groups

    model, member = sharded.Toy(), FAMILY[rule]
    optimizer = member.make(member.groups(sharded.param_groups(model)), member.lr)
    config = {
        "train_batch_size": 8, "gradient_clipping": 0.0, "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": 1},
    }  # fmt: skip
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config, mpu=_TensorParallel())
    try:
        attach(engine)
    except NotImplementedError as error:
        return str(error)
    finally:
        engine.destroy()
        groups.mpu = None  # DeepSpeed keeps it for the engines of later tests in this process
    return ""


@pytest.mark.parametrize("ranks", [2], indirect=True)
@pytest.mark.parametrize("rule", ["muon", "lamb", "adamw"])
def test_parts_of_matrices_are_refused(ranks: Ranks, rule: str) -> None:
    for message in ranks.run(_refused_under_tensor_parallelism, rule):
        assert ("under tensor parallelism a rank holds a part of a parameter" in message) == (rule != "adamw"), message

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

from bellwether.optimizers import groups
from bellwether.trainer.config.schema import ModelConfig
from bellwether.trainer.models.auto_classes import AwdLstmConfig, AwdLstmForCausalLM, QrnnConfig, QrnnForCausalLM
from bellwether.trainer.models.pretrained import checkpoint_activations
from bellwether.trainer.models.recurrent_layers import QrnnLayer, WeightDroppedLSTM, linear_scan, locked_dropout
from bellwether.trainer.models.tasks import Task
from tests.trainer.models import recurrent_reference

WORDS, BATCH, LENGTH = 13, 3, 9
KINDS = ["awd-lstm", "qrnn", "qrnn-window-3"]
NO_DROPOUT = dict.fromkeys(
    ("output_dropout", "hidden_dropout", "input_dropout", "embedding_dropout", "weight_dropout"), 0.0
)


def build(kind: str, **keys: Any) -> Any:
    """A model of three layers of 6 elements, without dropout."""
    sizes = {"vocab_size": WORDS, "embedding_size": 4, "hidden_size": 6, "num_hidden_layers": 3, **NO_DROPOUT, **keys}
    torch.manual_seed(0)
    if kind == "awd-lstm":
        return AwdLstmForCausalLM(AwdLstmConfig(**sizes))
    return QrnnForCausalLM(QrnnConfig(window=3 if kind == "qrnn-window-3" else 2, **sizes))


def tokens(length: int = LENGTH, batch: int = BATCH) -> Tensor:
    return torch.randint(WORDS, (batch, length), generator=torch.Generator().manual_seed(1))


def random_state(model: Any) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    zeros = model.initial_state(BATCH, dtype=torch.float64)
    return {name: torch.randn(t.shape, generator=generator, dtype=t.dtype) for name, t in zeros.items()}


def reference(
    model: Any, input_ids: Tensor, state: dict[str, Tensor], zoneout: float = 0.0
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Hidden states [B, T, E] and the state after them from loops over words, and the float64 weights they are computed from."""
    weights = {name: p.detach().double().requires_grad_() for name, p in model.named_parameters()}
    sequences, states = [], []
    for b in range(len(input_ids)):
        x = torch.stack([weights["embedding.weight"][word] for word in input_ids[b]])
        after: dict[str, Tensor] = {}
        for index in range(len(model.layers)):
            prefix = f"layers.{index}."
            own, before = (
                {n.removeprefix(prefix): t for n, t in all_.items() if n.startswith(prefix)}
                for all_ in (weights, {name: tensor[b] for name, tensor in state.items()})
            )
            if isinstance(model, AwdLstmForCausalLM):
                x, new = recurrent_reference.lstm(own, x, before)
            else:
                x, new = recurrent_reference.qrnn(own, x, before, zoneout)
            after |= {prefix + name: tensor for name, tensor in new.items()}
        sequences.append(x)
        states.append(after)
    return torch.stack(sequences), {n: torch.stack([s[n] for s in states]) for n in states[0]}, weights


# float32: rounding over 3 layers and 9 words, a few times 2^-24; bfloat16: the same with 2^-8.
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-6), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_and_gradients_match_the_equations(kind: str, dtype: torch.dtype, tolerance: float) -> None:
    model = build(kind).to(dtype)
    state = {name: tensor.to(dtype) for name, tensor in random_state(model).items()}
    ids, labels = tokens(), tokens().flip(0)
    wanted, wanted_state, weights = reference(model, ids, {name: t.double() for name, t in state.items()})
    logits = wanted @ weights["embedding.weight"].T + weights["lm_head.bias"]
    functional.cross_entropy(logits.flatten(0, 1), labels.flatten()).backward()

    output = model(ids, state)
    assert output.last_hidden_state.dtype == dtype
    found = model.decode(output.last_hidden_state)
    functional.cross_entropy(found.flatten(0, 1).float(), labels.flatten()).backward()
    torch.testing.assert_close(output.raw_hidden_state.double(), wanted, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(found.double(), logits, rtol=tolerance, atol=tolerance)
    assert output.state.keys() == wanted_state.keys() == model.initial_state(BATCH).keys()
    for name, tensor in wanted_state.items():
        torch.testing.assert_close(output.state[name].double(), tensor, rtol=tolerance, atol=tolerance)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad.double(), weights[name].grad, rtol=10 * tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_carried_state_continues_the_sequence(kind: str) -> None:
    """Windows of 1, 2, ... words, shorter than the QRNN's too, give the hidden states and the gradients of one long sequence."""
    model, ids = build(kind), tokens()
    whole = model(ids)
    state, parts = model.initial_state(BATCH), []
    for part in ids.split([1, 2, 1, 5], dim=1):
        output = model(part, state)
        state = output.state
        parts.append(output.last_hidden_state)
        assert {n: t.shape for n, t in state.items()} == {n: t.shape for n, t in model.initial_state(BATCH).items()}
    carried = torch.cat(parts, dim=1)
    torch.testing.assert_close(carried, whole.last_hidden_state)
    for name, tensor in whole.state.items():
        torch.testing.assert_close(state[name], tensor)
    gradients = [
        torch.autograd.grad(h.square().sum(), list(model.layers.parameters()))
        for h in (carried, whole.last_hidden_state)
    ]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_streams_are_independent_of_each_other(kind: str) -> None:
    """A stream's state can be stored and gathered alone; a batch of no streams has gradients of 0."""
    model, ids = build(kind), tokens()
    state = {name: tensor.float() for name, tensor in random_state(model).items()}
    whole = model(ids, state)
    alone = model(ids[1:2], {name: tensor[1:2] for name, tensor in state.items()})
    torch.testing.assert_close(alone.last_hidden_state, whole.last_hidden_state[1:2])
    for name, tensor in alone.state.items():
        torch.testing.assert_close(tensor, whole.state[name][1:2])
    none = model.train()(ids[:0], model.initial_state(0))
    (none.logits.sum() + model.regularisation(none).sum()).backward()
    assert none.last_hidden_state.shape == (0, LENGTH, 4)
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_the_scan_matches_its_loop_in_value_and_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 5, 3), (2, 5, 3), (2, 3)]
    inputs = [torch.rand(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]
    assert torch.autograd.gradcheck(linear_scan, inputs)
    decay, added, cell = inputs
    for t, found in enumerate(linear_scan(*inputs).unbind(1)):
        cell = decay[:, t] * cell + added[:, t]
        torch.testing.assert_close(found, cell)


def test_a_mask_is_the_same_at_all_positions_of_a_sequence() -> None:
    torch.manual_seed(0)
    mask = locked_dropout(torch.ones(200, 7, 50), 0.4, True)
    assert mask.unique().tolist() == pytest.approx([0.0, 1 / 0.6])
    assert torch.equal(mask, mask[:, :1].expand_as(mask))
    assert (mask[0] != mask[1]).any()
    # The share of 10,000 draws has a standard deviation of 0.005.
    assert (mask[:, 0] == 0).float().mean().item() == pytest.approx(0.4, abs=0.025)
    assert torch.equal(locked_dropout(torch.ones(2, 3, 4), 0.4, False), torch.ones(2, 3, 4))


@pytest.mark.parametrize("kind", ["awd-lstm", "qrnn"])
def test_dropout_is_where_its_name_says(kind: str) -> None:
    def factors(name: str, place: str) -> Tensor:
        """What the values at a place of the model are multiplied by in training, [B, T, F]."""
        model = build(kind, hidden_size=40, embedding_size=40, **{name: 0.5}).train()
        seen: list[Tensor] = []
        for layer in model.layers:
            layer.register_forward_hook(lambda _, args, result: seen.extend([args[0], result[0]]))
        torch.manual_seed(1)
        output = model(tokens())
        clean = model.embedding(tokens())
        pairs = {"input": (seen[0], clean), "hidden": (seen[2], seen[1]), "second hidden": (seen[4], seen[3])}
        pairs["output"] = (output.last_hidden_state, output.raw_hidden_state)
        after, before = pairs[place]
        return (after / before).detach().round(decimals=4)

    places = ["input", "hidden", "second hidden", "output"]
    own = {"input_dropout": ["input"], "hidden_dropout": places[1:3], "output_dropout": ["output"]}
    for name, dropped in own.items():
        for place in places:
            found = factors(name, place)
            assert set(found.unique().tolist()) == ({0.0, 2.0} if place in dropped else {1.0}), (name, place)
            assert torch.equal(found, found[:, :1].expand_as(found))  # one mask per sequence
    of_words = factors("embedding_dropout", "input")
    for word in tokens().unique():  # whole words, in all sequences
        assert len(of_words[tokens() == word].unique()) == 1
    assert set(of_words.unique().tolist()) == {0.0, 2.0}


@pytest.mark.parametrize("kind, weight", [("awd-lstm", "weight_hh"), ("qrnn", "weight")])
def test_weights_are_dropped_with_one_mask_for_all_positions(kind: str, weight: str) -> None:
    model = build(kind, num_hidden_layers=1, hidden_size=4, weight_dropout=0.5).train()
    layer = model.layers[0]
    torch.manual_seed(5)
    found = model(tokens()).raw_hidden_state
    torch.manual_seed(5)
    before = getattr(layer, weight).detach().clone()
    dropped = functional.dropout(before, 0.5)
    assert 0 < (dropped == 0).sum() < dropped.numel()
    with torch.no_grad():
        getattr(layer, weight).copy_(dropped)
    torch.testing.assert_close(found, model.eval()(tokens()).raw_hidden_state)
    found.square().sum().backward()
    gradient = getattr(layer, weight).grad
    assert torch.equal(gradient == 0, dropped == 0)


def test_zoneout_keeps_cells_in_training_and_uses_its_expectation_in_evaluation() -> None:
    model = build("qrnn", zoneout=0.3)
    for parameter in model.layers.parameters():
        torch.nn.init.normal_(parameter)
    wanted, _, _ = reference(model, tokens(), model.initial_state(BATCH, dtype=torch.float64), zoneout=0.3)
    torch.testing.assert_close(model.eval()(tokens()).raw_hidden_state.double(), wanted, rtol=1e-5, atol=1e-5)
    layer = QrnnLayer(20, 50, 0.0, 1, 0.3).train()
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    torch.manual_seed(0)
    cell = torch.randn(40, 50)
    _, after = layer(torch.randn(40, 1, 20), {"cell": cell})
    # 2,000 draws: the standard deviation of the share is 0.01.
    assert (after["cell"] == cell).float().mean().item() == pytest.approx(0.3, abs=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_is_a_function_of_torchs_seed(kind: str) -> None:
    model = build(kind, **dict.fromkeys(NO_DROPOUT, 0.4)).train()
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(model(tokens()).last_hidden_state)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize("kind", ["awd-lstm", "qrnn"])
def test_activation_checkpointing_changes_no_bit(kind: str) -> None:
    results = []
    for checkpointing in (False, True):
        model = build(kind, **dict.fromkeys(NO_DROPOUT, 0.3)).train()
        if checkpointing:
            checkpoint_activations(model)
        torch.manual_seed(3)
        output = model(tokens(), {name: tensor.float() for name, tensor in random_state(model).items()})
        (output.logits.square().mean() + model.regularisation(output).mean()).backward()
        results.append([output.last_hidden_state.detach(), *(p.grad for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_regularisation_is_that_of_the_paper_for_each_sequence() -> None:
    model = build("awd-lstm", output_dropout=0.5, alpha=2.0, beta=3.0).train()
    output = model(tokens())
    dropped, raw = output.last_hidden_state.tolist(), output.raw_hidden_state.tolist()
    for b, found in enumerate(model.regularisation(output).tolist()):
        ar = sum(x * x for h in dropped[b] for x in h) / (LENGTH * 4)
        steps = [
            (y - x) ** 2 for h, after in zip(raw[b], raw[b][1:], strict=False) for x, y in zip(h, after, strict=True)
        ]
        assert found == pytest.approx(2 * ar + 3 * sum(steps) / ((LENGTH - 1) * 4), rel=1e-5)
    assert model.to(torch.bfloat16).regularisation(model(tokens())).dtype == torch.float32
    assert torch.isfinite(model.regularisation(model(tokens(length=1)))).all()


@pytest.mark.parametrize("words, millions", [(10_000, 24), (33_278, 33)])  # tables 1 and 2 of Merity et al. 2017
def test_parameter_counts_match_the_paper(words: int, millions: int) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AwdLstmConfig(vocab_size=words))
    assert int(sum(p.numel() for p in model.parameters()) / 1e6) == millions


@pytest.mark.parametrize("kind", ["awd-lstm", "qrnn"])
def test_weights_start_in_the_ranges_of_the_papers(kind: str) -> None:
    model = build(kind, embedding_size=50, hidden_size=60)
    for name, parameter in model.named_parameters():
        if name == "lm_head.bias":
            assert not parameter.any()
            continue
        bound = 0.1
        if name != "embedding.weight":
            layer = model.get_submodule(name.rpartition(".")[0])
            # The paper's 1 / sqrt(hidden size) for an LSTM; nn.Linear's for a QRNN, whose first layer sees two inputs.
            size = len(layer.bias_hh) // 4 if isinstance(layer, WeightDroppedLSTM) else layer.weight.shape[1]
            bound = size**-0.5
        assert parameter.abs().max().item() == pytest.approx(bound, rel=0.1)
        assert parameter.abs().max().item() <= bound


@pytest.mark.parametrize("kind", ["awd-lstm", "qrnn"])
def test_tied_weights_are_updated_once_and_biases_without_decay(kind: str) -> None:
    model = build(kind)
    assert model.lm_head.weight is model.embedding.weight
    weights, biases = groups(model, weight_decay=0.1)
    assert sum(name in ("embedding.weight", "lm_head.weight") for name, _ in weights["params"]) == 1
    assert all("weight" in name for name, _ in weights["params"])
    assert all("bias" in name for name, _ in biases["params"])
    assert biases["weight_decay"] == 0.0
    assert biases["trust_ratio"] is False


@pytest.mark.parametrize("kind", KINDS)
def test_exported_language_model_loads_unchanged(kind: str, tmp_path: Path) -> None:
    model = build(kind, zoneout=0.1, alpha=0.5).eval()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(tokens()).logits, model(tokens()).logits)
    assert loaded.lm_head.weight is loaded.embedding.weight
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.alpha == 0.5
    assert getattr(config, "window", None) == getattr(model.config, "window", None)
    shifted = functional.cross_entropy(model(tokens()).logits[:, :-1].flatten(0, 1), tokens()[:, 1:].flatten())
    torch.testing.assert_close(loaded(tokens(), labels=tokens()).loss, shifted)


@pytest.mark.parametrize("kind", ["awd-lstm", "qrnn"])
def test_config_section_builds_the_model_with_its_keys(make: Callable[..., Task], kind: str) -> None:
    keys = {name: 0.01 * index for index, name in enumerate(NO_DROPOUT)}
    keys |= {"embedding_size": 8, "hidden_size": 12, "layers": 2, "alpha": 0.5, "beta": 0.25}
    own = {"window": 3, "zoneout": 0.2} if kind == "qrnn" else {}
    task = make(kind, vocabulary=50, **keys, **own).train()
    config = task.model.config
    assert config.vocab_size == 50
    assert {name: getattr(config, name) for name in (keys | own) if name != "layers"} == {
        name: value for name, value in (keys | own).items() if name != "layers"
    }
    assert len(task.model.layers) == 2
    ids, numbers = tokens() % 50, torch.arange(BATCH)
    losses, correct = task(input_ids=ids, labels=ids, streams=numbers, starts=numbers >= 0)
    assert losses.shape == correct.shape == (BATCH,)
    losses.mean().backward()
    assert all(p.grad is not None for p in task.parameters())


@pytest.mark.parametrize("kind, config_class", [("awd-lstm", AwdLstmConfig), ("qrnn", QrnnConfig)])
def test_defaults_of_the_section_are_those_of_the_saved_config(kind: str, config_class: Any) -> None:
    section = ModelConfig.model_validate({"kind": kind}).model_dump()
    section["num_hidden_layers"] = section.pop("layers")
    saved = config_class()
    assert {name: getattr(saved, name) for name in section if name != "kind"} == {
        name: value for name, value in section.items() if name != "kind"
    }

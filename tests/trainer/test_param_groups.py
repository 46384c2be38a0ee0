"""Param groups, learning rates by layer and 16-bit weights as a config asks for them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from bellwether import optimizers
from bellwether.optimizers.registry import OPTIMIZERS
from bellwether.trainer import config as c
from bellwether.trainer.checked_config import load_checked
from bellwether.trainer.config import Config, ConfigErrors
from bellwether.trainer.engine import Engine, _check_rounding, deepspeed_config
from bellwether.trainer.optimization import make_optimizer, make_schedule, with_averaging
from bellwether.trainer.param_groups import GroupCount, count_groups, describe, param_groups, parameter_names
from bellwether.trainer.phase_rows import rows
from bellwether.trainer.phases import Phase, plan

BASE = """\
name: x
duration: 8 steps
model: {kind: cifar-resnet, depth: 8}
data: {kind: images, size: 8}
batch: {global: 8}
optimizer: {lr: 1e-3}
"""
TASKS = {
    "sequence-classifier": "labelled-text", "token-classifier": "labelled-tokens", "question-answering": "question-answering",
}  # fmt: skip
MASTERS = {"precision": "bf16", "deepspeed": {"bf16": {"bf16_master_weights_and_grads": True}}}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.yaml"
    path.write_text(BASE)
    return path


def config_of(optimizer: dict[str, Any], **changes: Any) -> Config:
    raw = {
        "name": "x", "duration": "8 steps", "model": {"kind": "cifar-resnet", "depth": 8}, "batch": {"global": 8},
        "data": {"kind": "images", "size": 8}, "optimizer": {"lr": 1e-3, **optimizer}, **changes,
    }  # fmt: skip
    return c.validate(raw)


def phase_of(config: Config) -> Phase:
    return plan([config], 1, [100])[0]


class Model(nn.Module):
    """Two blocks and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 4)
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.head = nn.Linear(4, 2)


WRONG = [
    (
        "name: muon, muon_exclude: ['*.0.convolusion1.*']",
        "optimizer.muon_exclude: '*.0.convolusion1.*': ",
        "conv1.weight",
    ),
    ("exclude: ['*.0.convolusion1.*']", "optimizer.exclude: '*.0.convolusion1.*': ", "model.stages.0.0.conv1.weight"),
    ("include: ['*', gamma]", "optimizer.include: 'gamma': ", "model."),
    ("lr_scale: {'*.clasifier.*': 10}", "optimizer.lr_scale: '*.clasifier.*': ", "classifier.weight"),
]


@pytest.mark.parametrize("line, beginning, near", WRONG, ids=[line for line, *_ in WRONG])
def test_pattern_without_a_match_is_refused_naming_file_key_value_and_nearest_names(
    base: Path, line: str, beginning: str, near: str
) -> None:
    child = base.parent / "child.yaml"
    child.write_text(f"extends: base.yaml\noptimizer: {{{line}}}\n")
    config = c.load(child)
    names = parameter_names(config)
    with pytest.raises(ConfigErrors) as caught:
        load_checked(child)
    message = str(caught.value)
    assert message.startswith(
        f"{child}: {beginning}this pattern matches no parameter; the nearest of {len(names)} names:"
    )
    assert near in message
    with pytest.raises(ConfigErrors, match="matches no parameter"):  # also where nothing was checked before
        task = SimpleNamespace(named_parameters=lambda: ((name, nn.Parameter(torch.zeros(1))) for name in names))
        param_groups(task, config.optimizer)  # type: ignore[arg-type]


def test_patterns_of_all_phases_are_checked(base: Path) -> None:
    phase = "phases=[{}, {optimizer: {exclude: ['*.nothing']}}]"
    with pytest.raises(ConfigErrors) as caught:
        load_checked(base, [phase, "optimizer.include=['*.weigth']"])
    lines = str(caught.value).splitlines()
    assert [line.partition(": this")[0] for line in lines] == [
        "command line: optimizer.include: '*.weigth'",
        "command line: phases[1].optimizer.exclude: '*.nothing'",
    ]


def test_new_encoder_is_checked_before_its_tokenizer_is_read(base: Path) -> None:
    config = "{model_type: bert, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 16}"
    for kind, data in TASKS.items():
        overrides = [
            f"model={{kind: {kind}, config: {config}}}",
            f"data={{kind: {data}, source: train.csv, tokenizer: vocab.txt}}",
        ]
        found = load_checked(base, [*overrides, "optimizer.exclude=['*.bias']"])
        assert parameter_names(found)


def test_config_without_patterns_builds_no_model(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bellwether.trainer.param_groups.parameter_names", lambda config: pytest.fail("was built"))
    assert load_checked(base, ["optimizer.layer_decay=0.5"]).optimizer.layer_decay == 0.5


def test_pattern_on_the_command_line_keeps_its_dots(base: Path) -> None:
    overrides = ["optimizer.lr_scale.model.layer.0.*=2", "optimizer.lr_scale.*.classifier.[wb]*=3"]
    assert c.load(base, overrides).optimizer.lr_scale == {"model.layer.0.*": 2, "*.classifier.[wb]*": 3}
    config = c.load(base, ["phases=[{}, {}]", "phases.1.optimizer.lr_scale.a.b=0"])
    assert c.phases(config)[1].optimizer.lr_scale == {"a.b": 0}


def test_order_of_patterns_survives_a_config_file(base: Path) -> None:
    config = c.load(base, ["optimizer.lr_scale={b.*: 2, '*': 3, a: 1}"])
    copy = base.parent / "copy.yaml"
    copy.write_text(c.to_yaml(config))
    assert list(c.load(copy).optimizer.lr_scale.items()) == [("b.*", 2), ("*", 3), ("a", 1)]


def test_groups_are_those_of_the_python_api() -> None:
    keys: dict[str, Any] = {
        "include": ["head.bias"],
        "exclude": ["embed.*"],
        "layer_decay": 0.5,
        "lr_scale": {"head.*": 10.0},
    }
    model = Model()
    found = make_optimizer(param_groups(model, config_of(keys).optimizer), config_of(keys), 1e-3)
    wanted = optimizers.Lamb(optimizers.groups(model, **keys), lr=1e-3, weight_decay=0.01)
    assert found.param_groups == wanted.param_groups


def test_what_is_in_effect_is_counted() -> None:
    config = config_of({"exclude": ["embed.*"], "layer_decay": 0.5, "lr_scale": {"head.*": 10.0}})
    groups = make_optimizer(param_groups(Model(), config.optimizer), config, 3e-3).param_groups
    counts = count_groups(groups, 3e-3)
    assert [(n.weight_decay, n.trust_ratio, n.lr_factor, n.parameters, n.elements) for n in counts] == [
        (0.01, True, 10.0, 1, 8), (0.01, True, 0.5, 1, 16), (0.01, True, 0.25, 1, 16), (0.0, False, 10.0, 1, 2),
        (0.0, False, 0.5, 1, 4), (0.0, False, 0.25, 1, 4), (0.0, False, 0.125, 2, 16),
    ]  # fmt: skip
    assert describe(counts) == (
        "3 parameters (40 elements) with weight decay 0.01 and trust ratio, 5 (26) with neither; "
        "lr x 10: 2 (10), lr x 0.5: 2 (20), lr x 0.25: 2 (20), lr x 0.125: 2 (16)"
    )
    many = [GroupCount(0.0, False, 0.5**i, 1, 10) for i in range(24)]
    assert describe(many) == (
        "24 parameters (240 elements) with neither; lr x 1: 1 (10), lr x 0.5: 1 (10), lr x 0.25: 1 (10), 20 more, "
        "lr x 1.19209e-07: 1 (10)"
    )
    shown = dict(rows(phase_of(config)))["optimizer"]
    assert shown == "lamb, weight decay 0.01, clip 1, exclude embed.*, layer decay 0.5, lr x 10 for head.*"


def test_what_muon_and_what_adamw_updates_is_counted() -> None:
    config = config_of({"name": "muon", "muon_exclude": ["blocks.1.weight"], "weight_decay": 0.1})
    groups = make_optimizer(param_groups(Model(), config.optimizer), config, 1e-3).param_groups
    assert describe(count_groups(groups, 1e-3)) == (
        "2 parameters (28 elements) with Muon and weight decay 0.1, 2 (24) with AdamW and weight decay 0.1, "
        "4 (14) with AdamW and no weight decay"
    )
    assert dict(rows(phase_of(config)))["optimizer"] == "muon, weight decay 0.1, clip 1, muon exclude blocks.1.weight"


@pytest.mark.parametrize(
    "scale, averaging", [({"head.*": 10.0}, "none"), ({"*": 0.5}, "ema"), ({"*": 0.0}, "none"), ({}, "lookahead")]
)
def test_logged_learning_rate_is_that_without_a_factor(scale: dict[str, float], averaging: str) -> None:
    config = config_of({"lr_scale": scale}, averaging={"kind": averaging}, schedule={"warmup": 0.5})
    phase = phase_of(config)
    optimizer = with_averaging(make_optimizer(param_groups(Model(), config.optimizer), config, phase.lr), phase)
    schedule = make_schedule(optimizer, phase)
    engine = Engine(None, optimizer, schedule, peak_lr=phase.lr)
    for step in range(8):
        wanted = phase.lr * schedule.factor((step + 0.5) * 8) if scale != {"*": 0.0} else 0.0
        assert engine.lr == (wanted if not scale else pytest.approx(wanted, rel=1e-14))  # rounding of two factors
        schedule.step()


REFUSED = [
    ({"stochastic_rounding": True, "kahan_sum": True}, MASTERS, "optimizer.kahan_sum: True: either option alone"),
    ({"kahan_sum": True}, {"precision": "bf16"}, "optimizer.kahan_sum: True: the optimizer updates fp32 weights"),
    ({"kahan_sum": True}, {**MASTERS, "stage": 0}, "optimizer.kahan_sum: True: the optimizer updates fp32 weights"),
    ({"stochastic_rounding": True}, {**MASTERS, "precision": "fp32"}, "optimizer.stochastic_rounding: True: the optimizer updates"),
    ({"layer_decay": 0}, {}, "optimizer.layer_decay: 0: must be greater than 0"),
    ({"lr_scale": {"a.*": -1}}, {}, "optimizer.lr_scale.a.*: -1: must be greater than or equal to 0"),
    ({"lr_scale": {"a.*": True}}, {}, "optimizer.lr_scale.a.*: True: not a number"),
    ({"exclude": "*.bias"}, {}, "optimizer.exclude: '*.bias': not a list"),
]  # fmt: skip


@pytest.mark.parametrize("optimizer, engine, message", REFUSED, ids=[message for *_, message in REFUSED])
def test_keys_that_would_have_no_effect_are_refused(
    optimizer: dict[str, Any], engine: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigErrors) as caught:
        config_of(optimizer, engine=engine)
    assert str(caught.value).startswith(message)


def test_options_that_the_optimizer_refuses_are_a_config_error() -> None:
    config = config_of({"weight_decay_mode": "independent", "lr_scale": {"head.*": 0}})
    with pytest.raises(
        c.ConfigError, match=r"^optimizer: weight_decay_mode='independent' is relative to the peak .* above 0"
    ):
        make_optimizer(param_groups(Model(), config.optimizer), config, 1e-3)


def test_rounding_options_reach_every_optimizer_and_the_seed_is_that_of_the_run() -> None:
    seeds = set()
    for seed in (1, 2, 1 + 2**32):
        config = config_of({"stochastic_rounding": True}, seed=seed, engine=MASTERS)
        groups = make_optimizer(param_groups(Model(), config.optimizer), config, 1e-3).param_groups
        assert all(group["stochastic_rounding"] and not group["kahan_sum"] for group in groups)
        seeds |= {group["rounding_seed"] % 2**32 for group in groups}  # of which the hash uses 32 bits
    assert len(seeds) == 3
    # bf16 weights without fp32 ones are of stages 1 to 3.
    for name in (name for name, entry in OPTIMIZERS.items() if not entry.unsharded):
        config = config_of({"name": name, "kahan_sum": True}, engine=MASTERS, schedule={"kind": "constant"})
        assert all(
            group["kahan_sum"]
            for group in make_optimizer(param_groups(Model(), config.optimizer), config, 1e-3).param_groups
        )


@pytest.mark.parametrize("stage, accumulated", [(1, "bf16"), (2, "fp32"), (3, "fp32")])
def test_bf16_weights_get_the_engine_that_keeps_no_fp32_ones(stage: int, accumulated: str) -> None:
    """DeepSpeed's stage 1 with gradients in fp32 is BF16_Optimizer, which keeps fp32 weights whatever its config says."""
    found = deepspeed_config(phase_of(config_of({"kahan_sum": True}, engine={**MASTERS, "stage": stage})), 100)
    assert found["bf16"] == {"enabled": True, "bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}
    assert found["data_types"] == {"grad_accum_dtype": accumulated}


def test_engine_that_has_fp32_weights_after_all_is_refused() -> None:
    config = config_of({"kahan_sum": True}, engine=MASTERS)
    model = Model()
    optimizer = make_optimizer(optimizers.groups(model.bfloat16()), config, 1e-3)
    _check_rounding(config, optimizer)
    with pytest.raises(
        c.ConfigError, match=r"optimizer\.kahan_sum: True: DeepSpeed has given the optimizer torch\.float32 weights"
    ):
        _check_rounding(config, make_optimizer(optimizers.groups(Model()), config, 1e-3))

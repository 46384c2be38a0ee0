from __future__ import annotations

from pathlib import Path

import pytest

from bellwether.optimizers.registry import OPTIMIZERS
from bellwether.trainer import config as c
from bellwether.trainer.config import ConfigErrors
from bellwether.trainer.config.schema.optimization import Optimizer

CONFIGS = Path(__file__).parents[2] / "configs"

BASE = """
name: base
duration: 3 epochs
model: {kind: bert, size: tiny}
data: {kind: text, sequence_length: 64}
batch: {global: 256}
optimizer: {lr: 1e-3}
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.yaml"
    path.write_text(BASE)
    return path


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_configs_are_valid_and_have_a_complete_header(path: Path) -> None:
    config = c.load(path)
    assert c.validate(c.dump(config)) == config
    assert config.name == path.stem
    head = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    for word in ("paper", "hardware", "cost", "expected", "command"):
        assert f"#   {word}" in head, f"the header of {path.name} has no {word}"


def test_overrides_are_parsed_as_numbers_lists_and_durations(base: Path) -> None:
    config = c.load(
        base,
        ["optimizer.lr=2e-3", "batch.global=4096", "schedule.warmup=500 steps", "optimizer.betas=[0.9,0.98]"],
    )
    assert (config.optimizer.lr, config.batch.global_, str(config.schedule.warmup)) == (
        2e-3,
        4096,
        "500 steps",
    )
    assert config.optimizer.betas == (0.9, 0.98)


def test_extending_file_and_overrides_take_precedence(base: Path) -> None:
    child = base.parent / "child.yaml"
    child.write_text("extends: base.yaml\nname: child\nbatch: {micro: 8}\noptimizer: {name: adamw}\n")
    config = c.load(child, ["batch.micro=4"])
    assert (config.name, config.batch.global_, config.batch.micro) == ("child", 256, 4)
    assert (config.optimizer.name, config.optimizer.lr) == ("adamw", 1e-3)


def test_yaml_anchors_and_ambiguous_scalars(base: Path) -> None:
    base.write_text(
        BASE.replace("{lr: 1e-3}", "&base {lr: 1e-3, clip: 2}")
        + "phases: [{optimizer: {<<: *base, lr: 5e-4}}]\nruns: 010\nresume: 1:30\nscaling: {warmup: no}\n"
    )
    config = c.load(base, ["data.source=2020-01-01", "name='1e5'"])
    assert config.phases == [{"optimizer": {"lr": 5e-4, "clip": 2}}]
    assert (config.runs, config.resume, config.scaling.warmup) == ("010", "1:30", False)
    assert (config.name, config.data.source) == ("1e5", "2020-01-01")
    base.write_text(c.to_yaml(config))
    assert c.load(base) == config


def test_another_kind_replaces_the_extended_section(base: Path) -> None:
    child = base.parent / "child.yaml"
    child.write_text("extends: base.yaml\nmodel: {kind: cifar-resnet}\ndata: {kind: images}\n")
    assert c.load(child).model.kind == "cifar-resnet"


def test_phases_override_the_keys_of_the_run(base: Path) -> None:
    config = c.load(base, ["phases=[{duration: 9 steps}, {batch: {global: 32}, data: {sequence_length: 128}}]"])
    first, second = c.phases(config)
    assert (str(first.duration), first.batch.global_, first.data.sequence_length) == ("9 steps", 256, 64)
    assert (str(second.duration), second.batch.global_, second.data.sequence_length) == ("3 epochs", 32, 128)
    assert len(c.phases(c.load(base))) == 1


ERRORS = {
    "data.validation=5": ["data.validation", "5", "not held-out data; write a path, or paths by name"],
    "data.validation={averaged: a.txt}": ["data.validation", "'averaged' cannot name held-out data"],
    "engine.deepspeed={train_batch_size: 3}": ["engine.deepspeed.train_batch_size", "3", "set batch.global"],
    "engine.deepspeed={zero_optimization: {stage: 1}}": [
        "engine.deepspeed.zero_optimization.stage",
        "set engine.stage",
    ],
    "engine.deepspeed={bf16: {enabled: true}}": ["engine.deepspeed.bf16.enabled", "True", "set engine.precision"],
    "batch.globl=3": ["batch.globl", "3", "did you mean 'global'"],
    "optimzer.lr=3": ["optimzer", "did you mean 'optimizer'"],
    "optimizer.lr=-1": ["optimizer.lr", "-1", "greater than 0"],
    "optimizer.lr=fast": ["optimizer.lr", "'fast'", "number"],
    "duration=3": ["duration", "3", "'500 steps'"],
    "duration=3 weeks": ["duration", "3 weeks", "'500 steps'"],
    "schedule.warmup=1.5": ["schedule.warmup", "1.5", "from 0 to 1"],
    "model.kind=brt": ["model.kind", "'brt'", "bert, resnet, cifar-resnet, wide-resnet"],
    "model={size: tiny}": ["model.kind", "this key is needed", "bert, resnet"],
    "optimizer.name=lam": ["optimizer.name", "'lam'", "'adamw'", "did you mean 'lamb'"],
    "averaging.batch_norm=64": ["averaging.batch_norm", "64", "lamb without averaging has none"],
    "optimizer.name=schedule-free-adamw": [
        "schedule.kind",
        "linear lowers the learning rate",
        "write schedule.kind: constant",
    ],
    "optimizer.name=soap": [
        "engine.stage: 2: it shards the optimizer state",
        "optimizer.name: soap",
        "write 0",
    ],
    "optimizer.muon_exclude=[a]": ["optimizer.muon_exclude", "lamb has none", "write name: muon"],
    "optimizer.momentum=0.9": ["optimizer.momentum", "0.9", "lamb has none", "lars, muon or sgd"],
    "optimizer={name: lars, lr: 1, weight_decay_mode: l2}": ["optimizer.weight_decay_mode", "'l2'", "lars has none"],
    "optimizer={name: adamw, lr: 1, trust_bounds: [0.1, 1]}": ["optimizer.trust_bounds", "trust_ratio: true"],
    "optimizer.trust_bounds=[1, 0.1]": ["optimizer.trust_bounds", "the lowest first"],
    "optimizer.weight_decay_mode=prox-metric": ["optimizer.weight_decay_mode", "prox-metric", "write prox"],
    "optimizer={name: sgd, lr: 1, momentum: 0, nesterov: true}": ["optimizer.nesterov", "momentum: 0.9"],
    "schedule.momentum=[0.85, 0.95]": ["schedule.momentum", "the highest first"],
    "schedule.interval=250 steps": ["schedule.interval", "goes with kind: warmup-exponential"],
    "schedule.kind=warmup-exponential": ["schedule.interval", "as in 250 steps"],
    "schedule={kind: step, milestones: [0.5], decay_from: start}": ["schedule.decay_from", "not with step"],
    "scaling.rule=sqrt": ["scaling.base_batch", "rule: sqrt"],
    "data.sequence_length=2000": ["data.sequence_length", "2000", "max_positions: 512"],
    "data=3": ["data", "3", "section"],
    "optimizer=lamb": ["optimizer", "'lamb'", "name, lr, betas"],
    "name=a/b": ["name", "'a/b'", "letters"],
    "engine.stage=4": ["engine.stage", "4", "0, 1, 2 or 3"],
    "engine.world_size=two": ["engine.world_size", "'two'", "not a whole number"],
    "phases=[{batch: {global: 0}}]": ["phases[0].batch.global", "0", "greater than 0"],
    "phases=[{model: {}}]": ["phases[0].model", "a phase cannot set this"],
    "phases=[{optimizer: {name: adamw}}]": ["phases[0].optimizer.name", "'adamw'", "outside phases"],
    "phases=[3]": ["phases[0]", "3", "not a section"],
    "optimizer.lr": ["optimizer.lr", "key.path=value"],
    "model={kind: wide-resnet, depth: 21}": ["model.depth: 21: a wide ResNet has 6n + 4"],
    "optimizer.lr=.nan": ["optimizer.lr", "nan", "finite"],
    # Too large for later computations.
    f"seed={2**63}": ["seed", "must be less than"],
    f"seed={'9' * 5000}": ["seed", "not a whole number"],
    "batch.global=2_000_000_000_000": ["batch.global", "must be less than"],
    "batch.micro=2_000_000_000_000": ["batch.micro", "must be less than"],
    "data.vocabulary_size=100_000_000": ["data.vocabulary_size", "must be less than"],
    "duration=1e400 steps": ["duration", "'1e400 steps'", "too long"],
    # Values that a lenient parser would accept as a number.
    "optimizer.lr=true": ["optimizer.lr: True: not a number", "peak learning rate"],
    "optimizer.betas=[false, 0.9]": ["optimizer.betas[0]: False: not a number"],
    "batch.global=true": ["batch.global: True: not a number"],
    "schedule.warmup=true": ["schedule.warmup: True: not a number"],
    "engine.stage=true": ["engine.stage: True: not a number"],
    "phases=[{batch: {global: true}}]": ["phases[0].batch.global: True: not a number"],
    "seed=1:30": ["seed: '1:30': not a whole number"],
    "evaluate.every=0 steps": ["evaluate.every: '0 steps'", "longer than 0"],
    "checkpoint.every=0 epochs": ["checkpoint.every: '0 epochs'", "longer than 0"],
    "log.every=0.0 samples": ["log.every: '0.0 samples'", "longer than 0"],
    # Values of the wrong structure.
    "phases={}": ["phases: {}: not a list", "each lists what differs"],
    "optimizer.betas=0.9": ["optimizer.betas: 0.9: not a list", "as in [0.9, 0.999]"],
    "optimizer.betas=[0.9]": ["command line: optimizer.betas[1]", "too short"],
    "model=bert": ["model: 'bert'", "kind: one of bert, resnet"],
    "model.kind=null": ["model.kind: 'null': this key is needed"],
    "batch.global=null": ["batch.global: 'null': not a whole number"],
    "name=123": ["name: 123: not text", "quotes"],
    "name=no": ["name: False: not text", "quotes"],
    "yes=3": ["yes: 3: there is no such key"],
    # Key paths that do not exist.
    ".lr=5": ["command line: .lr=5", "key.path=value"],
    "foo.bar=5": ["command line: foo: {'bar': 5}", "no such key"],
    "optimizer.lr.x=5": ["optimizer.lr holds no keys", "optimizer.lr=..."],
    "optimizer.betas[0]=2": ["command line: optimizer.betas[0]", "optimizer.betas is no list", "optimizer.betas=..."],
    "phases[5].batch.global=3": ["command line: phases[5]", "phases is no list", "phases=..."],
}


@pytest.mark.parametrize("override", ERRORS, ids=lambda override: override[:60])
def test_error_names_source_key_value_and_remedy(base: Path, override: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        c.load(base, [override])
    message = str(caught.value)
    assert message.startswith(("command line: ", f"{base}: ")), message
    for word in ERRORS[override]:
        assert word in message, message


def test_error_names_the_file_that_set_the_value(base: Path) -> None:
    child = base.parent / "child.yaml"
    child.write_text("extends: base.yaml\nbatch: {micro: 0}\n")
    base.write_text(BASE.replace("lr: 1e-3", "lr: -1"))
    with pytest.raises(ConfigErrors) as caught:
        c.load(child, ["seed=x"])
    lines = str(caught.value).splitlines()
    assert any(line.startswith(f"{child}: batch.micro: 0") for line in lines)
    assert any(line.startswith(f"{base}: optimizer.lr: -1") for line in lines)
    assert any(line.startswith("command line: seed: 'x'") for line in lines)


@pytest.mark.parametrize(
    ("text", "word"),
    [("a: [", "not YAML"), ("- 1\n", "no mapping"), ("name: a\nname: b\n", "twice"), ("extends: other.yaml\n", "no such file"),
     ("extends: broken.yaml\n", "extends itself"), ("", "no mapping"), ("\x00\x01", "not YAML"), ("? [a, b]\n: 3\n", "a key is a word"),
     ("extends: ~nouser/x.yaml\n", "extends: '~nouser/x.yaml': cannot be read"),
     ('extends: "a\\0b"\n', "null byte"), ("a: " + "[" * 5000, "cannot be read")],
)  # fmt: skip
def test_broken_file_is_refused(tmp_path: Path, text: str, word: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ConfigErrors, match=word):
        c.load(path)


def test_error_shows_a_default_value(base: Path) -> None:
    base.write_text(BASE.replace(", sequence_length: 64", ""))
    with pytest.raises(ConfigErrors, match=r"data\.sequence_length: 128: 128 tokens"):
        c.load(base, ["model.max_positions=32"])


@pytest.mark.parametrize("decay", ["independent", "prox"])
def test_scale_decay_is_refused_if_the_decay_already_follows_the_learning_rate(base: Path, decay: str) -> None:
    overrides = ["optimizer.name=adamw", f"optimizer.weight_decay_mode={decay}"]
    c.load(base, overrides)
    with pytest.raises(
        ConfigErrors, match=rf"schedule\.scale_decay: True: .*{decay} already follows the learning rate"
    ):
        c.load(base, [*overrides, "schedule.scale_decay=true"])


def test_schedule_free_goes_with_a_constant_rate_alone(base: Path) -> None:
    overrides = ["optimizer.name=schedule-free-adamw", "schedule.kind=constant", "schedule.warmup=0.1"]
    c.load(base, [*overrides, "averaging.batch_norm=64"])
    c.load(base, [*overrides[:1], "schedule.kind=exponential", "schedule.start=0.1", "schedule.final=1"])  # lr-find
    for override, message in {
        "schedule.momentum=[0.95,0.85]": "needs the same beta1 in all steps",
        "averaging.kind=ema": "schedule-free-adamw averages the weights itself",
        "optimizer.trust_ratio=true": "trust_ratio: True: schedule-free-adamw has none",
    }.items():
        with pytest.raises(ConfigErrors, match=message):
            c.load(base, [*overrides, override])
    with pytest.raises(ConfigErrors, match="exponential lowers the learning rate"):
        c.load(base, [*overrides[:1], "schedule.kind=exponential", "schedule.start=1", "schedule.final=0.1"])


def test_error_of_a_missing_file_names_a_similar_one(base: Path) -> None:
    with pytest.raises(ConfigErrors, match=r"base\.yaml"):
        c.load(base.parent / "bse.yaml")
    with pytest.raises(ConfigErrors, match="directory"):
        c.load(base.parent)
    with pytest.raises(ConfigErrors, match="null byte"):
        c.load("a\0b")


def test_missing_required_key_is_reported(base: Path) -> None:
    base.write_text(BASE.replace("duration: 3 epochs\n", ""))
    with pytest.raises(ConfigErrors, match="duration: this key is needed"):
        c.load(base)


def test_override_that_every_phase_overrides_is_refused(base: Path) -> None:
    base.write_text(BASE + "phases: [{batch: {micro: 4}, duration: 2 steps}, {batch: {micro: 2}}]")
    with pytest.raises(ConfigErrors, match=r"line: batch.micro: 8: has no effect: .*write phases.0.batch.micro="):
        c.load(base, ["batch.micro=8"])
    base.write_text(c.to_yaml(c.load(base)))  # as in the config.yaml of a run directory
    with pytest.raises(ConfigErrors, match=r"line: batch.micro: 8: has no effect") as caught:
        c.load(base, ["batch.micro=8"])
    assert len(caught.value.errors) == 1
    found = c.phases(c.load(base, ["phases.0.batch.micro=8", "duration=3 steps"]))
    assert [(phase.batch.micro, str(phase.duration)) for phase in found] == [(8, "2 steps"), (2, "3 steps")]


def test_options_that_are_not_set_are_left_to_the_optimizer() -> None:
    """A rule with other betas than AdamW's, such as Lion, was given AdamW's."""
    for name in OPTIMIZERS:
        options = Optimizer(name=name, lr=0.1).options()
        assert options.keys() - {"lr", "weight_decay", "kernel"} == OPTIMIZERS[name].defaults.keys(), name

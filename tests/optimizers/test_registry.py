"""The registry: one table that the config, the engine, the planner and these tests read."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest
import torch

from bellwether.optimizers import registry
from bellwether.optimizers.registry import OPTIMIZERS, is_layer_wise, register
from bellwether.trainer.config.schema import Optimizer
from tests.optimizers.configurations import OPTIMIZERS as CONFIGURATIONS
from tests.optimizers.family import FAMILY


def create(name: str, **options: object) -> torch.optim.Optimizer:
    return OPTIMIZERS[name].make([torch.nn.Parameter(torch.ones(2, 2))], lr=0.1, weight_decay=0.1, **options)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_entry_is_true_of_the_optimizer(name: str) -> None:
    entry = OPTIMIZERS[name]
    optimizer = create(name, kernel="reference", **entry.defaults)
    assert optimizer.param_groups[0]["trust_ratio"] == entry.layer_wise
    if "weight_decay_mode" in entry.options and not entry.layer_wise:
        if entry.prox_metric:
            create(name, weight_decay_mode="prox-metric")
        else:
            with pytest.raises(ValueError, match="prox-metric"):
                create(name, weight_decay_mode="prox-metric")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_options_are_keywords_of_the_optimizer_and_keys_of_the_config(name: str) -> None:
    parameters = inspect.signature(type(create(name)).__init__).parameters
    if "base" in parameters:  # Swats has its own options and those of AdamW
        parameters = parameters | inspect.signature(type(create("adamw")).__init__).parameters
    assert OPTIMIZERS[name].options <= set(parameters)
    assert OPTIMIZERS[name].options <= set(Optimizer.model_fields)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_is_in_the_test_tables(name: str) -> None:
    """A new optimizer belongs in both tables: that of the engines, and that of the contract of a torch optimizer."""
    wanted, params = type(create(name)), [torch.nn.Parameter(torch.ones(2, 2))]
    assert wanted in {type(member.make(params, lr=0.1)) for member in FAMILY.values()}
    assert wanted in {type(make(params)) for make in CONFIGURATIONS.values()}


def test_layer_wise() -> None:
    assert is_layer_wise("lamb")
    assert not is_layer_wise("lamb", trust_ratio=False)
    assert is_layer_wise("adamw", trust_ratio=True)
    assert not is_layer_wise("no such optimizer")


def test_name_that_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "OPTIMIZERS", dict(OPTIMIZERS))
    with pytest.raises(ValueError, match="'lamb' is registered already"):
        register("lamb", "bellwether.optimizers.lamb:Lamb", ())


@pytest.mark.process
def test_registry_and_config_need_no_torch() -> None:
    script = "import sys, bellwether.optimizers.registry, bellwether.trainer.config; print('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "False\n"
    )

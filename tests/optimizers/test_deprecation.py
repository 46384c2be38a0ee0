"""Deprecated names work for one version with a warning that gives the new one, and old state dicts and pickles load."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Iterator

import pytest
import torch

from bellwether import optimizers
from bellwether.optimizers import SGD, Adam, AdamW, Lamb, Lookahead, RAdam
from tests.optimizers.configurations import assert_same, copies, drive, parameters, params_of


@pytest.fixture(autouse=True)
def warnings_are_errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("kind", [Adam, AdamW, Lamb, RAdam, SGD])
def test_decay_is_accepted_with_a_warning(kind: type) -> None:
    params = parameters()
    other_params = copies(params)
    with pytest.warns(DeprecationWarning, match="decay= is deprecated, write weight_decay_mode=") as caught:
        old = kind(params, lr=0.01, weight_decay=0.1, decay="independent")
    assert caught[0].filename == __file__
    new = kind(other_params, lr=0.01, weight_decay=0.1, weight_decay_mode="independent")
    assert old.state_dict()["param_groups"] == new.state_dict()["param_groups"]
    drive(old)
    drive(new)
    assert_same(params, other_params)


def test_decay_of_a_group_is_accepted_with_a_warning() -> None:
    with pytest.warns(DeprecationWarning, match="write weight_decay_mode="):
        optimizer = AdamW([{"params": parameters(), "decay": "prox"}])
    assert optimizer.param_groups[0]["weight_decay_mode"] == "prox"
    assert "decay" not in optimizer.param_groups[0]


def test_both_names_are_refused() -> None:
    with pytest.raises(TypeError, match="decay= is the old name of weight_decay_mode=: give one of them"):
        AdamW(parameters(), decay="l2", weight_decay_mode="l2")


def old_groups(groups: list[dict]) -> list[dict]:
    return [{("decay" if k == "weight_decay_mode" else k): v for k, v in group.items()} for group in groups]


@pytest.mark.parametrize("wrapped", [False, True])
def test_old_state_dict_loads(wrapped: bool) -> None:
    def make(params: list[torch.Tensor], **options: object) -> torch.optim.Optimizer:
        optimizer = AdamW(params, lr=0.01, **options)
        return Lookahead(optimizer, k=2) if wrapped else optimizer

    params = parameters()
    optimizer = make(params, weight_decay=0.1, weight_decay_mode="prox")
    drive(optimizer)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"] = old_groups(saved["param_groups"])
    assert saved["param_groups"][0]["decay"] == "prox"
    other_params = copies(params)
    other = make(other_params)
    other.load_state_dict(saved)
    assert other.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]
    drive(optimizer, seed=2)
    drive(other, seed=2)
    assert_same(params, other_params)


@pytest.mark.parametrize("copied", ["pickle", "deepcopy"])
def test_old_pickle_loads(copied: str) -> None:
    optimizer = AdamW(parameters(), lr=0.01, weight_decay=0.1, weight_decay_mode="prox")
    drive(optimizer)
    old = copy.deepcopy(optimizer)
    old.param_groups = old_groups(old.param_groups)
    (old.defaults,) = old_groups([old.defaults])
    other = pickle.loads(pickle.dumps(old)) if copied == "pickle" else copy.deepcopy(old)
    drive(optimizer, seed=2)
    drive(other, seed=2)
    assert_same(params_of(optimizer), params_of(other))
    assert other.defaults["weight_decay_mode"] == "prox"
    assert "decay" not in other.defaults
    other.add_param_group({"params": parameters()})
    assert other.param_groups[1]["weight_decay_mode"] == "prox"


def test_old_key_set_directly_in_a_group_is_renamed() -> None:
    """DeepSpeed's elastic load sets the saved keys one by one, without calling load_state_dict."""
    optimizer = AdamW(parameters(), lr=0.01, weight_decay=0.1)
    optimizer.param_groups[0]["decay"] = "l2"
    other = AdamW(parameters(), lr=0.01, weight_decay=0.1, weight_decay_mode="l2")
    drive(optimizer)
    drive(other)
    assert_same(params_of(optimizer), params_of(other))


@pytest.mark.parametrize("old, new", [("Walk", "Trajectory"), ("Composed", "RuleOptimizer")])
def test_renamed_classes(old: str, new: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"{old} is now {new}"):
        assert getattr(optimizers, old) is getattr(optimizers, new)


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Sophia'"):
        optimizers.Sophia  # noqa: B018
    assert {"Lamb", "attach", "Trajectory"} <= set(dir(optimizers))

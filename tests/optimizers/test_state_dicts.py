"""State dicts, copies and pickles of every optimizer in every configuration."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.optim import lr_scheduler

from bellwether.optimizers import Lamb
from tests.optimizers.configurations import (
    OPTIMIZERS,
    SHAPES,
    assert_same,
    copies,
    drive,
    every,
    parameters,
    params_of,
    save_and_load,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@every
def test_state_dict_round_trip_is_bitwise(name: str, kernel: str) -> None:
    params = parameters()
    optimizer = OPTIMIZERS[name](params, kernel=kernel)
    drive(optimizer)
    saved = optimizer.state_dict()
    assert saved.keys() == {"state", "param_groups"}
    keys = [key for group in saved["param_groups"] for key in group["params"]]
    assert keys == list(range(len(SHAPES))) == list(saved["state"])
    other_params = copies(params)
    other = OPTIMIZERS[name](other_params, kernel=kernel, lr=0.77, weight_decay=0.77)
    drive(other, 1)
    for p, q in zip(params, other_params, strict=True):
        q.data.copy_(p.data)
    other.load_state_dict(save_and_load(saved, weights_only=True))
    assert other.state_dict()["param_groups"] == saved["param_groups"]
    drive(optimizer, seed=2)
    drive(other, seed=2)
    assert_same(params, other_params)


@every
@pytest.mark.parametrize("copied", ["deepcopy", "pickle", "torch.save"])
def test_copy_takes_the_same_steps_bitwise(name: str, copied: str, kernel: str) -> None:
    """Under a schedule too, which replaces step() by a function of its own."""
    params = parameters()
    optimizer = OPTIMIZERS[name](params, kernel=kernel)
    schedule = lr_scheduler.ExponentialLR(optimizer, 0.9)
    drive(optimizer, after=schedule.step)
    how = {
        "deepcopy": copy.deepcopy,
        "pickle": lambda o: pickle.loads(pickle.dumps(o)),
        "torch.save": lambda o: save_and_load(o, weights_only=False),
    }
    other = how[copied](optimizer)
    other_params = params_of(other)
    assert repr(other) == repr(optimizer)
    drive(optimizer, seed=2)
    # The copy has weights of its own.
    assert not any(torch.equal(p, q) for p, q in zip(params, other_params, strict=True))
    drive(other, seed=2)
    assert_same(params, other_params)


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_state_is_loaded_in_the_dtype_of_the_parameters_and_at_least_32_bits(name: str, dtype: torch.dtype) -> None:
    params = parameters()
    optimizer = OPTIMIZERS[name](params)
    drive(optimizer)
    other_params = copies(params, dtype)
    other = OPTIMIZERS[name](other_params)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for p, q in zip(params, other_params, strict=True):
        assert other.state[q].keys() == optimizer.state[p].keys()
        for key, value in other.state[q].items():
            wide = torch.promote_types(dtype, torch.float32)
            assert value.dtype == (torch.float32 if key == "step" else wide)
            assert torch.equal(value, optimizer.state[p][key].to(value.dtype))
    drive(other, 1)
    assert all(q.isfinite().all() for q in other_params)


@every
def test_torch_distributed_checkpoint_state_by_name(name: str) -> None:
    """torch creates the state of a new optimizer by a step with lr 0 and zero gradients, which must not change a weight."""
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3)
    model.bias.data.fill_(0.5)
    optimizer = OPTIMIZERS[name](model.named_parameters())
    drive(optimizer)
    saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer))
    twin = copy.deepcopy(model)
    other = OPTIMIZERS[name](twin.named_parameters(), lr=0.77)
    get_optimizer_state_dict(twin, other)
    assert_same(list(model.parameters()), list(twin.parameters()))
    set_optimizer_state_dict(twin, other, saved)
    drive(optimizer, seed=2)
    drive(other, seed=2)
    assert_same(list(model.parameters()), list(twin.parameters()))


def test_state_dict_with_wrong_number_of_parameters_is_refused() -> None:
    saved = Lamb(parameters()).state_dict()
    with pytest.raises(ValueError, match="size of optimizer's group"):
        Lamb(parameters()[:2]).load_state_dict(saved)
    with pytest.raises(ValueError, match="different number of parameter groups"):
        Lamb([{"params": [p]} for p in parameters()]).load_state_dict(saved)

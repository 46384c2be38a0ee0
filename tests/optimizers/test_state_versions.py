"""State dicts of other packages, of older versions and of other optimizers; unknown keys of param groups."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch

from bellwether.optimizers import SGD, Adam, AdamW, Lamb, Lars, Lookahead, RAdam, WeightAverage, groups
from tests.optimizers.configurations import OPTIMIZERS, assert_same, copies, drive, every, group_of, parameters

pytestmark = pytest.mark.usefixtures("one_thread")

GRADIENTS = (1e-3, 40.0)  # prenormalize makes them equal


def uneven(optimizer: Any, params: list[Any], steps: int = 4) -> None:
    for step in range(steps):
        for p in params:
            p.grad = torch.full_like(p, GRADIENTS[step % 2]) * torch.arange(1.0, p.numel() + 1).view(p.shape)
        optimizer.step()


@pytest.mark.parametrize("wrapped", [False, True])
def test_prenormalize_is_part_of_the_state(wrapped: bool) -> None:
    """The state of NVLAMB was silently loaded into plain LAMB."""

    def make(params: list[Any], **options: Any) -> Any:
        return Lookahead(Lamb(params, **options)) if wrapped else Lamb(params, **options)

    params = parameters()
    optimizer = make(params, prenormalize=True, eps=0.01)
    uneven(optimizer, params)
    other_params = copies(params)
    other = make(other_params)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    uneven(optimizer, params)
    uneven(other, other_params)
    assert_same(params, other_params)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"])
def test_prenormalize_is_part_of_copies(copied: Any) -> None:
    optimizer = Lamb(parameters(), prenormalize=True)
    assert copied(optimizer).prenormalize


@every
def test_state_that_lacks_an_option_keeps_that_of_the_group(name: str) -> None:
    """Each option in turn, as of a version that did not have it yet."""
    params = parameters()
    optimizer = OPTIMIZERS[name](params)
    drive(optimizer)
    reference = copy.deepcopy(optimizer.state_dict())
    for key in reference["param_groups"][0]:
        if key in ("params", "inferred_peak_lr", "peak_lr", "k", "lr_max", "weight_sum"):  # the last are no options
            continue
        saved = copy.deepcopy(reference)
        for group in saved["param_groups"]:
            del group[key]
        other_params = copies(params)
        other = OPTIMIZERS[name](other_params)
        other.load_state_dict(saved)
        mine = copies(params)
        twin = OPTIMIZERS[name](mine)
        twin.load_state_dict(copy.deepcopy(reference))
        drive(other, 1, seed=2)
        drive(twin, 1, seed=2)
        assert_same(other_params, mine)


def test_options_of_each_group_survive_the_state_of_torch() -> None:
    """torch's AdamW knows no trust ratio: the group of biases keeps trust_ratio=False, and got the default."""
    model = torch.nn.Linear(3, 2)
    torch_groups = [{"params": [model.weight]}, {"params": [model.bias], "weight_decay": 0.0}]
    other = torch.optim.AdamW(torch_groups, lr=0.1)
    drive(other)
    optimizer = Lamb(groups(model), lr=0.1)
    optimizer.load_state_dict(other.state_dict())
    assert [group["trust_ratio"] for group in optimizer.param_groups] == [True, False]


@pytest.mark.parametrize("steps", [1, 5])
def test_step_of_the_group_is_that_of_its_parameters(steps: int) -> None:
    """apex and timm count in the group: bias correction began again, ten times off after a few steps."""
    params, twin_params = parameters(), parameters()
    optimizer, twin = AdamW(params, lr=0.1), AdamW(twin_params, lr=0.1)
    drive(optimizer, steps)
    drive(twin, steps)
    apex = copy.deepcopy(optimizer.state_dict())
    for group in apex["param_groups"]:
        group["step"] = steps
        group["bias_correction"] = 1
    for state in apex["state"].values():
        del state["step"]
    twin.load_state_dict(apex)
    drive(optimizer, 2, seed=2)
    drive(twin, 2, seed=2)
    assert_same(params, twin_params)
    assert all(twin.state[p]["step"].item() == steps + 2 for p in twin_params)


def _timm_lamb(params: list[Any], **changes: Any) -> dict[str, Any]:
    """A state dict with the keys of timm's Lamb, 1.0."""
    options = {
        "lr": 0.01, "bias_correction": True, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.01, "step": 3,
        "grad_averaging": True, "max_grad_norm": 1.0, "trust_clip": False, "always_adapt": False, "caution": False,
        "decoupled_decay": False, "corrected_weight_decay": False, **changes,
    }  # fmt: skip
    options.pop("decoupled_decay")
    state = {
        i: {"exp_avg": torch.full_like(p, 0.1), "exp_avg_sq": torch.full_like(p, 0.2)} for i, p in enumerate(params)
    }
    return {"state": state, "param_groups": [{**options, "params": list(range(len(params)))}]}


def test_timm_lamb_continues() -> None:
    params = parameters()
    optimizer = Lamb(params)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer.load_state_dict(_timm_lamb(params))
    drive(optimizer, 1)
    assert all(optimizer.state[p]["step"].item() == 4 for p in params)
    assert optimizer.param_groups[0]["trust_ratio"] is True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer.load_state_dict(_timm_lamb(params, weight_decay=0.0, trust_clip=True))
    assert optimizer.param_groups[0]["trust_ratio"] is False  # timm scales no group without decay
    with pytest.raises(ValueError, match="caution=True"):
        Lamb(params).load_state_dict(_timm_lamb(params, caution=True))


REFUSED: dict[str, tuple[Any, Any, str]] = {
    "sgd in adam": (lambda p: SGD(p, momentum=0.9), Adam, "momentum_buffer.*Adam needs exp_avg"),
    "lamb in lars": (Lamb, Lars, "Lars needs momentum_buffer"),
    "average in none": (lambda p: WeightAverage(Lamb(p)), Lamb, "average, which Lamb does not use"),
    "slow in average": (lambda p: Lookahead(RAdam(p)), lambda p: WeightAverage(RAdam(p)), "slow, which RAdam"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_state_of_another_optimizer_is_refused(case: str) -> None:
    make, other, message = REFUSED[case]
    optimizer = make(parameters())
    drive(optimizer)
    into = other(parameters())
    drive(into, 1)
    before = copy.deepcopy(into.state_dict())
    with pytest.raises(ValueError, match=message):
        into.load_state_dict(optimizer.state_dict())
    assert str(into.state_dict()) == str(before)


def test_wrapper_takes_the_options_of_the_state() -> None:
    saved = WeightAverage(Lookahead(Lamb(parameters()), k=3, alpha=0.7), "ema", start=4, every=2, decay=0.5)
    drive(saved)
    other = WeightAverage(Lookahead(Lamb(parameters())))
    with pytest.warns(UserWarning, match="'ema' from the state dict, not 'swa'"):
        other.load_state_dict(saved.state_dict())
    assert (other.kind, other.start, other.every, other.decay) == ("ema", 4, 2, 0.5)
    assert (other.base.k, other.base.alpha) == (3, 0.7)
    assert not any("." in key for key in other.param_groups[0])


def test_state_of_a_newer_version_is_refused() -> None:
    saved = Lamb(parameters()).state_dict()
    saved["param_groups"][0]["state_version"] = 99
    with pytest.raises(ValueError, match=r"version 99.*update Bellwether"):
        Lamb(parameters()).load_state_dict(saved)


@every
def test_misspelled_key_of_a_group_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"trust_ration=False: .* did you mean 'trust_ratio'"):
        OPTIMIZERS[name]([{"params": parameters(), "trust_ration": False}])
    optimizer = OPTIMIZERS[name](parameters())
    groups = len(optimizer.param_groups)
    with pytest.raises(ValueError, match="did you mean 'weight_decay'"):
        optimizer.add_param_group(group_of(name, parameters(), weigth_decay=0.0))
    assert len(optimizer.param_groups) == groups
    optimizer.param_groups[0]["trust_ration"] = False
    with pytest.raises(ValueError, match="did you mean 'trust_ratio'"):
        drive(optimizer, 1)


def test_notes_in_a_group_are_accepted() -> None:
    optimizer = Lamb([{"params": parameters(), "name": "encoder", "_layer": 3, "moe": True}])
    drive(optimizer, 1)
    with pytest.raises(ValueError, match="layer=3: Lamb has no such option; omit it"):
        Lamb([{"params": parameters(), "layer": 3}])

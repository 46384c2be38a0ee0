"""Each optimizer's own code and the coefficients of its compiled kernel are the same formula."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from bellwether.optimizers import AdamW, RuleOptimizer, kernels
from bellwether.optimizers.kernels import cpu
from bellwether.optimizers.kernels.coefficients import Coefficients, Scalars
from bellwether.optimizers.kernels.tensor_list import TensorList
from bellwether.optimizers.rule import Group, State
from tests.optimizers import coefficients_in_torch
from tests.optimizers.configurations import OPTIMIZERS, assert_same, copies, drive, every, parameters, params_of

pytestmark = pytest.mark.usefixtures("one_thread")


@every
@pytest.mark.parametrize("maximize", [False, True])
def test_code_equals_coefficients_to_the_bit(name: str, maximize: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, on matrices, with several steps and a second group without a trust ratio."""
    if name.startswith("ema") and maximize:
        pytest.skip("ascent overflows")

    def trained(kernel: str) -> list[torch.Tensor]:
        params = parameters()
        plain = {"params": params[2:], "trust_ratio": False, "weight_decay": 0.0}
        optimizer = OPTIMIZERS[name]([{"params": params[:2]}, plain], kernel=kernel, maximize=maximize)
        drive(optimizer, steps=8)
        return params_of(optimizer)

    by_code = trained("reference")
    monkeypatch.setattr(kernels, "choose", lambda name, tensors: coefficients_in_torch)
    assert_same(by_code, trained("auto"))


def test_triton_kernel_takes_the_scalars_by_name() -> None:
    triton = pytest.importorskip(
        "bellwether.optimizers.kernels.triton", reason="Triton is for Linux", exc_type=ImportError
    )
    assert set(Scalars._fields) <= set(triton._pass.arg_names)
    first = triton._pass.arg_names.index(Scalars._fields[0])
    assert tuple(triton._pass.arg_names[first : first + len(Scalars._fields)]) == Scalars._fields


def test_scalars_cover_the_coefficients() -> None:
    fields = {field.name for field in dataclasses.fields(Coefficients)}
    assert fields - set(Scalars._fields) == {"formula"}
    assert set(Scalars._fields) - fields == {"one_minus_beta2"}
    c = Coefficients("adam", **{name: float(i) for i, name in enumerate(sorted(fields - {"formula"}))})
    for name, value in c.scalars()._asdict().items():
        derived = {"one_minus_beta2": 1 - c.beta2, "metric": c.rate * c.metric}
        assert value == derived.get(name, getattr(c, name, None))


def test_cpp_source_defines_no_order_of_its_own() -> None:
    assert cpu._DEFINITIONS["SCALARS"].split(", ") == list(Scalars._fields)
    assert cpu._DEFINITIONS["PASSES"].lower().split(", ") == list(cpu._PASSES)
    source = cpu.__file__.replace("cpu.py", "cpu.cpp")
    with open(source) as file:
        text = file.read()
    assert "float SCALARS;" in text
    assert "enum Formula { FORMULAS };" in text
    assert "enum Pass { PASSES };" in text


class SignMomentum(RuleOptimizer):
    """A rule without a compiled kernel, whose direction is one of its state tensors."""

    def __init__(self, params: list[torch.Tensor], **options: object) -> None:
        defaults = {"lr": 0.5, "weight_decay": 0.0, "weight_decay_mode": "decoupled", "trust_ratio": False}
        super().__init__(params, **{**defaults, "trust_bounds": None, **options})

    def state_names(self, group: Group) -> tuple[str, ...]:
        return ("momentum_buffer",)

    def update_moments(self, g: torch.Tensor, state: State, group: Group, step: int) -> None:
        state["momentum_buffer"].copy_(g.sign())

    def direction(self, w: torch.Tensor, g: torch.Tensor, state: State, group: Group, step: int) -> torch.Tensor:
        return state["momentum_buffer"]


def test_rule_without_compiled_kernel() -> None:
    p = torch.nn.Parameter(torch.tensor([1.0, -1.0]))
    p.grad = torch.tensor([3.0, -0.1])
    optimizer = SignMomentum([p], weight_decay=0.5)
    optimizer.step()
    assert p.tolist() == [0.25, -0.25]  # 0.75 w - 0.5 sign(g)
    assert optimizer.state[p]["momentum_buffer"].tolist() == [1.0, -1.0]  # not overwritten by the update
    with pytest.raises(ValueError, match="SignMomentum has no compiled kernel; write kernel='auto'"):
        SignMomentum([p], kernel="cpu").step()


def test_overridden_trust_ratio_is_not_fused() -> None:
    """The C++ kernel computes ||w|| / ||u||, so another ratio takes the two passes."""

    class Halved(AdamW):
        def trust_ratio(self, weight_norm: torch.Tensor, other_norm: torch.Tensor, group: Group) -> torch.Tensor:
            return super().trust_ratio(weight_norm, other_norm, group) / 2

    assert not Halved.is_norm_ratio
    params = parameters()
    other_params = copies(params)
    halved = Halved(params, lr=0.2, trust_ratio=True, weight_decay=0.0)
    plain = AdamW(other_params, lr=0.1, trust_ratio=True, weight_decay=0.0)
    drive(halved, 1)
    drive(plain, 1)
    for p, q in zip(params, other_params, strict=True):
        torch.testing.assert_close(p, q)
    for name, ratio in halved.trust_ratios().items():
        assert ratio == pytest.approx(plain.trust_ratios()[name] / 2)


def test_kernels_get_state_in_the_order_of_the_formula() -> None:
    orders = []

    def step(tensors: TensorList, c: Coefficients, scales: torch.Tensor | None = None) -> None:
        orders.append(list(tensors.states))

    fake = type("Fake", (), {"step": staticmethod(step), "fused_step": None})
    p = torch.nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "choose", lambda name, tensors: fake)
        AdamW([p], amsgrad=True).step()
    assert orders == [["exp_avg", "exp_avg_sq", "max_exp_avg_sq"]]

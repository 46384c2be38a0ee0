"""The optimizers and wrappers that every engine is tested with: how to create one, and what it must compute."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bellwether.optimizers import (
    SGD,
    SOAP,
    Adam,
    AdamW,
    AdamWScheduleFree,
    Lamb,
    Lars,
    Lookahead,
    Muon,
    RAdam,
    ShardedOptimizer,
    Swats,
    WeightAverage,
)
from bellwether.optimizers.param_groups import shape_of
from bellwether.optimizers.registry import OPTIMIZERS
from tests.optimizers.reference import LAMB, Spec


@dataclass(frozen=True)
class Member:
    make: Callable[..., ShardedOptimizer]  # of params, lr
    spec: Spec | None  # None: compared with its own code on whole parameters
    lr: float = 0.02
    tolerance: Mapping[str, float] = field(default_factory=dict)  # of a parameter, as a multiple of the usual one
    groups: Callable[[Any], Any] = lambda params: params  # what `make` takes, of params or param groups
    sharded: bool = True  # whether it can be


def _of(kind: type, **options: Any) -> Callable[..., ShardedOptimizer]:
    return lambda params, lr: kind(params, lr=lr, **options)


def _around(wrap: Callable[[Any], ShardedOptimizer], kind: type, **options: Any) -> Callable[..., ShardedOptimizer]:
    return lambda params, lr: wrap(kind(params, lr=lr, **options))


def muon_groups(params: Any) -> list[dict[str, Any]]:
    """Param groups for Muon: matrices, and others for AdamW, of each group. Takes all that an optimizer takes."""
    params = list(params)
    groups = params if params and isinstance(params[0], dict) else [{"params": params}]
    split: list[dict[str, Any]] = []
    for group in groups:
        for muon in (True, False):
            if chosen := [p for p in group["params"] if is_matrix(p) == muon]:
                split.append({**group, "params": chosen, "muon": muon})
    return split


# The gradients of this one, nearly constant [4, 3] and rounded, have a condition number near 100, by which Muon multiplies their
# rounding; the update is most of a weight that starts at 0.
# In bf16 one process alone, whose samples are dealt to micro-batches in several ways, errs by 0.007 to 0.031 with Nesterov's momentum
# and by 0.029 to 0.057 without: 2^-9 times 4 to 29 (2026-11-30).
ILL_CONDITIONED = {"zero": 32.0}
ILL_CONDITIONED_WITHOUT_NESTEROV = {"zero": 64.0}


def is_matrix(parameter: Any) -> bool:
    return len(shape_of(parameter[1] if isinstance(parameter, tuple) else parameter)) > 1


FORGETFUL = (0.9, 0.8)  # with this beta2 a second moment decreases, and differs from its maximum

FAMILY: dict[str, Member] = {
    "lamb": Member(_of(Lamb), LAMB),
    "lamb-bounds": Member(
        _of(Lamb, trust_bounds=(0.01, 0.3), bias_correction=False),
        Spec(eps=1e-6, trust=True, bounds=(0.01, 0.3), corrected=False),
    ),
    "nvlamb": Member(_of(Lamb, prenormalize=True, eps=0.01), Spec(eps=0.01, trust=True, normalized=True)),
    "lamb-amsgrad-l2": Member(
        _of(Lamb, amsgrad=True, weight_decay_mode="l2", betas=FORGETFUL),
        Spec(eps=1e-6, trust=True, amsgrad=True, decay="l2", betas=FORGETFUL),
    ),
    "lars": Member(_of(Lars, trust_coefficient=0.1), Spec("lars", decay="l2", coefficient=0.1), lr=0.05),
    "lars-nesterov": Member(
        _of(Lars, nesterov=True, trust_coefficient=0.1, trust_bounds=(0.0, 0.08)),
        Spec("lars", decay="l2", nesterov=True, coefficient=0.1, bounds=(0.0, 0.08)),
        lr=0.05,
    ),
    "adam": Member(_of(Adam), Spec(decay="l2")),
    "adamw": Member(_of(AdamW), Spec()),
    "adamw-amsgrad": Member(_of(AdamW, amsgrad=True, betas=FORGETFUL), Spec(amsgrad=True, betas=FORGETFUL)),
    "adamw-independent": Member(_of(AdamW, weight_decay_mode="independent"), Spec(decay="independent")),
    "adamw-prox": Member(_of(AdamW, weight_decay_mode="prox"), Spec(decay="prox")),
    "adamw-prox-metric": Member(_of(AdamW, weight_decay_mode="prox-metric"), Spec(decay="prox-metric")),
    "radam": Member(_of(RAdam), Spec("radam", decay="l2")),
    "radam-trust": Member(
        _of(RAdam, trust_ratio=True, weight_decay_mode="decoupled"), Spec("radam", trust=True)
    ),
    "sgd-nesterov": Member(_of(SGD, momentum=0.9, nesterov=True), Spec("momentum", nesterov=True, decay="l2")),
    "sgd-trust-prox": Member(
        _of(SGD, momentum=0.9, trust_ratio=True, weight_decay_mode="prox"), Spec("momentum", trust=True, decay="prox")
    ),
    "lookahead-lamb": Member(
        _around(lambda base: Lookahead(base, k=3, alpha=0.6), Lamb), Spec(eps=1e-6, trust=True, lookahead=(3, 0.6))
    ),
    "muon": Member(_of(Muon, ns_dtype="fp32"), Spec("muon", momentum=0.95, nesterov=True), tolerance=ILL_CONDITIONED, groups=muon_groups),
    "muon-match-rms": Member(
        _of(Muon, ns_dtype="fp32", adjust_lr_fn="match_rms_adamw", nesterov=False, momentum=0.8),
        Spec("muon", momentum=0.8, match_rms=True),
        tolerance=ILL_CONDITIONED_WITHOUT_NESTEROV, groups=muon_groups,
    ),
    "schedule-free-adamw": Member(
        _of(AdamWScheduleFree, betas=(0.8, 0.99), r=0.5, warmup_steps=4),
        Spec("schedule-free", betas=(0.8, 0.99), schedule_free=(0.5, 2.0, 4)),
    ),
    "soap": Member(
        _of(SOAP, max_precond_dim=8, precondition_frequency=3),
        Spec("soap", betas=(0.95, 0.95), soap=(3, 8)),
        sharded=False,
        # Eigenvectors multiply the rounding of the gradients by the ratio of their eigenvalues' size to their distance.
        tolerance={"odd": 32.0, "zero": 512.0},
    ),
    "swats": Member(_around(lambda base: Swats(base, tolerance=2e-4), AdamW), Spec(swats=2e-4)),
    "swa-lamb": Member(
        _around(lambda base: WeightAverage(base, "swa", start=5, every=3), Lamb),
        Spec(eps=1e-6, trust=True, average=("swa", 5, 3, 0.0)),
    ),
    "ema-lookahead-adamw": Member(
        _around(lambda base: WeightAverage(Lookahead(base), "ema", decay=0.8), AdamW),
        Spec(lookahead=(5, 0.5), average=("ema", 1, 1, 0.8)),
    ),
}  # fmt: skip

for _name, _entry in OPTIMIZERS.items():  # a new optimizer is tested under every engine without a line here
    if not any(name == _name or name.startswith(f"{_name}-") for name in FAMILY):
        FAMILY[_name] = Member(lambda params, lr, entry=_entry: entry.make(params, lr=lr, **entry.defaults), None)

SHARDED = [name for name, member in FAMILY.items() if member.sharded]

# One rule for each kind of communication: norms by layer, the norm of all gradients, none, whole matrices, a wrapper's state.
REPRESENTATIVES = ("lamb", "nvlamb", "adamw", "muon", "ema-lookahead-adamw")

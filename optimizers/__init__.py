"""How weights move: update rules, shards, trust ratios, schedules, batch scaling. Needs only torch.

optimizer = Lamb(groups(model), lr=2e-3)
engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
attach(engine)
"""

from optimizers.adam import Adam
from optimizers.adamw import AdamW
from optimizers.attach import attach
from optimizers.averaging import WeightAverage, recompute_batch_norm
from optimizers.composed import Composed
from optimizers.groups import groups
from optimizers.lamb import Lamb
from optimizers.lars import Lars
from optimizers.lookahead import Lookahead
from optimizers.noise import NoiseScale
from optimizers.radam import RAdam
from optimizers.scaling import scaled_lr, scaled_warmup
from optimizers.schedules import (
    Exponential,
    OneCycle,
    Trapezoid,
    WarmupConstant,
    WarmupCosine,
    WarmupLinear,
    WarmupPolynomial,
    WarmupStep,
)
from optimizers.sgd import SGD
from optimizers.sharded import ShardedOptimizer
from optimizers.swats import Swats
from optimizers.walk import Walk

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Composed",
    "Exponential",
    "Lamb",
    "Lars",
    "Lookahead",
    "NoiseScale",
    "OneCycle",
    "RAdam",
    "ShardedOptimizer",
    "Swats",
    "Trapezoid",
    "Walk",
    "WarmupConstant",
    "WarmupCosine",
    "WarmupLinear",
    "WarmupPolynomial",
    "WarmupStep",
    "WeightAverage",
    "attach",
    "groups",
    "recompute_batch_norm",
    "scaled_lr",
    "scaled_warmup",
]

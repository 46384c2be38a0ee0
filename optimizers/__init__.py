"""How weights move: update rules, shards, trust ratios, schedules, batch scaling. Needs only torch.

optimizer = Lamb(groups(model), lr=2e-3)
engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
attach(engine)
"""

from bellwether.optimizers.adam import Adam
from bellwether.optimizers.adamw import AdamW
from bellwether.optimizers.attach import attach
from bellwether.optimizers.averaging import WeightAverage, recompute_batch_norm
from bellwether.optimizers.lamb import Lamb
from bellwether.optimizers.lars import Lars
from bellwether.optimizers.lookahead import Lookahead
from bellwether.optimizers.noise_scale import NoiseScale
from bellwether.optimizers.param_groups import groups
from bellwether.optimizers.radam import RAdam
from bellwether.optimizers.scaling import scaled_lr, scaled_warmup
from bellwether.optimizers.schedules import (
    Exponential,
    OneCycle,
    Trapezoid,
    WarmupConstant,
    WarmupCosine,
    WarmupLinear,
    WarmupPolynomial,
    WarmupStep,
)
from bellwether.optimizers.sgd import SGD
from bellwether.optimizers.sharded import ShardedOptimizer
from bellwether.optimizers.swats import Swats
from bellwether.optimizers.trajectory import Trajectory
from bellwether.optimizers.update import Composed

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
    "Trajectory",
    "Trapezoid",
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

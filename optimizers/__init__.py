"""How weights move: update rules, shards, trust ratios, schedules, batch scaling. Needs only torch.

optimizer = Lamb(groups(model), lr=2e-3)
engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
attach(engine)
"""

from optimizers.adam import Adam
from optimizers.adamw import AdamW
from optimizers.attach import attach
from optimizers.composed import Composed
from optimizers.groups import groups
from optimizers.lamb import Lamb
from optimizers.lars import Lars
from optimizers.radam import RAdam
from optimizers.scaling import scaled_lr, scaled_warmup
from optimizers.schedules import Trapezoid, WarmupConstant, WarmupCosine, WarmupLinear, WarmupPolynomial
from optimizers.sgd import SGD
from optimizers.sharded import ShardedOptimizer

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Composed",
    "Lamb",
    "Lars",
    "RAdam",
    "ShardedOptimizer",
    "Trapezoid",
    "WarmupConstant",
    "WarmupCosine",
    "WarmupLinear",
    "WarmupPolynomial",
    "attach",
    "groups",
    "scaled_lr",
    "scaled_warmup",
]

"""Update rules, sharding, trust ratios, learning rate schedules, batch scaling. Needs torch alone.

optimizer = Lamb(groups(model), lr=2e-3)
engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
attach(engine)

Submodules are imported on first use (see `exports`), so that those without torch (`registry`, `recipes`, `scaling`) load at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bellwether.optimizers.exports import names

if TYPE_CHECKING:
    from bellwether.optimizers.adam import Adam as Adam
    from bellwether.optimizers.adamw import AdamW as AdamW
    from bellwether.optimizers.attachment import attach as attach
    from bellwether.optimizers.averaging import WeightAverage as WeightAverage
    from bellwether.optimizers.averaging import recompute_batch_norm as recompute_batch_norm
    from bellwether.optimizers.base import RuleOptimizer as RuleOptimizer
    from bellwether.optimizers.lamb import Lamb as Lamb
    from bellwether.optimizers.lars import Lars as Lars
    from bellwether.optimizers.lookahead import Lookahead as Lookahead
    from bellwether.optimizers.muon import Muon as Muon
    from bellwether.optimizers.noise_scale import NoiseScale as NoiseScale
    from bellwether.optimizers.param_groups import groups as groups
    from bellwether.optimizers.radam import RAdam as RAdam
    from bellwether.optimizers.scaling import scaled_lr as scaled_lr
    from bellwether.optimizers.scaling import scaled_warmup as scaled_warmup
    from bellwether.optimizers.schedule_free import AdamWScheduleFree as AdamWScheduleFree
    from bellwether.optimizers.schedules import Exponential as Exponential
    from bellwether.optimizers.schedules import OneCycle as OneCycle
    from bellwether.optimizers.schedules import Trapezoid as Trapezoid
    from bellwether.optimizers.schedules import WarmupConstant as WarmupConstant
    from bellwether.optimizers.schedules import WarmupCosine as WarmupCosine
    from bellwether.optimizers.schedules import WarmupExponential as WarmupExponential
    from bellwether.optimizers.schedules import WarmupLinear as WarmupLinear
    from bellwether.optimizers.schedules import WarmupPolynomial as WarmupPolynomial
    from bellwether.optimizers.schedules import WarmupStep as WarmupStep
    from bellwether.optimizers.sgd import SGD as SGD
    from bellwether.optimizers.sharded import ShardedOptimizer as ShardedOptimizer
    from bellwether.optimizers.soap import SOAP as SOAP
    from bellwether.optimizers.swats import Swats as Swats
    from bellwether.optimizers.trajectory import Trajectory as Trajectory
else:
    from bellwether.optimizers.exports import __dir__, __getattr__  # noqa: F401

__all__ = names()

"""Chooses the settings to try: a grid, quasi-random points, or Optuna's TPE; and finds the best trial."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from bellwether.experiments.sweep.measurements import Target, Trial, Value
from bellwether.experiments.sweep.spec import Range, Space, Sweep, grid_values

_MAX_COST = 10.0  # of a trial that missed the target, in log(steps) above the longest trial


def setting(sweep: Sweep, optimizer: str, batch: int, number: int, tried: Sequence[Trial] = ()) -> dict[str, Value]:
    """One setting of an optimizer at a batch size: values by key path of the config.

    Args:
        number: index of the setting, from 0.
        tried: trials of this optimizer and batch size that have started; only TPE uses them.
    """
    space = sweep.space_of(optimizer)
    if not space:
        return {}
    ratio = batch / sweep.batches[0]
    if sweep.search.kind == "grid":
        return next(itertools.islice(_combinations(space, ratio), number, None))
    if all(isinstance(values, list) for values in space.values()):
        # Only lists: no combination twice, as it would look like two seeds. Shuffled, so that the first few are spread out.
        combinations = list(_combinations(space, ratio))
        random.Random(sweep.search.seed).shuffle(combinations)
        return combinations[number]
    if sweep.search.kind == "random":
        return _halton_setting(sweep, space, ratio, number)
    return _tpe(sweep, space, ratio, number, tried)


def _combinations(space: Space, ratio: float) -> Iterator[dict[str, Value]]:
    points = itertools.product(*(grid_values(values, ratio) for values in space.values()))
    return (dict(zip(space, point, strict=True)) for point in points)


def best(trials: Iterable[Trial], target: Target | None, metric: str, at_least: bool) -> Trial | None:
    """The trial that reached the target in the fewest steps, else the one with the best value of the metric."""
    completed = [trial for trial in trials if trial.status in ("complete", "pruned")]
    return min(completed, key=lambda trial: (steps(trial, target), -score(trial, metric, at_least)), default=None)


def steps(trial: Trial, target: Target | None) -> float:
    """Steps until the trial reached the target; infinite if it missed, or there is no target."""
    reached = target.reached(trial) if target is not None else None
    return math.inf if reached is None else reached["step"]


def score(trial: Trial, metric: str, at_least: bool) -> float:
    """The best value of a metric, negated where lower is better; minus infinity if nothing was measured."""
    sign = 1 if at_least else -1
    values = (sign * m[metric] for m in trial.measurements if math.isfinite(m.get(metric, math.nan)))
    return max(values, default=-math.inf)


def _halton_setting(sweep: Sweep, space: Space, ratio: float, number: int) -> dict[str, Value]:
    """Point `number` of a scrambled Halton sequence (Owen 2017, 1706.02808), independent of how many points follow."""
    from scipy.stats import qmc

    halton = qmc.Halton(len(space), scramble=True, rng=sweep.search.seed)
    point = [float(x) for x in halton.fast_forward(number).random(1)[0]]
    return {
        key: values[min(int(share * len(values)), len(values) - 1)]
        if isinstance(values, list)
        else values.value_at(share, ratio)
        for (key, values), share in zip(space.items(), point, strict=True)
    }


def _tpe(sweep: Sweep, space: Space, ratio: float, number: int, tried: Sequence[Trial]) -> dict[str, Value]:
    """What Optuna suggests. Its study is rebuilt from the trials on disk, which remain the only record."""
    import optuna

    startup = max(4, sweep.search.trials // 4)
    if number < startup:  # TPE would draw at random; Halton points cover the space better
        return _halton_setting(sweep, space, ratio, number)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Ranges are searched as shares of their length, so that trials stay comparable where bounds scale with the batch size.
    distributions: dict[str, optuna.distributions.BaseDistribution] = {
        key: optuna.distributions.CategoricalDistribution(tuple(range(len(values))))
        if isinstance(values, list)
        else optuna.distributions.FloatDistribution(0.0, 1.0)
        for key, values in space.items()
    }
    sampler = optuna.samplers.TPESampler(
        seed=sweep.search.seed * 100_003 + number, multivariate=True, constant_liar=True, n_startup_trials=startup
    )
    study = optuna.create_study(sampler=sampler)
    longest = max((m["step"] for trial in tried for m in trial.measurements), default=1)
    for trial in tried:
        shares = {key: _share(space[key], trial.parameters[key], ratio) for key in space}
        ended = trial.status != "unfinished"
        study.add_trial(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState.COMPLETE if ended else optuna.trial.TrialState.RUNNING,
                params=shares, distributions=distributions, value=_cost(sweep, trial, longest) if ended else None,
            )
        )  # fmt: skip
    suggested = study.ask(distributions).params
    return {
        key: values[suggested[key]] if isinstance(values, list) else values.value_at(suggested[key], ratio)
        for key, values in space.items()
    }


def _share(values: Range | list[Value], value: Any, ratio: float) -> float | int:
    """The inverse of `Range.value_at`; of a list, the index of the value."""
    if isinstance(values, list):
        return values.index(value)
    low, high = values.bounds(ratio)
    share = math.log(value / low) / math.log(high / low) if values.log else (value - low) / (high - low)
    return min(1.0, max(0.0, share))


def _cost(sweep: Sweep, trial: Trial, longest: float) -> float:
    """The objective that TPE minimizes: log of the steps to the target, or more the further a trial stayed from it."""
    target = sweep.goal
    metric, at_least = sweep.metric
    if target is None:
        return min(1e9, -score(trial, metric, at_least))
    if (count := steps(trial, target)) < math.inf:
        return math.log(count)
    gap = abs(score(trial, metric, at_least) - (target.value if at_least else -target.value)) / (abs(target.value) or 1)
    return math.log(longest) + (_MAX_COST if trial.status == "diverged" else min(_MAX_COST, 1 + gap))

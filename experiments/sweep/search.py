"""Which settings to try: a grid, quasi-random points, or what Optuna's TPE makes of those tried so far."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from bellwether.experiments.sweep.measurements import Target, Trial, Value
from bellwether.experiments.sweep.spec import Range, Space, Sweep, axis

_WORST = 10.0  # how many budgets a run that missed can count as, at most


def setting(sweep: Sweep, optimizer: str, batch: int, number: int, tried: Sequence[Trial] = ()) -> dict[str, Value]:
    """One setting of an optimizer at a batch: values by the config's keys.

    Args:
        number: which one, from 0.
        tried: trials of this optimizer and batch, ended or under way; only TPE looks at them.
    """
    space = sweep.space_of(optimizer)
    if not space:
        return {}
    ratio = batch / sweep.batches[0]
    if sweep.search.kind == "grid":
        return next(itertools.islice(_combinations(space, ratio), number, None))
    if all(isinstance(where, list) for where in space.values()):
        # Lists alone: none twice, or one would look like two seeds. Shuffled, so that a few are spread over all of them.
        every = list(_combinations(space, ratio))
        random.Random(sweep.search.seed).shuffle(every)
        return every[number]
    if sweep.search.kind == "random":
        return _placed(space, _halton(len(space), number, sweep.search.seed), ratio)
    return _tpe(sweep, space, ratio, number, tried)


def _combinations(space: Space, ratio: float) -> Iterator[dict[str, Value]]:
    points = itertools.product(*(axis(where, ratio) for where in space.values()))
    return (dict(zip(space, point, strict=True)) for point in points)


def best(trials: Iterable[Trial], target: Target | None, metric: str, at_least: bool) -> Trial | None:
    """The trial that reached the target in the fewest steps, else the one that came nearest to it."""
    whole = [trial for trial in trials if trial.status in ("complete", "pruned")]
    return min(whole, key=lambda trial: (steps(trial, target), -score(trial, metric, at_least)), default=None)


def steps(trial: Trial, target: Target | None) -> float:
    """That the trial took to its target; infinite if it missed, or has none."""
    reached = target.reached(trial) if target is not None else None
    return math.inf if reached is None else reached["step"]


def score(trial: Trial, metric: str, at_least: bool) -> float:
    """The best value of a metric, turned so that more is better; minus infinity where there is none."""
    sign = 1 if at_least else -1
    values = (sign * m[metric] for m in trial.measurements if math.isfinite(m.get(metric, math.nan)))
    return max(values, default=-math.inf)


def _halton(dimensions: int, number: int, seed: int) -> list[float]:
    """Point `number` of a scrambled Halton sequence (Owen 2017, 1706.02808): the same whether it is the last or not."""
    from scipy.stats import qmc

    return [float(x) for x in qmc.Halton(dimensions, scramble=True, rng=seed).fast_forward(number).random(1)[0]]


def _placed(space: dict[str, Any], point: Sequence[float], ratio: float) -> dict[str, Value]:
    return {
        key: where[min(int(share * len(where)), len(where) - 1)]
        if isinstance(where, list)
        else where.place(share, ratio)
        for (key, where), share in zip(space.items(), point, strict=True)
    }


def _tpe(sweep: Sweep, space: dict[str, Any], ratio: float, number: int, tried: Sequence[Trial]) -> dict[str, Value]:
    """What Optuna suggests, from a study that is made anew of the trials on disk: there is no second record of them."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Ranges are searched as shares of their length, so that one that moves with the batch stays the same question.
    kinds: dict[str, optuna.distributions.BaseDistribution] = {
        key: optuna.distributions.CategoricalDistribution(tuple(range(len(where))))
        if isinstance(where, list)
        else optuna.distributions.FloatDistribution(0.0, 1.0)
        for key, where in space.items()
    }
    sampler = optuna.samplers.TPESampler(
        seed=sweep.search.seed * 100_003 + number, multivariate=True, constant_liar=True,
        n_startup_trials=max(4, sweep.search.trials // 4),
    )  # fmt: skip
    if number < max(4, sweep.search.trials // 4):  # it would draw at random: a Halton point covers more
        return _placed(space, _halton(len(space), number, sweep.search.seed), ratio)
    study = optuna.create_study(sampler=sampler)
    longest = max((m["step"] for trial in tried for m in trial.measurements), default=1)
    for trial in tried:
        where_it_was = {key: _share(space[key], trial.parameters[key], ratio) for key in space}
        ended = trial.status != "unfinished"
        study.add_trial(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState.COMPLETE if ended else optuna.trial.TrialState.RUNNING,
                params=where_it_was, distributions=kinds, value=_cost(sweep, trial, longest) if ended else None,
            )
        )  # fmt: skip
    asked = study.ask(kinds).params
    return {
        key: where[asked[key]] if isinstance(where, list) else where.place(asked[key], ratio)
        for key, where in space.items()
    }


def _share(where: Range | list[Value], value: Any, ratio: float) -> float | int:
    """The way back from a value to its place in the space."""
    if isinstance(where, list):
        return where.index(value)
    low, high = where.at(ratio)
    share = math.log(value / low) / math.log(high / low) if where.log else (value - low) / (high - low)
    return min(1.0, max(0.0, share))


def _cost(sweep: Sweep, trial: Trial, longest: float) -> float:
    """What TPE makes small: steps to the target, and beyond all of those, how far a run stayed from it."""
    target = sweep.goal
    metric, at_least = sweep.metric
    if target is None:
        return min(1e9, -score(trial, metric, at_least))
    if (count := steps(trial, target)) < math.inf:
        return math.log(count)
    gap = abs(score(trial, metric, at_least) - (target.value if at_least else -target.value)) / (abs(target.value) or 1)
    return math.log(longest) + (_WORST if trial.status == "diverged" else min(_WORST, 1 + gap))

"""Which optimizer reaches the target first: performance profiles, paired tests, and the place of each with an interval.

A *race* is one seed of one workload and batch size: every optimizer starts from the same weights and sees the same samples. Each
runs with the best setting that its search has found. A race that an optimizer missed took it infinitely long. The seed on which the settings
were chosen is left out where the best setting has others: it favours whoever was lucky on it.

Sources: performance profiles, Dolan and More 2002 (cs/0102001); their use and the score, Dahl et al. 2023 (2306.07179, sections 4.1 and
4.5); signed ranks, Wilcoxon 1945; Holm 1979; intervals of places from all pairs, Al Mohamad et al. 2022 (1812.05507).
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from bellwether.experiments.analysis.aggregate import Cell
from bellwether.experiments.analysis.outcome import Outcome

LEVEL = 0.9  #: of the intervals of places, all together
LARGEST_RATIO = 4.0  #: up to which the score averages the profile
_FEW_SEEDS = 5

Time = Callable[[Outcome], float]  #: how long a run took to the target; inf: it missed


@dataclass(frozen=True)
class Race:
    """One seed of one workload and batch size: the time of each optimizer, inf where it missed."""

    workload: str
    batch: int
    seed: int
    times: Mapping[str, float]

    @property
    def fastest(self) -> float:
        return min(self.times.values())


@dataclass(frozen=True)
class Pair:
    """Two optimizers over the races that both ran.

    Attributes:
        ratio: median of first's time over second's; inf, 0 and nan where one or both of them missed most.
        p: two-sided, that neither is faster, corrected for the number of pairs.
    """

    first: str
    second: str
    wins: int
    losses: int
    ratio: float
    p: float

    @property
    def winner(self) -> str | None:
        """The one that is faster beyond chance; None if the races cannot tell."""
        if self.p >= 1 - LEVEL or self.wins == self.losses:
            return None
        return self.first if self.wins > self.losses else self.second


@dataclass(frozen=True)
class Standing:
    """One optimizer among the others.

    Attributes:
        reached: races in which it reached the target, of `races`.
        score: mean of its profile over ratios of 1 to `LARGEST_RATIO`: 1 if it always is the fastest.
        ratio: median of its time over the fastest's.
        rank: mean over the races; equal times share theirs.
        places: the best and the worst place that the paired tests leave open.
    """

    name: str
    races: int
    reached: int
    score: float
    ratio: float
    rank: float
    places: tuple[int, int]


@dataclass(frozen=True)
class Comparison:
    """All optimizers, the highest score first."""

    standings: Sequence[Standing]
    pairs: Sequence[Pair]
    races: Sequence[Race]
    notes: Sequence[str] = field(default=())

    def profile(self, name: str, ratios: NDArray[np.float64]) -> NDArray[np.float64]:
        """Share of the races in which an optimizer took at most so many times the time of the fastest."""
        own = np.array(_ratios(self.races, name))
        return np.array([np.mean(own <= ratio) for ratio in ratios])


def compare(cells: Mapping[str, Sequence[Cell]], time: Time) -> Comparison | None:
    """Compare the optimizers of one or several sweeps.

    Args:
        cells: of each sweep, by its name.
        time: of a run to the target, the same unit within a race.

    Returns:
        None if fewer than two optimizers have run a race together.
    """
    notes: list[str] = []
    races = [race for name, found in cells.items() for race in _races(name, found, time, notes)]
    names = sorted({name for race in races for name in race.times})
    if len(names) < 2:
        return None
    pairs = _pairs(races, names)
    standings = [_standing(races, pairs, name, len(names)) for name in names]
    standings.sort(key=lambda standing: (-standing.score, standing.rank))
    return Comparison(standings, pairs, races, [*notes, *_notes(cells, races, names)])


def _races(sweep: str, cells: Sequence[Cell], time: Time, notes: list[str]) -> list[Race]:
    """The races of one sweep: of each batch size, the seeds that the best settings of at least two optimizers ran on."""
    by_batch: dict[int, dict[str, dict[int, float]]] = defaultdict(dict)
    for cell in cells:
        runs = {run.trial.seed: time(run) for run in cell.best.valid_runs}
        searched = _searched_seed(cell)
        if searched is not None and len(runs) > 1:
            runs.pop(searched, None)
        by_batch[cell.batch][cell.optimizer] = runs
    races = []
    for batch, of_optimizer in sorted(by_batch.items()):
        seeds = sorted({seed for runs in of_optimizer.values() for seed in runs})
        found = [
            Race(sweep, batch, seed, {name: runs[seed] for name, runs in of_optimizer.items() if seed in runs})
            for seed in seeds
        ]
        complete = [race for race in found if len(race.times) > 1]
        lacking = {name for race in found for name in of_optimizer.keys() - race.times.keys()}
        if lacking:
            notes.append(f"{sweep}, batch {batch:,}: {', '.join(sorted(lacking))} lacks seeds that others ran on")
        races += complete
    return races


def _searched_seed(cell: Cell) -> int | None:
    """The one seed on which settings were searched; None where all settings ran on all seeds, or there is one setting."""
    single = {run.trial.seed for setting in cell.settings for run in setting.runs if len(setting.runs) == 1}
    return single.pop() if len(single) == 1 else None


def _ratios(races: Iterable[Race], name: str) -> list[float]:
    """An optimizer's time over the fastest's, in the races that it ran; inf where it missed."""
    return [
        math.inf if math.isinf(race.times[name]) else race.times[name] / race.fastest
        for race in races
        if name in race.times
    ]


def _standing(races: Sequence[Race], pairs: Sequence[Pair], name: str, optimizers: int) -> Standing:
    ratios = _ratios(races, name)
    # The integral of the profile: each race adds the part of the range above its ratio.
    score = statistics.fmean(max(0.0, LARGEST_RATIO - ratio) / (LARGEST_RATIO - 1) for ratio in ratios)
    ranks = []
    for race in races:
        if name in race.times:
            order = list(race.times)
            ranks.append(float(stats.rankdata(list(race.times.values()))[order.index(name)]))
    mine = [pair for pair in pairs if name in (pair.first, pair.second)]
    better = sum(pair.winner not in (None, name) for pair in mine)
    worse = sum(pair.winner == name for pair in mine)
    reached = sum(math.isfinite(ratio) for ratio in ratios)
    return Standing(
        name, len(ratios), reached, score, statistics.median(ratios), statistics.fmean(ranks), (1 + better, optimizers - worse)
    )  # fmt: skip


def _pairs(races: Sequence[Race], names: Sequence[str]) -> list[Pair]:
    tested = []
    for first, second in combinations(names, 2):
        both = [(race.times[first], race.times[second]) for race in races if {first, second} <= race.times.keys()]
        differences = np.array([_difference(a, b) for a, b in both])
        ratio = math.exp(statistics.median(differences)) if both else math.nan
        wins, losses = int((differences < 0).sum()), int((differences > 0).sum())
        tested.append(Pair(first, second, wins, losses, ratio, p_value(differences)))
    corrected = holm([pair.p for pair in tested])
    return [replace(pair, p=p) for pair, p in zip(tested, corrected, strict=True)]


def _difference(a: float, b: float) -> float:
    """log(a / b); 0 where both missed."""
    if math.isinf(a) or math.isinf(b):
        return 0.0 if a == b else math.copysign(math.inf, a - b)
    return math.log(a / b)


def p_value(differences: NDArray[np.float64]) -> float:
    """Two-sided p value that the differences are symmetric around 0: signed ranks, exact over all changes of signs, with ties.

    Infinite differences rank above all others, and equal ones, as two misses, count as 0 and are left out.

    >>> p_value(np.array([-0.1, -0.2, -0.3, -0.4, -math.inf]))  # 2 of the 32 changes of signs are as extreme
    0.0625
    """
    some = differences[differences != 0]
    # Twice the ranks, as ties share half ones: whole numbers.
    ranks = np.rint(2 * stats.rankdata(np.abs(some))).astype(int)
    total = int(ranks.sum())
    chance = np.zeros(total + 1)  # of each sum of the positive ranks
    chance[0] = 1.0
    for rank in ranks:
        chance = 0.5 * chance + 0.5 * np.concatenate([np.zeros(rank), chance[: total + 1 - rank]])
    distance = abs(2 * int(ranks[some > 0].sum()) - total)
    return float(min(1.0, chance[np.abs(2 * np.arange(total + 1) - total) >= distance].sum()))


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for their number, by Holm.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    corrected, largest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = largest
    return corrected


def _notes(cells: Mapping[str, Sequence[Cell]], races: Sequence[Race], names: Sequence[str]) -> list[str]:
    """What a reader must know before believing the places."""
    found = []
    for sweep, of_sweep in cells.items():
        budgets: dict[int, dict[str, int]] = defaultdict(dict)
        for cell in of_sweep:
            budgets[cell.batch][cell.optimizer] = len(cell.settings)
            if cell.lr_edge is not None:
                edge = f"the best learning rate of {cell.optimizer} is the {cell.lr_edge} that was tried"
                found.append(f"{sweep}, batch {cell.batch:,}: {edge}")
        for batch, counts in budgets.items():
            if len(set(counts.values())) > 1:
                shown = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
                found.append(
                    f"{sweep}, batch {batch:,}: the numbers of settings differ, so the search is not fair: {shown}"
                )
    seeds = {(race.workload, race.batch): 0 for race in races}
    for race in races:
        seeds[race.workload, race.batch] += 1
    if min(seeds.values()) < _FEW_SEEDS:
        found.append(
            f"only {min(seeds.values())} seeds at some batch size; {_FEW_SEEDS} or more are needed to trust a median"
        )
    least = 2.0 ** (1 - len(races)) * math.comb(len(names), 2)
    if least > 1 - LEVEL:
        needed = math.ceil(1 + math.log2(math.comb(len(names), 2) / (1 - LEVEL)))
        found.append(f"{len(races)} races cannot tell {len(names)} optimizers apart: {needed} are the least that can")
    lost = sum(math.isinf(race.fastest) for race in races)
    if lost:
        found.append(f"in {lost} of {len(races)} races nobody reached the target")
    return found

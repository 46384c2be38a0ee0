"""Simulates `bellwether fit` on curves that are known: how often its 90 % interval covers the truth. The table of docs/results/fit.md.

    python -m scripts.simulate_fit docs/results/fit.md

Each row draws measurements 200 times: seeds, a deviation of each batch size, evaluations in steps, a limited budget. Takes about two
minutes on one core.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field, replace

import numpy as np

from bellwether.experiments.analysis.critical_batch import Fit, fit
from bellwether.experiments.analysis.growth import Floats, log_growth
from scripts import results_page

BEGIN, END = "<!-- written by scripts/simulate_fit.py -->", "<!-- end -->"
DRAWS = 200
B_CRIT, S_MIN = 512.0, 1e6
LEAST = 0.85


@dataclass(frozen=True)
class Case:
    """A way in which measurements come about."""

    name: str
    sizes: list[int] = field(default_factory=lambda: [2**n for n in range(4, 13)])
    seeds: int = 5
    noise: float = 0.05  # deviation of the logarithm between seeds
    tuning: float = 0.0  # of batch sizes, in addition
    knee: float = 1.0  # shape of `growth`
    power: float | None = None  # samples = S_min (1 + (B / B_crit)^power) instead
    evaluations: float = 0.0  # samples between two evaluations, of S_min
    budget: float = math.inf  # samples of a run, of S_min; runs that need more miss the target
    off: float = 1.0  # factor on one batch size
    typo: float = 1.0  # factor on one run

    def samples(self, batch: Floats) -> Floats:
        if self.power is not None:
            return S_MIN * (1 + (batch / B_CRIT) ** self.power)
        return np.asarray(S_MIN * np.exp(log_growth(np.log(batch / B_CRIT), math.log(self.knee))))


PLAIN = Case("nine batch sizes from B_crit / 32 to 8 B_crit, five seeds, 5 % noise")
FEW = [32, 128, 512, 2048]
CASES = [
    PLAIN,
    replace(PLAIN, name="20 % noise", noise=0.2),
    replace(PLAIN, name="one seed", seeds=1),
    replace(PLAIN, name="one seed, 20 % noise", seeds=1, noise=0.2),
    replace(PLAIN, name="two seeds", seeds=2),
    replace(PLAIN, name="five batch sizes, three seeds", sizes=[16, 64, 256, 1024, 4096], seeds=3),
    replace(PLAIN, name="four batch sizes, three seeds", sizes=FEW, seeds=3),
    replace(PLAIN, name="four batch sizes, one seed", sizes=FEW, seeds=1),
    replace(PLAIN, name="three batch sizes, three seeds", sizes=[64, 512, 4096], seeds=3),
    replace(PLAIN, name="three batch sizes, one seed, 10 % noise", sizes=[64, 512, 4096], seeds=1, noise=0.1),
    replace(PLAIN, name="batch sizes tuned to within 10 %", tuning=0.1),
    replace(PLAIN, name="batch sizes tuned to within 20 %", tuning=0.2),
    replace(PLAIN, name="five batch sizes, three seeds, tuned to within 10 %", sizes=[16, 64, 256, 1024, 4096], seeds=3, tuning=0.1),
    replace(PLAIN, name="soft knee, s = 0.6", knee=0.6),
    replace(PLAIN, name="very soft knee, s = 0.4", knee=0.4),
    replace(PLAIN, name="sharp knee, s = 2", knee=2.0),
    replace(PLAIN, name="samples = S_min (1 + (B / B_crit)^0.7)", power=0.7),
    replace(PLAIN, name="samples = S_min (1 + (B / B_crit)^1.3)", power=1.3),
    replace(PLAIN, name="soft knee, s = 0.6, three seeds, tuned to within 10 %", knee=0.6, seeds=3, tuning=0.1),
    replace(PLAIN, name="one batch size 39 % off", off=1.39),
    replace(PLAIN, name="one run ten times off", typo=10.0),
    replace(PLAIN, name="one seed, one batch size ten times off", seeds=1, typo=10.0),
    replace(PLAIN, name="evaluated every 0.2 S_min", evaluations=0.2),
    replace(PLAIN, name="evaluated every 0.5 S_min", evaluations=0.5),
    replace(PLAIN, name="one seed, evaluated every 0.3 S_min", seeds=1, evaluations=0.3),
    replace(PLAIN, name="budget 5 S_min, 20 % noise: half of the runs at 4 B_crit miss", noise=0.2, budget=5.0),
    replace(PLAIN, name="budget 3.2 S_min, 10 % noise: some at 2 B_crit and all above miss", noise=0.1, budget=3.2),
    replace(PLAIN, name="budget 2.1 S_min, 10 % noise: most at B_crit and all above miss", noise=0.1, budget=2.1),
    replace(PLAIN, name="batch sizes up to B_crit / 2", sizes=[8, 16, 32, 64, 128, 256]),
    replace(PLAIN, name="batch sizes up to B_crit / 8", sizes=[2, 4, 8, 16, 32, 64]),
    replace(PLAIN, name="batch sizes from 2 B_crit", sizes=[1024, 2048, 4096, 8192, 16384]),
    replace(
        PLAIN, name="three seeds, 10 % noise, tuned to within 10 %, s = 0.7, every 0.2 S_min, budget 4 S_min", seeds=3, noise=0.1,
        tuning=0.1, knee=0.7, evaluations=0.2, budget=4.0,
    ),
]  # fmt: skip


def measure(case: Case, random: np.random.Generator) -> Fit:
    """Draw measurements and fit them."""
    sizes = np.array(case.sizes, dtype=np.float64)
    expected = case.samples(sizes) * np.exp(case.tuning * random.standard_normal(len(sizes)))
    expected[random.integers(len(sizes))] *= case.off ** random.choice([-1, 1])
    batch = np.repeat(sizes, case.seeds)
    samples = np.repeat(expected, case.seeds) * np.exp(case.noise * random.standard_normal(len(batch)))
    width = np.full(len(batch), case.evaluations * S_MIN)
    if case.evaluations:
        samples = np.ceil(samples / width) * width
    samples[random.integers(len(batch))] *= case.typo
    reached = samples <= case.budget * S_MIN
    if case.typo != 1.0:
        reached[:] = True
    return fit(
        batch.tolist(), np.where(reached, samples, case.budget * S_MIN).tolist(), reached.tolist(), width.tolist()
    )


@dataclass(frozen=True)
class Coverage:
    """Results of a case over all draws."""

    covered: float
    estimate: float  # median of the estimates of B_crit
    low: float  # median of the lower ends
    high: float


def cover(case: Case, draws: int = DRAWS) -> Coverage:
    """Simulate a case."""
    random = np.random.default_rng(0)
    fits = [measure(case, random) for _ in range(draws)]
    covered = np.mean([each.b_crit_low <= B_CRIT <= each.b_crit_high for each in fits])
    middle = [
        float(np.median([getattr(each, key) for each in fits])) for key in ("b_crit", "b_crit_low", "b_crit_high")
    ]
    return Coverage(float(covered), *middle)


def main() -> int:
    rows, worst = [], 1.0
    for case in CASES:
        found = cover(case)
        worst = min(worst, found.covered)
        low, high, middle = (
            f"{value / B_CRIT:.2f}" if math.isfinite(value) else "no bound"
            for value in (found.low, found.high, found.estimate)
        )
        rows.append(f"| {case.name} | {found.covered:.0%} | {middle} | {low} to {high} |")
        print(rows[-1], file=sys.stderr, flush=True)
    text = "\n".join([
        f"{results_page.measured()}: `python -m scripts.simulate_fit docs/results/fit.md`, {DRAWS} draws a row, whose "
        f"standard error is 2 %. The least coverage is {worst:.0%}.", "",
        "| measurements | the 90 % interval covers B_crit | median estimate / B_crit | median interval / B_crit |",
        "| --- | --- | --- | --- |", *rows,
    ])  # fmt: skip
    results_page.write(sys.argv[1] if len(sys.argv) > 1 else None, BEGIN, END, text)
    return 0 if worst >= LEAST else 1


if __name__ == "__main__":
    sys.exit(main())

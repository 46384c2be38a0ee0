"""The table of docs/results/pretraining-pays.md, from the measurements of the sweep 8-pretraining.

    python -m scripts.compare_pretraining runs/8-pretraining/measurements.csv

For each of the two models: the learning rate with the highest accuracy on the validation sentences on the first seed, and accuracy and
macro-F1 on the test sentences for each seed at that rate. Of the difference of the means, the 95 % interval of Welch's t test.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from scipy import stats

from bellwether.experiments.sweep import measurements
from bellwether.experiments.sweep.measurements import Trial

LR = "optimizer.lr"
MODELS = ("pretrained", "scratch")
SCORES = {"accuracy": "val/accuracy_test", "macro-F1": "val/f1_macro_test"}
VALIDATION = "val/accuracy"


def final(trial: Trial, metric: str) -> float:
    return trial.measurements[-1][metric]


def difference(first: list[float], second: list[float]) -> tuple[float, float, float]:
    """Difference of the means of two independent samples, and the ends of its 95 % interval.

    >>> [round(each, 3) for each in difference([1.0, 2.0, 3.0], [1.0, 1.0, 1.0])]
    [1.0, -1.484, 3.484]
    """
    result = stats.ttest_ind(first, second, equal_var=False)
    interval = result.confidence_interval(0.95)
    return statistics.fmean(first) - statistics.fmean(second), float(interval.low), float(interval.high)


def chosen(trials: list[Trial]) -> tuple[dict[float, float], list[Trial]]:
    """Validation accuracy on the first seed by learning rate, and the trials of the best rate by seed."""
    first = min(trial.seed for trial in trials)
    tried = {float(str(t.parameters[LR])): final(t, VALIDATION) for t in trials if t.seed == first}
    best = max(tried, key=lambda lr: tried[lr])
    of_best = [trial for trial in trials if float(str(trial.parameters[LR])) == best]
    return dict(sorted(tried.items())), sorted(of_best, key=lambda trial: trial.seed)


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def table(trials: list[Trial]) -> list[str]:
    by_model = {model: chosen([trial for trial in trials if trial.optimizer == model]) for model in MODELS}
    rates = list(next(iter(by_model.values()))[0])
    lines = [f"| validation accuracy in %, by learning rate, seed 1 | {' | '.join(f'{lr:g}' for lr in rates)} |"]
    lines.append("|---" * (len(rates) + 1) + "|")
    lines += [f"| {m} | {' | '.join(percent(tried[lr]) for lr in rates)} |" for m, (tried, _) in by_model.items()]
    seeds = [trial.seed for trial in by_model[MODELS[0]][1]]
    lines += ["", f"| test, in % | {' | '.join(f'seed {seed}' for seed in seeds)} | mean | standard deviation |"]
    lines.append("|---" * (len(seeds) + 3) + "|")
    for name, metric in SCORES.items():
        values = {model: [final(trial, metric) for trial in found] for model, (_, found) in by_model.items()}
        for model, of_model in values.items():
            mean, spread = statistics.fmean(of_model), statistics.stdev(of_model)
            cells = " | ".join(map(percent, [*of_model, mean, spread]))
            lines.append(f"| {name}, {model} | {cells} |")
        middle, low, high = difference(values["pretrained"], values["scratch"])
        gaps = " | ".join(percent(a - b) for a, b in zip(values["pretrained"], values["scratch"], strict=True))
        lines.append(f"| {name}, difference | {gaps} | {percent(middle)} ({percent(low)} to {percent(high)}) | |")
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measurements", type=Path)
    print("\n".join(table(measurements.read(parser.parse_args().measurements))))

"""``bellwether frontier``: which batch on how many GPUs, for a deadline or a budget; as a table, a picture and a config."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bellwether.experiments.analysis import convergence_points, fit_checks
from bellwether.experiments.analysis.critical_batch import Fit
from bellwether.experiments.analysis.mlperf_points import Unit
from bellwether.experiments.analysis.points import Points
from bellwether.experiments.planner import frontier, frontier_config, gpus
from bellwether.experiments.planner.frontier import Option, Span
from bellwether.experiments.planner.model_info import model_info
from bellwether.experiments.planner.step_time import Machines, step_time
from bellwether.experiments.report import frontier_picture
from bellwether.trainer.checked_config import load_checked
from bellwether.trainer.config import Config, ConfigError, phases
from bellwether.trainer.memory import activations
from bellwether.trainer.memory.sharding import Sharding, state_tensors
from bellwether.trainer.phases import split


@dataclass(frozen=True)
class FrontierRequest:
    """The options of the command line."""

    config: str
    overrides: list[str]
    source: str
    throughput: float
    gpu: str
    gpus_per_node: int = 8
    max_gpus: int = 4096
    network: float | None = None
    price: float | None = None
    deadline: float | None = None
    budget: float | None = None
    unit: Unit | None = None
    dataset_size: int | None = None
    target: str | None = None
    optimizer: str | None = None
    output: str | None = None
    json: bool = False


@dataclass(frozen=True)
class Frontier:
    """The options and the picks among them."""

    request: FrontierRequest
    config: Config
    points: Points
    fit: Fit
    options: list[Option]

    @property
    def front(self) -> list[Option]:
        return frontier.front(self.options)

    @property
    def limit(self) -> Option:
        return frontier.limit(self.front)

    @property
    def chosen(self) -> Option | None:
        """The recommended option; None: none meets the deadline or the budget."""
        r = self.request
        found: Sequence[Option] = self.options
        if r.budget is not None and r.deadline is not None:
            found = [o for o in found if (o.cost or o.gpu_hours).high <= r.budget]
        if r.deadline is not None:
            return frontier.by_deadline(found, r.deadline)
        if r.budget is not None:
            return frontier.within_budget(found, r.budget)
        return self.limit

    @property
    def why(self) -> str:
        """What the recommended option is chosen by."""
        r, money = self.request, "cost" if self.request.price is not None else "GPU hours"
        if r.deadline is not None:
            limit = f" and at most {r.budget:,g} {money}" if r.budget is not None else ""
            return f"the least {money} that is done in {r.deadline:g} h{limit}, with a probability of 95 %"
        if r.budget is not None:
            budget = f"{r.budget:,g}" if r.price is not None else f"{r.budget:,g} GPU hours"
            return f"the least time within a budget of {budget}, with a probability of 95 %"
        return f"beyond it twice the {money} save less than a quarter of the time"


def show(request: FrontierRequest) -> int:
    """Compute, print, draw, and write the config. Returns the exit status for the shell: 1 if no option meets the limits.

    Raises:
        ConfigError, ConfigErrors: if a file cannot be read, or does not determine a curve.
    """
    found = compute(request)
    folder = Path(request.output or f"{found.config.name}-frontier")
    picture, written = folder / "frontier.png", None
    folder.mkdir(parents=True, exist_ok=True)
    frontier_picture.draw(found.options, found.front, found.limit, found.chosen, request.price is not None, picture)
    if found.chosen is not None:
        written = frontier_config.write(
            found.chosen,
            found.config,
            request.config,
            request.source,
            request.overrides,
            request.optimizer,
            request.gpus_per_node,
            folder,
        )
    if request.json:
        print(json.dumps(_json(found, picture, written), indent=1, allow_nan=False))
    else:
        print("\n".join(_lines(found, picture, written)))
    return 0 if found.chosen is not None else 1


def compute(request: FrontierRequest) -> Frontier:
    """Fit the curve and compute all options."""
    if not torch.cuda.is_available():  # DeepSpeed is imported for its default settings
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    configs = phases(load_checked(request.config, request.overrides))
    if len(configs) > 1:
        raise ConfigError("phases", len(configs), "frontier needs a config with one phase", "write phases: []")
    (config,) = configs
    points = convergence_points.read(
        request.source, request.unit, request.dataset_size, request.target, request.optimizer
    )
    try:
        fit = points.fit()
    except ValueError as error:
        raise ConfigError("--from", request.source, str(error)) from None
    if not len(fit.draws):
        raise ConfigError("--from", request.source, "two batch sizes give no error estimate", "measure at five or more")
    gpu = gpus.find(request.gpu)
    if request.network is not None:
        gpu = replace(gpu, network=request.network)
    profile = activations.measure(config, model_info(config, request.dataset_size or 1).data)
    sharding = Sharding.from_config(config, state_tensors(config, profile), profile.elements)

    def step_seconds(n: int, batch: int) -> float | None:
        per_node = min(n, request.gpus_per_node)
        if n % per_node or batch % (n * config.data.unit):
            return None
        machines = Machines(gpu, n // per_node, per_node, throughput=request.throughput)
        return step_time(
            profile, sharding, machines, config, split(batch, config.batch.most, n, unit=config.data.unit)
        ).total

    counts = [2**k for k in range(64) if 2**k <= request.max_gpus]
    counts = sorted(
        {n for n in counts if n < request.gpus_per_node}
        | {request.gpus_per_node * n for n in counts if request.gpus_per_node * n <= request.max_gpus}
    )
    options = frontier.options(fit, step_seconds, counts, frontier.batch_sizes(fit, config.batch.most), request.price)
    if not options:
        raise ConfigError(
            "--max-gpus",
            request.max_gpus,
            "no measured batch size can be divided among so many GPUs",
            "write another number",
        )
    return Frontier(request, config, points, fit, options)


def _lines(found: Frontier, picture: Path, written: Path | None) -> Iterator[str]:
    request, fit, chosen = found.request, found.fit, found.chosen
    yield f"{found.config.name} on {request.gpu}, {request.throughput:,g} samples/s on one GPU; samples to the target from {request.source}"
    yield "  each number of GPUs with the batch size that is done first; ranges: 90 %\n"
    money = request.price is not None
    yield f"  {'GPUs':>6}  {'batch':>8}  {'step':>9}  {'time':>9}  {'':>21}  {'GPU hours':>9}" + (
        f"  {'cost':>8}" if money else ""
    )
    on_front = found.front
    for option in frontier.best_batch(found.options):
        yield _row(option, money, option in on_front, option == chosen)
    if chosen is not None and chosen not in frontier.best_batch(found.options):
        yield _row(chosen, money, chosen in on_front, True)
    yield "\n  * on the Pareto front: nothing else is both faster and cheaper;  > recommended"
    last = found.limit
    if last == on_front[-1]:
        yield f"  up to {last.gpus:,} GPUs (--max-gpus {request.max_gpus}) more of them pay: twice the money saves a quarter of the time and more"
    else:
        yield f"  do not go beyond {last.gpus:,} GPUs at batch {last.batch:,}: there, twice the money saves less than a quarter of the time"
    yield f"  batch sizes above {max(o.batch for o in found.options):,} were not measured, and are not considered"
    yield ""
    if chosen is None:
        yield f"no option is {found.why}"
        fastest, cheapest = found.front[-1], found.front[0]
        yield f"  the fastest takes {_span(fastest.hours)} on {fastest.gpus:,} GPUs; the cheapest {_money(cheapest)} on {cheapest.gpus:,}"
    else:
        yield f"recommended: {chosen.gpus:,} GPUs, batch {chosen.batch:,}: {found.why}"
        yield f"  {_span(chosen.hours)}, {_money(chosen)}"
        yield f"  config   {written}"
    yield f"  picture  {picture}"
    where = found.points.workload or "their own model, data and target"
    for note in [
        f"the samples were measured on {where}; another model, dataset, target or starting point needs others",
        *fit.warnings,
        *fit_checks.check(fit).warnings,
    ]:
        yield f"  note: {note}"


def _row(option: Option, money: bool, front: bool, chosen: bool) -> str:
    mark = (">" if chosen else " ") + ("*" if front else " ")
    interval = f"({_time(option.hours.low)} - {_time(option.hours.high)})"
    cost = ""
    if money and option.cost is not None:
        cost = f"  {_sum(option.cost.middle):>8}  {f'({_sum(option.cost.low)} - {_sum(option.cost.high)})':>17}"
    return (
        f"{mark}{option.gpus:>6,}  {option.batch:>8,}  {1e3 * option.step:>6,.1f} ms  {_time(option.hours.middle):>9}  {interval:>21}  "
        f"{_sum(option.gpu_hours.middle):>9}{cost}"
    ).rstrip()


def _sum(amount: float) -> str:
    return f"{amount:,.0f}" if amount >= 100 else f"{amount:.3g}"


def _span(hours: Span) -> str:
    return f"{_time(hours.middle)} ({_time(hours.low)} to {_time(hours.high)})"


def _money(option: Option) -> str:
    spent, unit = (option.gpu_hours, "{} GPU hours") if option.cost is None else (option.cost, "cost {}")
    return f"{unit.format(_sum(spent.middle))} ({_sum(spent.low)} to {_sum(spent.high)})"


def _time(hours: float) -> str:
    if hours >= 48:
        return f"{hours / 24:,.1f} d"
    return f"{hours:.2f} h" if hours >= 1 else f"{60 * hours:.1f} min" if hours >= 1 / 60 else f"{3600 * hours:.1f} s"


def _json(found: Frontier, picture: Path, written: Path | None) -> dict[str, Any]:
    return {
        "options": [asdict(option) for option in found.options], "front": [asdict(option) for option in found.front],
        "limit": asdict(found.limit), "recommended": None if found.chosen is None else asdict(found.chosen), "why": found.why,
        "workload": found.points.workload, "warnings": found.fit.warnings, "picture": str(picture),
        "config": None if written is None else str(written),
    }  # fmt: skip

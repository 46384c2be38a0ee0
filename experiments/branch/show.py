"""``bellwether branch``: train the branches of a run, and report how far its batch can grow, as text, JSON, picture and schedule."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bellwether.experiments.branch import picture
from bellwether.experiments.branch.points import Base, Rule, points
from bellwether.experiments.branch.study import Result, Study, Train
from bellwether.trainer import run_paths
from bellwether.trainer.config import ConfigError, Duration


@dataclass(frozen=True)
class BranchRequest:
    """The options of the command line."""

    run: str
    factors: list[int]
    window: str | None = None
    at: list[int] | None = None
    points: int = 4
    seeds: int = 3
    tolerance: float = 0.01
    rule: Rule | None = None
    nproc: int | None = None
    output: str | None = None
    json: bool = False


def show(request: BranchRequest, train: Train | None = None) -> int:
    """Train what is missing, write the results and print them. Returns the exit status for the shell.

    Args:
        train: trains one config; default: in processes of its own, as `bellwether train`.

    Raises:
        ConfigError, ConfigErrors: if the run cannot be branched, or an option is wrong.
    """
    study, notes = prepare(request)
    tell = (
        (lambda text: print(f"bellwether: {text}", file=sys.stderr, flush=True))
        if not request.json
        else (lambda _: None)
    )
    if status := study.train(train or _processes(request.nproc), tell):
        return status
    results = study.results()
    schedule = study.schedule(results)
    values = to_json(study, results, schedule)
    run_paths.publish(study.folder / "branch.json", json.dumps(values, indent=1) + "\n")
    run_paths.publish(study.folder / "schedule.yaml", schedule_text(study, schedule))
    picture.draw(study.base, results, schedule, study.folder / "branch.png")
    print(json.dumps(values, indent=1) if request.json else "\n".join(lines(study, results, schedule, notes)))
    return 0


def prepare(request: BranchRequest) -> tuple[Study, list[str]]:
    """The study of a request, its folder made, and what was left out."""
    run = Path(request.run).expanduser()
    base = Base.read(run)
    try:
        window = None if request.window is None else Duration.parse(request.window)
    except ValueError as error:
        raise ConfigError("--window", request.window, str(error)) from None
    found, notes = points(base, window, request.at, request.points)
    if odd := [factor for factor in request.factors if factor < 2 or factor & (factor - 1)]:
        raise ConfigError("--factors", odd[0], "is no power of two from 2 on", "as in --factors 2,4,8")
    factors = sorted(set(request.factors))
    folder = Path(request.output).expanduser() if request.output else run.with_name(f"{run.name}-branches")
    if folder.resolve() == run.resolve() or run.resolve() in folder.resolve().parents:
        raise ConfigError(
            "--output", str(folder), "is in the run itself, which stays as it is", "name another directory"
        )
    written = "a tenth of the run" if window is None else str(window)
    study = Study(base, folder, found, written, factors, request.seeds, request.rule or base.rule, request.tolerance)
    short = next((point for point in found if len(study.factors_at(point)) < 2), None)
    if short is not None:
        problem = f"is less than two steps at {factors[0]} times the batch of {short.batch:,}"
        raise ConfigError("--window", written, problem, "write more")
    left_out = {f for point in found for f in factors if f not in study.factors_at(point)}
    notes += [f"factor {f} takes less than two steps somewhere, and is left out there" for f in sorted(left_out)]
    study.prepare()
    return study, notes


def _processes(nproc: int | None) -> Train:
    from bellwether.experiments.lr_find import discard_stdout
    from bellwether.launcher import local

    def train(file: Path) -> int:
        with discard_stdout():
            return local.train(str(file), [], nproc)

    return train


def lines(
    study: Study, results: Sequence[Result], schedule: Sequence[tuple[int, int]], notes: Sequence[str]
) -> Iterator[str]:
    """The text for the terminal."""
    base, factors = study.base, sorted({factor for result in results for factor in result.losses if factor > 1})
    yield f"{base.config.name}: branches of {_windows(study)} samples, {study.seeds} seed{'s' * (study.seeds > 1)}, rate by rule {study.rule}"
    yield f"  held-out loss above the same branch at the run's own batch; tolerance {study.tolerance:g}; intervals: 90 %\n"
    heads = "".join(f"{f'x{factor}':>9}" for factor in factors)
    yield f"  {'step':>8}  {'samples':>11}  {'batch':>7} {heads}  {'+-':>7}  {'critical batch':>27}  {'noise scale':>11}"
    for result in results:
        yield _row(result, factors)
    yield ""
    yield from _advice(study, results, schedule)
    for note in [*notes, *_warnings(study, results)]:
        yield f"  note: {note}"


def _windows(study: Study) -> str:
    lengths = sorted({point.window for point in study.points})
    return f"{lengths[0]:,}" if len(lengths) == 1 else f"{lengths[0]:,} to {lengths[-1]:,}"


def _row(result: Result, factors: Sequence[int]) -> str:
    point, found = result.point, result.limit
    cells = "".join(f"{found.excess[f]:>+9.4f}" if f in found.excess else f"{'–':>9}" for f in factors)
    least = "at least " if found.is_beyond else ""
    high = "" if result.high is None else f"{result.high:,.0f}"
    interval = f"{result.low:,.0f} to {high}" if high else f"{result.low:,.0f} and more"
    critical = f"{least}{result.batch:,.0f} ({interval})"
    noise = "–" if result.noise_scale is None else f"{result.noise_scale:,.0f}"
    spread = "–" if math.isinf(found.noise) else f"{found.noise:.4f}"
    return (
        f"  {point.step:>8,}  {point.samples:>11,}  {point.batch:>7,} {cells}  {spread:>7}  {critical:>27}  {noise:>11}"
    )


def _advice(study: Study, results: Sequence[Result], schedule: Sequence[tuple[int, int]]) -> Iterator[str]:
    phase = study.points[0].phase
    if len(schedule) > 1:
        from bellwether.optimizers.batch_schedule import BatchSchedule

        steps = BatchSchedule(schedule).steps_for(phase.samples)
        yield f"  batch.global: {flow(schedule)}"
        yield f"  {steps:,} steps in place of {phase.steps:,} ({1 - steps / phase.steps:.0%} fewer); for a config: {study.folder / 'schedule.yaml'}"
    elif schedule[0][1] > phase.batches.batch(0):
        yield f"  batch.global: {schedule[0][1]}, from the beginning; for a config: {study.folder / 'schedule.yaml'}"
    else:
        yield f"  no batch warm-up: the critical batch is below twice the batch of {schedule[0][1]:,} everywhere"
    yield f"  picture  {study.folder / 'branch.png'}"


def _warnings(study: Study, results: Sequence[Result]) -> Iterator[str]:
    loudest = max(result.limit.noise for result in results)
    if math.isinf(loudest):
        yield "one seed says nothing about noise: the intervals are unknown; write --seeds 3"
    elif loudest > study.tolerance:
        yield f"the noise between seeds, {loudest:.4f}, is larger than the tolerance of {study.tolerance:g}: write more --seeds, or a larger --tolerance"
    if any(result.limit.is_beyond for result in results):
        yield "at least: all batches that were tried are within the tolerance; write larger --factors"
    yield "the losses are those before the rate decays: what the end of the run makes of the differences is not measured"


def flow(schedule: Sequence[tuple[int, int]]) -> str:
    """A schedule as YAML."""
    return f"[{', '.join(f'[{at}, {size}]' for at, size in schedule)}]"


def schedule_text(study: Study, schedule: Sequence[tuple[int, int]]) -> str:
    """The sections of a config for the batch warm-up."""
    phase = study.points[0].phase
    written = flow(schedule) if len(schedule) > 1 else str(schedule[0][1])
    return (
        f"# From `bellwether branch {study.base.run}`: tolerance {study.tolerance:g}, {study.seeds} seeds, {_windows(study)} samples a branch.\n"
        f"batch: {{global: {written}, micro: {phase.config.batch.micro}}}\n"
        f"optimizer: {{lr: {phase.lr!r}}}\n"
        f"scaling: {{rule: {study.rule}, base_batch: {phase.batches.batch(0)}, warmup: false}}\n"
    )


def to_json(study: Study, results: Sequence[Result], schedule: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """All numbers. What is infinite is null."""
    return {
        "run": str(study.base.run), "window": study.window, "seeds": study.seeds, "tolerance": study.tolerance, "rule": study.rule,
        "points": [
            {
                "step": r.point.step, "samples": r.point.samples, "batch": r.point.batch, "window": r.point.window, "critical_batch": r.batch, "low": r.low,
                "high": r.high, "is_beyond": r.limit.is_beyond, "largest_measured": r.limit.measured * r.point.batch,
                "noise_scale": r.noise_scale, "losses": {str(f): [_finite(loss) for loss in each] for f, each in r.losses.items()},
                **{key: _plain(value) for key, value in asdict(r.limit).items() if key in ("excess", "error", "noise")},
            }
            for r in results
        ],
        "schedule": [list(pair) for pair in schedule],
    }  # fmt: skip


def _plain(value: Any) -> Any:
    return {str(key): _finite(each) for key, each in value.items()} if isinstance(value, dict) else _finite(value)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None

"""``bellwether status``: a run's state and progress, from its directory and SLURM's queue."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bellwether.launcher import attempts, squeue
from bellwether.trainer import goodput, metrics
from bellwether.trainer.checkpoint_interval import Interval, suggest
from bellwether.trainer.config import ConfigError
from bellwether.trainer.progress import duration

_SHOWN = 5  # attempts
_UNMOVED = 15.0  # seconds without progress of the run after which the others wait for the rank furthest behind
_FRESH = 120.0  # seconds after which a heartbeat counts as stale


def status(run: Path, as_json: bool = False) -> int:
    """Print a table about a run, whether it runs, waits or has ended.

    Args:
        as_json: print an object of numbers instead.

    Raises:
        ConfigError: if the directory holds no run.
    """
    check_run_directory(run)
    history, tries, beat = metrics.read(run), attempts.read(run), attempts.heartbeat(run)
    rows = [("state", _state(run, history, beat)), *_job(run, tries), *_progress(history, beat), *_heartbeat(beat)]
    time_spent = goodput.account(run)
    interval = suggest(history, time_spent)
    if as_json:
        print(json.dumps(_numbers(run, history, beat, time_spent, interval), indent=1))
        return 0
    if time_spent.total:
        rows.append(("time went to", str(time_spent)))
    if interval is not None:
        rows.append(("suggestion", f"checkpoint {interval}"))
    if tries:
        rows.append(("log", tries[-1].log))
    width = max(len(label) for label, _ in rows)
    print(run)
    for label, value in rows:
        print(f"  {label:<{width}}  {value}")
    for index, attempt in list(enumerate(tries))[-_SHOWN:]:
        number = len([before for before in tries[: index + 1] if before.of == attempt.of])
        began = time.strftime("%F %H:%M", time.localtime(attempt.time))
        outcome = attempt.reason or ("running" if attempt is tries[-1] else "no end recorded")
        print(f"  attempt {number} of job {attempt.job}, {began}, from step {attempt.step:,}: {outcome}")
    return 0


def _numbers(
    run: Path, history: metrics.History, beat: dict[str, Any], spent: goodput.Goodput, interval: Interval | None
) -> dict[str, Any]:
    step = max([int(line["step"]) for line in [*history.train[-1:], *history.start[-1:]]], default=0)
    return {
        "run": str(run),
        "state": _state(run, history, beat),
        "step": step,
        "total_steps": int(beat.get("total") or 0) or None,
        "launches": len(history.start),
        "failures": spent.failures,
        "seconds": {part: round(seconds, 3) for part, seconds in spent.seconds.items()},
        "shares": {part: seconds / spent.total if spent.total else 0.0 for part, seconds in spent.seconds.items()},
        "suggested_checkpoint_interval": None if interval is None else asdict(interval),
    }


def check_run_directory(run: Path) -> None:
    """Check that a directory holds a run, which may be waiting in the queue.

    Raises:
        ConfigError: if not.
    """
    if not run.is_dir() or not ((run / "config.yaml").is_file() or (run / attempts.FILE).is_file()):
        near = Path("runs") / run.name
        fix = f"did you mean {near}?" if near.is_dir() else "name one such as runs/bert-tiny"
        raise ConfigError("RUN", str(run), "no run directory", fix)


def is_running(beat: dict[str, Any]) -> bool:
    """Whether a run's heartbeat is recent and does not record an end."""
    return bool(beat) and beat.get("ended") is None and time.time() - beat["time"] < _FRESH


def _state(run: Path, history: metrics.History, beat: dict[str, Any]) -> str:
    if attempts.is_finished(run):
        return "finished"
    if beat.get("ended"):
        outcomes = {"saved": "saved after a signal, can be resumed", "lost": "ended after losing a rank"}
        return outcomes.get(beat["ended"], str(beat["ended"]))
    if is_running(beat):
        return "running"
    return "not running, not finished" if history.start else "not started"


def _job(run: Path, tries: list[attempts.Attempt]) -> list[tuple[str, str]]:
    waiting = attempts.waiting(run)
    if waiting is not None:
        return [("job", f"{waiting['job']}, {squeue.state(waiting['job'])}")]
    if not tries:
        return []
    last = tries[-1]
    restarts = len([attempt for attempt in tries if attempt.of == last.of]) - 1
    excluded = attempts.excluded_nodes(run, last.job)
    return [
        ("job", f"{last.job}, {squeue.state(last.job)}"),
        ("nodes", f"{last.nodes}, {last.tasks} processes"),
        *([("excluded", ", ".join(f"{node} ({why})" for node, why in excluded.items()))] if excluded else []),
        ("restarts", f"{restarts}"),
    ]


def _progress(history: metrics.History, beat: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    step = max([int(line["step"]) for line in [*history.train[-1:], *history.start[-1:]]], default=0)
    total = int(beat.get("total") or 0)
    if beat.get("ended") is None:
        step = max(step, int(beat.get("step") or 0))
    if total:
        rows.append(("step", f"{step:,} of {total:,}, {step / total:.1%}"))
    elif history.start:
        rows.append(("step", f"{step:,}"))
    if history.train:
        last = history.train[-1]
        rows.append(("loss", f"{last['loss']:.4f} at step {last['step']:,}"))
        recent = [line["step_time"] for line in history.train[-20:] if line.get("step_time")]
        if recent:
            seconds = sum(recent) / len(recent)
            tokens = f", {last['tokens_per_s']:,.0f} tokens/s" if last.get("tokens_per_s") else ""
            rows.append(("throughput", f"{last['samples_per_s']:,.0f} samples/s{tokens}, {seconds:.3g} s a step"))
            if last.get("data_wait") is not None:
                rows.append(("data wait", f"{last['data_wait']:.1%} of the time"))
            if total > step:
                rows.append(("left", f"{duration((total - step) * seconds)} of training"))
    if history.checkpoint:
        last = history.checkpoint[-1]
        cost = (
            f", for which training stood still for {last['blocked_seconds']:.2g} s" if "blocked_seconds" in last else ""
        )
        rows.append(("checkpoint", f"{last['path']}, {duration(time.time() - last['time'])} ago{cost}"))
    return rows


def _heartbeat(beat: dict[str, Any]) -> list[tuple[str, str]]:
    if not beat:
        return []
    age = time.time() - beat["time"]
    if is_running(beat):
        return [("heartbeat", f"{age:.0f} s ago, {_furthest_behind(beat)}")]
    if beat.get("reason"):
        return [("ended", f"{duration(age)} ago: {beat['reason']}")]
    return [("heartbeat", f"last {duration(age)} ago, {beat.get('doing')}")]


def _furthest_behind(beat: dict[str, Any]) -> str:
    """The rank that the others wait for, if any."""
    rows = beat.get("furthest_behind") or []
    if not rows:
        return str(beat.get("doing"))
    first = rows[0]
    # Beats are seconds old: only where nothing moves do they tell who waits for whom.
    unmoved = beat.get("unmoved_s", 0.0)
    since = f" for {unmoved:.0f} s" if unmoved > _UNMOVED else ""
    if since and beat.get("behind") == 0:
        return f"none of {beat['ranks']:,} ranks is behind: at step {first['step']:,}, {first['doing']}{since}"
    silent = f", silent for {first['silent_s']:.0f} s" if first["silent_s"] > 15 else ""
    return f"furthest behind: rank {first['rank']} on {first['host']} at step {first['step']:,}, {first['doing']}{since}{silent}"

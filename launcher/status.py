"""``bellwether status`` and ``bellwether logs``: how a run goes, from its directory and from SLURM's queue."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bellwether.launcher import requeue
from bellwether.trainer import metrics
from bellwether.trainer.config import ConfigError
from bellwether.trainer.progress import duration

_SHOWN = 5  # attempts


def status(run: Path) -> int:
    """Print a table about a run, also while it runs or waits."""
    _check(run)
    history, attempts, beat = metrics.read(run), requeue.attempts(run), requeue.beat(run)
    waiting = requeue.waiting(run)
    rows = [("state", _state(run, history, beat))]
    if waiting is not None:
        rows.append(("job", f"{waiting['job']}, {_queue(waiting['job'])}"))
    elif attempts:
        last = attempts[-1]
        same = [a for a in attempts if a.job == last.job]
        rows.append(("job", f"{last.job}, {_queue(last.job)}"))
        rows.append(("nodes", f"{last.nodes}, {last.tasks} processes"))
        rows.append(("restarts", f"{len(same) - 1}"))
    rows += _progress(history, beat)
    if beat and beat.get("ended") is None and time.time() - beat["time"] < 120:
        rows.append(("heartbeat", f"{time.time() - beat['time']:.0f} s ago, {_furthest(beat)}"))
    elif beat:
        rows.append(("heartbeat", f"last {duration(time.time() - beat['time'])} ago, {beat.get('doing')}"))
    if attempts:
        rows.append(("log", attempts[-1].log))
    width = max(len(label) for label, _ in rows)
    print(run)
    for label, value in rows:
        print(f"  {label:<{width}}  {value}")
    for attempt in attempts[-_SHOWN:]:
        began = time.strftime("%F %H:%M", time.localtime(attempt.time))
        how = attempt.reason or ("under way" if attempt is attempts[-1] else "ended without a word")
        print(f"  attempt {attempt.restart + 1} of job {attempt.job}, {began}, from step {attempt.step:,}: {how}")
    return 0


def logs(run: Path, follow: bool) -> int:
    """Print rank 0's log of the newest attempt; with ``follow``, what is added to it too, until Ctrl-C or the end."""
    _check(run)
    attempts, waiting = requeue.attempts(run), requeue.waiting(run)
    if not attempts and waiting is None:
        problem = "was not started by slurm/train.sbatch, so rank 0 wrote to its terminal"
        raise ConfigError("RUN", str(run), problem, f"the other ranks' output is below {run / 'logs'}")
    file = Path(attempts[-1].log if waiting is None else waiting["log"])
    while not file.exists():
        if not follow:
            raise ConfigError("RUN", str(run), f"its log {file} is not there yet", "wait for it with -f")
        time.sleep(1)
    with open(file, errors="replace") as stream, contextlib.suppress(KeyboardInterrupt):
        while True:
            text = stream.read()
            sys.stdout.write(text)
            sys.stdout.flush()
            if not text and (not follow or requeue.is_finished(run)):
                break
            time.sleep(0 if text else 0.5)
    return 0


def _check(run: Path) -> None:
    if not run.is_dir() or not ((run / "config.yaml").is_file() or (run / requeue.FILE).is_file()):
        near = Path("runs") / run.name
        advice = f"did you mean {near}?" if near.is_dir() else "give one such as runs/bert-tiny"
        raise ConfigError("RUN", str(run), "no run directory", advice)


def _state(run: Path, history: metrics.History, beat: dict[str, Any]) -> str:
    if requeue.is_finished(run):
        return "finished"
    if beat.get("ended"):
        return {"saved": "saved after a signal, to go on", "lost": "ended, as a rank was lost"}.get(
            beat["ended"], str(beat["ended"])
        )
    if beat and time.time() - beat["time"] < 120:
        return "running"
    return "not running, not finished" if history.start else "not begun"


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
            each = sum(recent) / len(recent)
            tokens = f", {last['tokens_per_s']:,.0f} tokens/s" if last.get("tokens_per_s") else ""
            rows.append(("throughput", f"{last['samples_per_s']:,.0f} samples/s{tokens}, {each:.3g} s a step"))
            if total > step:
                rows.append(("left", f"{duration((total - step) * each)} of training"))
    if history.checkpoint:
        last = history.checkpoint[-1]
        rows.append(("checkpoint", f"{last['path']}, {duration(time.time() - last['time'])} ago"))
    return rows


def _furthest(beat: dict[str, Any]) -> str:
    """The rank that the others wait for, if any."""
    rows = beat.get("furthest_behind") or []
    if not rows:
        return str(beat.get("doing"))
    first = rows[0]
    silent = f", silent for {first['silent_s']:.0f} s" if first["silent_s"] > 15 else ""
    return (
        f"furthest behind: rank {first['rank']} on {first['host']} at step {first['step']:,}, {first['doing']}{silent}"
    )


def is_queued(job: str) -> bool:
    """Whether SLURM still has a job in its queue, as far as it can be asked."""
    return bool(_squeue(job, "%T"))


def _queue(job: str) -> str:
    """What SLURM says of a job."""
    line = _squeue(job, "%T|%r|%M|%l|%S")
    if line is None:
        return "no answer from squeue"
    if not line:
        return "no longer in the queue"
    state, reason, used, limit, start = line.split("|")
    if state == "PENDING":
        return f"pending ({reason}), expected to start {start}"
    return f"{state.lower()}, {used} of {limit} used"


def _squeue(job: str, form: str) -> str | None:
    """A job's line of the queue; empty where it has none, None where nobody answers."""
    command = ["squeue", "--noheader", "--jobs", job, "--format", form]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return "" if said.returncode else (said.stdout.strip().splitlines() or [""])[0]

"""Announces a run before its first step: its data and the plan of each phase, on the terminal and in the run directory."""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path

from bellwether.trainer import run_paths, rundir, scores
from bellwether.trainer.config import Config, dump
from bellwether.trainer.data import Dataset, arranged
from bellwether.trainer.data.stream_samples import StreamSamples
from bellwether.trainer.data.summary_lines import lines
from bellwether.trainer.data.unigram import unigram_loss
from bellwether.trainer.phase_rows import notes, rows
from bellwether.trainer.phases import Phase
from bellwether.trainer.report.facts import UNIGRAM
from bellwether.trainer.run_state import Run

log = logging.getLogger(__name__)


def announce(run: Run) -> None:
    """Log the plan and where the run resumes, and write the ``start`` and ``plan`` events unless nothing is left to do.

    Called on rank 0.

    Raises:
        ConfigError: if an experiment tracker cannot start.
    """
    tables = _plan_tables(run)
    _show_data(run)
    _log_plan(run, tables)
    position, source = run.position, run.newest_checkpoint
    if source is not None:
        log.info("resuming at step %d from %s", position.step, source)
    if not run.has_work:
        reason = f"the run stops at step {run.stop_step}"
        if run.target_reached:
            reason = f"{run.config.evaluate.target} was reached"
        elif run.best is not None and run.out_of_patience:
            reason = f"{run.best.since} evaluations were no better than that of step {run.best.step}"
        log.info("nothing is left to do: the run is at step %d, and %s", position.step, reason)
        return  # the metrics already say how the run ended
    run.metrics.write(
        "start", time=time.time(), version=rundir.code_version(), world_size=run.world.size,
        device=str(run.world.device), engine=dump(run.config)["engine"], step=position.step, samples=position.samples,
        resumed_from=None if source is None else str(source), nodes=nodes(run.world.size), startup=seconds_since_start(),
    )  # fmt: skip
    run.metrics.write("plan", phases=[[{"label": label, "value": value} for label, value in table] for table in tables])


def nodes(world_size: int) -> int:
    """The number of machines of the run, as the launcher's environment says."""
    per_node = next(
        (e for e in ("LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE") if os.environ.get(e, "").isdigit()), ""
    )
    stated = os.environ.get("SLURM_STEP_NUM_NODES", "")
    if stated.isdigit() and not per_node:
        return max(1, int(stated))
    return max(1, world_size // max(1, int(os.environ[per_node]))) if per_node else 1


def seconds_since_start() -> float:
    """Seconds since this process was started."""
    try:
        started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        return round(time.clock_gettime(time.CLOCK_BOOTTIME) - started, 3)
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0  # not on Linux


def _plan_tables(run: Run) -> list[list[tuple[str, str]]]:
    """The rows of each phase's plan, label and value."""
    first = run.datasets[0]
    of_data = [
        (label, f"{count:,}")
        for label, count in (("vocabulary", first.vocabulary_size), ("classes", first.classes))
        # Of labelled text, the classes are what a guess would be drawn from.
        if count is not None and (label == "classes" or first.score is None)
    ]
    return [
        [*rows(phase), *of_data, *_streams(phase, dataset), *_unigram(dataset), *_pretrained(phase.config)]
        for phase, dataset in zip(run.phases, run.datasets, strict=True)
    ]


def _streams(phase: Phase, dataset: Dataset) -> list[tuple[str, str]]:
    """How the text of a phase is cut into parallel streams."""
    samples = arranged(dataset.train, phase.split.global_batch)
    if not isinstance(samples, StreamSamples):
        return []
    held_out = dataset.held_out.values() or [dataset.validation]
    left = sum(part.left_over for part in held_out if isinstance(part, StreamSamples))
    return [
        (
            "streams",
            f"{samples.parallel:,} of {samples.predicted:,} tokens, from an empty state at the start of each epoch of {samples.windows:,} "
            f"steps; {samples.left_over:,} of {len(samples.stream):,} tokens are left over, and {left:,} of the held-out text",
        )
    ]


def _unigram(dataset: Dataset) -> list[tuple[str, str]]:
    loss = unigram_loss(dataset)
    if loss is None:
        return []
    perplexity = f" (perplexity {scores.perplexity(loss):,.1f})" if isinstance(dataset.train, StreamSamples) else ""
    return [(UNIGRAM, f"{loss:.4f}, the held-out loss of token frequencies alone{perplexity}")]


def _pretrained(config: Config) -> list[tuple[str, str]]:
    init, tokenizer = getattr(config.model, "init", None), getattr(config.data, "tokenizer", None)
    if init is None:
        return []
    return [("weights", f"pretrained, {init}"), *([("tokenizer", str(tokenizer))] if tokenizer else [])]


def _show_data(run: Run) -> None:
    """Log what was read, and store it in the run directory: one object for each phase with data of its own."""
    found = [dataset.summary for dataset in run.datasets if dataset.summary is not None]
    distinct = [each for index, each in enumerate(found) if each not in found[:index]]
    for each in distinct:
        log.info("%s", "\n".join(lines(each)))
    text = json.dumps([each.to_json() for each in distinct], indent=1)
    run_paths.publish(run.directory / run_paths.DATA, text + "\n")


def _log_plan(run: Run, tables: list[list[tuple[str, str]]]) -> None:
    for phase, table in zip(run.phases, tables, strict=True):
        which = f", phase {phase.index + 1} of {len(run.phases)}" if len(run.phases) > 1 else ""
        log.info("plan of %s%s", run.config.name, which)
        for label, value in table:
            log.info("  %-13s %s", label, value)
        for note in notes(phase):
            log.info("  note          %s", note)

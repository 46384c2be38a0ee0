"""Writes ``<run>/mllog.txt``: a run's log as MLPerf's compliance checker and its checker of convergence read it.

The format is that of mlcommons/logging: lines of ``:::MLLOG`` and a JSON object.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from bellwether.optimizers.registry import OPTIMIZERS
from bellwether.trainer import run_paths
from bellwether.trainer.metrics import read
from bellwether.trainer.metrics_format import Line
from bellwether.trainer.mlperf.benchmarks import BENCHMARKS
from bellwether.trainer.phases import Phase

TOKEN = ":::MLLOG"
_POINT, _START, _END = "POINT_IN_TIME", "INTERVAL_START", "INTERVAL_END"

Metadata = dict[str, Any]
Entry = tuple[float, str, str, Any, Metadata]  # unix seconds, type, key, value, metadata


class ResultLog:
    """The result log of one run. It is written anew from the metrics, so that it has each step of a resumed run once.

    It ends at the first evaluation that reaches the benchmark's target, as a submission does, even where the run goes on.

    Args:
        run: the run directory.
        phase: the only phase of the run, whose config names the benchmark.
    """

    def __init__(self, run: Path, phase: Phase) -> None:
        name = phase.config.log.mlperf.benchmark
        assert name is not None
        self.path, self._run, self._phase, self._benchmark = run / run_paths.MLLOG, run, phase, BENCHMARKS[name]

    def write(self) -> None:
        """Write all lines that the metrics hold so far."""
        run_paths.publish(self.path, "".join(f"{line}\n" for line in self.lines()))

    def lines(self) -> Iterator[str]:
        """The lines, in the order in which things happened."""
        for seconds, kind, key, value, metadata in self._entries():
            fields = {"namespace": "", "time_ms": round(1000 * seconds), "event_type": kind, "key": key, "value": value}
            # The file and line of a run's code are the same for each run of one version, which the start names.
            source = {"file": "bellwether/trainer/mlperf/result_log.py", "lineno": 0}
            yield f"{TOKEN} {json.dumps({**fields, 'metadata': {**source, **metadata}})}"

    def _entries(self) -> Iterator[Entry]:
        history = read(self._run)
        if not history.start:
            return
        first = history.start[0]
        began = float(first["time"])
        loaded = began - float(first.get("startup") or 0.0)
        for key, value in self._submission(first).items():
            yield loaded, _POINT, key, value, {}
        yield loaded, _POINT, "cache_clear", False, {}
        yield loaded, _START, "init_start", None, {}
        for key, value in self._hyperparameters().items():
            yield began, _POINT, key, value, {}
        yield began, _END, "init_stop", None, {}
        yield began, _START, "run_start", None, {}
        yield from self._blocks(began, history.eval)
        if history.end and history.state != "unfinished" and not self._reached(history.eval):
            yield float(history.end[-1]["time"]), _END, "run_stop", None, {"status": "aborted"}

    def _blocks(self, began: float, evaluations: list[Line]) -> Iterator[Entry]:
        """From each evaluation to the next, up to the one that reaches the target."""
        start, samples = began, 0
        for index, line in enumerate(evaluations):
            end = float(line["time"])
            counts, block = self._counts(line["samples"]), {"first_epoch_num": self._counts(samples)["epoch_num"]}
            block["epoch_count"] = counts["epoch_num"] - block["first_epoch_num"]
            yield start, _START, "block_start", None, {**block, "samples_count": line["samples"] - samples}
            yield end - float(line["seconds"]), _START, "eval_start", None, counts
            yield end, _POINT, "eval_accuracy", line.get("accuracy"), counts
            yield end, _END, "eval_stop", None, counts
            yield end, _END, "block_stop", None, {**block, "samples_count": line["samples"] - samples}
            start, samples = end, line["samples"]
            if self._reached(evaluations[: index + 1]):
                yield from self._sizes(end, line)
                yield end, _END, "run_stop", None, {"status": "success", **counts}
                return
        if evaluations:
            yield from self._sizes(start, evaluations[-1])

    def _sizes(self, seconds: float, line: Line) -> Iterator[Entry]:
        # BERT's submissions log the samples that were trained, the others those of the data.
        trained = line["samples"] if self._benchmark.unit == "samples" else self._phase.epoch
        yield seconds, _POINT, "train_samples", trained, {}
        yield seconds, _POINT, "eval_samples", line.get("examples"), {}

    def _reached(self, evaluations: list[Line]) -> bool:
        return any((line.get("accuracy") or 0.0) >= self._benchmark.target for line in evaluations)

    def _counts(self, samples: int) -> Metadata:
        epochs = samples if self._benchmark.unit == "samples" else round(samples / self._phase.epoch, 3)
        return {"epoch_num": epochs, "samples_count": samples}

    def _submission(self, start: Line) -> dict[str, Any]:
        said = self._phase.config.log.mlperf
        return {
            "submission_benchmark": self._benchmark.name, "submission_org": said.organization,
            "submission_division": said.division, "submission_status": said.status,
            "submission_platform": said.platform or f"{start.get('world_size')} x {start.get('device')}",
        }  # fmt: skip

    def _hyperparameters(self) -> dict[str, Any]:
        phase, batch = self._phase, self._phase.split.global_batch
        shared = {
            "seed": phase.config.seed, "global_batch_size": batch, "gradient_accumulation_steps": phase.split.accumulation,
            "opt_name": phase.config.optimizer.name, "opt_base_learning_rate": phase.lr,
        }  # fmt: skip
        return shared | (self._of_bert() if self._benchmark.name == "bert" else self._of_resnet())

    def _of_bert(self) -> dict[str, Any]:
        group, warmup = self._group(), self._phase.warmup // self._phase.split.global_batch
        named = {
            "opt_learning_rate_training_steps": self._phase.steps, "opt_learning_rate_warmup_steps": warmup,
            "num_warmup_steps": warmup, "start_warmup_step": 0, "opt_lamb_epsilon": group.get("eps"),
            "opt_lamb_weight_decay_rate": self._phase.config.optimizer.weight_decay,
        }  # fmt: skip
        betas = group.get("betas", (None, None))
        return {**named, "opt_lamb_beta_1": betas[0], "opt_lamb_beta_2": betas[1]}

    def _of_resnet(self) -> dict[str, Any]:
        schedule, group = self._phase.config.schedule, self._group()
        values = {
            "opt_end_learning_rate": schedule.final * self._phase.lr,
            "opt_learning_rate_decay_poly_power": schedule.power,
            "opt_learning_rate_decay_steps": self._phase.steps,
            "opt_learning_rate_warmup_epochs": self._phase.warmup / self._phase.epoch,
            "opt_momentum": group.get("momentum"), "opt_weight_decay": self._phase.config.optimizer.weight_decay,
        }  # fmt: skip
        if self._phase.config.optimizer.name != "lars":
            return values
        lars = {f"lars_{key}": value for key, value in values.items()}
        return {**lars, "lars_opt_base_learning_rate": self._phase.lr, "lars_epsilon": group.get("eps")}

    def _group(self) -> dict[str, Any]:
        """The options of the optimizer as it takes them, with its own defaults."""
        config = self._phase.config.optimizer
        entry = OPTIMIZERS[config.name]
        options = {**config.options(), "lr": self._phase.lr, "kernel": "reference"}
        made = entry.make([torch.nn.Parameter(torch.zeros(2, 2))], **options)
        return dict(made.param_groups[0])

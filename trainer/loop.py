"""The training loop of one phase: fetch the micro-batches, take a training step, log, save, evaluate."""

from __future__ import annotations

import gc
import logging
import math
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch

from bellwether.trainer import arrival, checkpoint, messages, models, param_groups, saving, scores, signals
from bellwether.trainer.checkpoint import Position
from bellwether.trainer.config import ConfigError
from bellwether.trainer.data import arranged
from bellwether.trainer.data.loader import train_batches
from bellwether.trainer.data.sampling import fold_in
from bellwether.trainer.distributed import raised_by_all_ranks, run_on_rank0
from bellwether.trainer.engine import Batch, build, partitioned
from bellwether.trainer.evaluate import evaluate_phase
from bellwether.trainer.metrics import HELD, KINDS
from bellwether.trainer.phases import Phase
from bellwether.trainer.replicas import ReplicaCheck
from bellwether.trainer.run_state import Run
from bellwether.trainer.step_metrics import StepMetrics
from bellwether.trainer.trajectory import TrajectoryProbe

log = logging.getLogger(__name__)

SLOW_DATA = 0.05  # share of the time of a step


def train_phase(run: Run, phase: Phase) -> None:
    """Train one phase to its end, or to where the run stops: updates the run's position and newest checkpoint. Collective."""
    loop = PhaseLoop(run, phase)
    loop.train()
    saving.finish(run)
    loop.engine.destroy()
    del loop
    gc.collect()


class PhaseLoop:
    """One phase in training. The model is built from the seed, and the newest checkpoint is loaded into it. Collective."""

    def __init__(self, run: Run, phase: Phase) -> None:
        self.run, self.phase, self.dataset = run, phase, run.datasets[phase.index]
        run.heartbeat.at(run.position.step, arrival.START_OF_PHASE)
        self.end = min(run.stop_step, phase.last_step)
        # The split of the last step: `enter` changes it where the batch grows, also at once after a resume there.
        self.split = phase.split_at(max(run.position.step, phase.first_step + 1))
        config = phase.config
        torch.manual_seed(run.config.seed)
        with partitioned(phase):
            task = models.build(
                config.model,
                self.dataset,
                activation_checkpointing=config.engine.activation_checkpointing,
                loss=config.loss,
            )
        task.prepare_evaluation(config.evaluate)
        self.engine = build(task, phase, run.world)
        self.engine.set_split(self.split)
        run.note(f"trains {param_groups.describe(self.engine.groups)}")
        run.metrics.write(
            "groups", step=run.position.step, samples=run.position.samples, phase=phase.index,
            groups=[asdict(count) for count in self.engine.groups],
        )  # fmt: skip
        self.probe = TrajectoryProbe(
            self.engine, phase, run.world
        )  # before other weights than the initial ones are loaded
        # Everything random is a function of (seed, phase, position): no random state is saved.
        self.seed = fold_in(run.config.seed, phase.index)
        self.samples = arranged(self.dataset.train, self.split.global_batch, self.seed)
        noise = self._load_checkpoint()
        self.engine.schedule.seek(run.position.samples - phase.first_sample)
        # Micro-batches of like length are no random samples.
        is_sorted = hasattr(self.dataset.train, "lengths")
        self.step_metrics = StepMetrics(self.engine, phase, run.world, self.split, None if is_sorted else noise)
        every = run.config.engine.replica_check
        self.replicas = ReplicaCheck(self.engine, phase, run.world, every, run.position.step)
        self.batches = self._open_batches()
        self.warned_of_data = False

    def _load_checkpoint(self) -> dict[str, float]:
        """Load the newest checkpoint into the engine; returns the gradient noise estimate to resume from."""
        run = self.run
        if run.newest_checkpoint is None:
            return {}
        self._place_carried()
        manifest = checkpoint.load(
            run.newest_checkpoint, self.engine, run.world, verified=run.newest_checkpoint == run.verified_checkpoint,
            new_phase=run.position.step == self.phase.first_step and self.phase.index > 0,
            data=self.dataset.fingerprint,
        )  # fmt: skip
        # Other batches, or other data, have other noise.
        return manifest.noise if run.position.phase == self.phase.index else {}

    def _place_carried(self) -> None:
        """Name the place in the streams to which the state that the model carries belongs."""
        if self.engine.carried is not None and hasattr(self.samples, "first_token"):
            self.engine.carried.first_token = self.samples.first_token(self.run.position.step - self.phase.first_step)

    def _open_batches(self) -> Iterator[Batch]:
        """This rank's micro-batches from the run's position to the end, segment by segment of the batch's growth."""
        run, phase = self.run, self.phase
        for step, steps, split in phase.segments(run.position.step, self.end):
            yield from train_batches(
                self.samples, seed=self.seed, start=phase.samples_at(step) - phase.first_sample, steps=steps,
                global_batch=split.global_batch, micro=split.micro, accumulation=split.accumulation, rank=run.world.rank,
                world_size=run.world.size, workers=phase.config.data.workers, device=run.world.device,
            )  # fmt: skip

    def enter(self, step: int) -> None:
        """Change the batch before a step if it grows there."""
        split = self.phase.split_at(step)
        if split != self.split:
            self.split = split
            self.engine.set_split(split)
            self.step_metrics.set_split(split)
            self.run.note(f"step {step}: the global batch is {split.global_batch:,}")

    def train(self) -> None:
        """Train to the end of the phase, or until a signal, the target or divergence stops the run."""
        run, phase = self.run, self.phase
        if run.progress is not None:
            run.progress.start(run.position.step, run.phases[-1].last_step, run.samples_at)
        if run.pending_eval:
            run.pending_eval = False
            self.evaluate()
        stop_requested = False
        while run.position.step < self.end and not (stop_requested or run.has_ended):
            step = run.position.step + 1
            self.enter(step)
            step_seed = self.seed_torch(step)
            micro_batches = self.probe.before(step, self.fetch(step))
            batch = self.split.global_batch
            if hasattr(self.samples, "lr_factor"):
                self.engine.scale_lr(self.samples.lr_factor(step - 1 - phase.first_step))
            self.step_metrics.add(self.engine.train_step(micro_batches), batch)
            signals.stepped()
            run.position = Position(step, run.position.samples + batch, phase.index)
            agreed = run.stop_consensus.answer()
            stop_requested = agreed.signal != 0
            if not agreed.is_saving:
                saving.finish(run)  # does not wait: all ranks have published it, or failed
            save_due = stop_requested or step == self.end or phase.due(step, phase.config.checkpoint.every)
            self.log(save_due)
            if run.diverged:
                return  # diverged weights must not replace a good checkpoint, and are not evaluated
            evaluating = step == self.end or (phase.due(step, phase.config.evaluate.every) and not stop_requested)
            if not (save_due or evaluating or self.probe.reads(step)):
                self.write_trajectory(step_seed)  # writes nothing, and keeps weights where the next step needs them
                continue  # a pause waits for the device
            with self.step_metrics.paused():
                self.write_trajectory(step_seed)
                # The checkpoint first: after a signal there may be only minutes left.
                if save_due:
                    self.save()
                if evaluating:
                    is_best = self.evaluate()
                    if (is_best or run.has_ended) and not save_due:
                        self.save()

    def seed_torch(self, step: int) -> int:
        """Seed torch's generator for this rank and step; returns the seed."""
        world = self.run.world
        step_seed = fold_in(self.seed, step * world.size + world.rank)
        torch.manual_seed(step_seed)
        return step_seed

    def fetch(self, step: int) -> Iterator[Batch]:
        """This rank's micro-batches of one step, on its device. Before the last one it asks all ranks whether to stop."""
        run, accumulation = self.run, self.split.accumulation
        for index in range(accumulation):
            run.heartbeat.at(step - 1, arrival.DATA)
            began = time.monotonic()
            batch = next(self.batches)
            self.step_metrics.waited_for_data(time.monotonic() - began)
            is_last = index == accumulation - 1
            run.heartbeat.at(step - 1, arrival.UPDATE if is_last else arrival.BACKWARD)
            if is_last:
                run.stop_consensus.ask(run.saver.is_saving)
            yield batch

    def watched(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches of an evaluation, with a beat's activity for each."""
        heartbeat, step = self.run.heartbeat, self.run.position.step
        heartbeat.at(step, arrival.EVALUATION_DATA)
        for batch in batches:
            heartbeat.at(step, arrival.EVALUATION)
            yield batch
            heartbeat.at(step, arrival.EVALUATION_DATA)
        heartbeat.at(step, arrival.EVALUATION)

    def log(self, save_due: bool) -> None:
        """Write the train event where it is due, and check the loss."""
        run, phase, step = self.run, self.phase, self.run.position.step
        values: dict[str, Any] | None = None
        # Also at a phase's first step, where its loss starts; and no checkpoint is saved whose loss was not checked.
        if save_due or phase.due(step, phase.config.log.every) or step == phase.first_step + 1:
            run.heartbeat.at(step, arrival.METRICS)
            values, layers = self.step_metrics.read(run.position)
            self.write("train", **values)
            self.warn_of_slow_data(values["data_wait"])
            run.heartbeat.at(step, arrival.REPLICAS)
            if math.isfinite(values["loss"]):
                self.replicas.check_if_due(step)
            else:
                self.replicas.check(step)
            self.check_loss(values["loss"])
            if run.diverged:
                return
            if layers:
                self.write("layers", step=step, samples=run.position.samples, trust_ratio=layers)
        if run.progress is not None:
            run.progress.update(step, values)

    def warn_of_slow_data(self, share: float) -> None:
        """Say once in a phase which key to change if training waits for data. The first step starts the workers."""
        step, data = self.run.position.step, self.phase.config.data
        if share > SLOW_DATA and not self.warned_of_data and step > self.phase.first_step + 1:
            self.warned_of_data = True
            log.warning(
                "step %s: %.0f %% of the time was spent waiting for data: raise data.workers, which is %d for each rank; "
                "`bellwether bench data` shows what a batch takes", f"{step:,}", 100 * share, data.workers,
            )  # fmt: skip

    def write(self, event: str, **values: Any) -> None:
        """Write an event of the metrics. A file system that hangs for minutes is waited for."""
        self.run.heartbeat.at(self.run.position.step, arrival.WRITING)
        self.run.metrics.write(event, **values)

    def check_loss(self, loss: float) -> None:
        """Stop the run where ``divergence`` says that it has diverged. All ranks have the same mean loss, so all stop together.

        Raises:
            ConfigError: if the loss is not a number, and the config does not say what counts as divergence.
        """
        run = self.run
        if run.config.divergence is not None:
            if run.divergence.diverged(loss):
                run.diverged, run.stop_step = True, run.position.step
                run.note(f"step {run.position.step}: the loss has diverged, to {loss:.4g}")
        elif math.isnan(loss):
            saving.finish(run)
            self.check_one_rank()
            newest = run_on_rank0(run.world, lambda: checkpoint.newest(run.checkpoints))
            advice = "lower it, lengthen schedule.warmup, or clip"
            advice += f"; the newest checkpoint is {newest}" if newest else ""
            problem = f"the loss is not a number at step {run.position.step:,}"
            raise raised_by_all_ranks(ConfigError("optimizer.lr", self.phase.config.optimizer.lr, problem, advice))

    def check_measured(self, evaluation: dict[str, float]) -> None:
        """Refuse a target, or a score of the best checkpoint, that depends on the classes of the data and was not measured.

        Raises:
            ConfigError: naming what was measured.
        """
        evaluate = self.run.config.evaluate
        for key, name in (("target", evaluate.target and evaluate.target.metric), ("best", evaluate.best)):
            if name is not None and name not in evaluation:
                measured = ", ".join(each for each in self.phase.config.data.results if each in evaluation)
                problem = f"{name} was not measured on these data"
                raise raised_by_all_ranks(ConfigError(f"evaluate.{key}", name, problem, f"name one of {measured}"))

    def check_one_rank(self) -> None:
        """Blame a rank whose loss was not a number before that of the others. A restart fails again where its data is the cause.

        Raises:
            RuntimeError: naming the ranks.
        """
        run = self.run
        first = self.step_metrics.ranks_first_not_finite()
        if first:
            hosts = messages.all_gather_values(socket.gethostname(), run.world.device)
            named = ", ".join(f"rank {rank} on {hosts[rank]}" for rank in first[:4])
            raise raised_by_all_ranks(
                RuntimeError(
                    f"the loss is not a number at step {run.position.step:,}, and was not on {named} before it was on the others: "
                    "suspect that rank's data, memory or GPU; a learning rate that is too high is also possible"
                )
            )

    def write_trajectory(self, step_seed: int) -> None:
        """Write the events of the trajectory that are due."""
        position = self.run.position
        if self.probe.trajectory is not None:
            self.run.heartbeat.at(position.step, arrival.TRAJECTORY)
        for event, values in self.probe.after(position.step, step_seed):
            self.write(event, step=position.step, samples=position.samples, **values)

    def save(self) -> None:
        """Begin a checkpoint; an earlier one is recorded before."""
        self._place_carried()
        saving.start(self.run, self.engine, self.replicas, self.step_metrics.noise_state())

    def evaluate(self) -> bool:
        """Evaluate on the held-out samples, which may end the run; returns whether it is the best evaluation so far."""
        run, position = self.run, self.run.position
        run.heartbeat.at(position.step, arrival.EVALUATION)
        began = time.monotonic()
        evaluation = evaluate_phase(self.engine, self.phase, self.dataset, run.world, self.watched)
        self.write(
            "eval", time=time.time(), step=position.step, samples=position.samples, phase=self.phase.index, **evaluation,
            seconds=time.monotonic() - began,
        )  # fmt: skip
        run.note(f"step {position.step}: {results_text(evaluation)}")
        self.check_measured(evaluation)
        is_best = run.best is not None and run.best.update(position.step, evaluation)
        target = run.config.evaluate.target
        if target is not None and target.holds(evaluation):  # the same on all ranks
            run.target_reached = True
            run.note(f"step {position.step}: {target} is reached")
        if run.best is not None and run.out_of_patience:
            run.note(
                f"step {position.step}: {run.best.since} evaluations were no better than that of step {run.best.step}: the run ends"
            )
        return is_best


def results_text(evaluation: dict[str, float]) -> str:
    """The results of an evaluation in one line.

    >>> results_text({"loss": 0.5, "accuracy": 0.75, "examples": 1000, "f1": 0.7, "loss_averaged": 0.4, "accuracy_averaged": 0.8})
    'held-out loss 0.5000, accuracy 75.00%, averaged 80.00%, f1 0.7000 (1,000 samples)'
    """
    parts = [f"held-out loss {evaluation['loss']:.4f}"]
    if "accuracy" in evaluation:
        parts.append(f"accuracy {evaluation['accuracy']:.2%}")
    parts += [f"{kind} {evaluation[f'accuracy_{kind}']:.2%}" for kind in KINDS if f"accuracy_{kind}" in evaluation]
    sets = [key.removeprefix("loss_") for key in evaluation if key.startswith("loss_") and key not in HELD]
    parts += [
        f"{name} {evaluation[f'loss_{name}']:.4f}"
        + (f" ({evaluation[f'accuracy_{name}']:.2%})" if f"accuracy_{name}" in evaluation else "")
        for name in sets
    ]
    parts += [f"{name.replace('_', ' ')} {evaluation[name]:.4f}" for name in scores.NAMES if name in evaluation]
    return f"{', '.join(parts)} ({evaluation['examples']:,} samples)"

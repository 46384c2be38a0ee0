"""Trainers of others: transformers' Trainer, timm's train step, Composer."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, IterableDataset

from scripts.bench_train.gate import Gate
from scripts.bench_train.shared import CLIP, LR, Loss, Setup

# Without it, transformers 5.23 multiplies the loss by the number of processes where a model takes keywords and has a loss of its own.
HF_DEFAULTS = {"average_tokens_across_devices": False}
HF_BEST = {**HF_DEFAULTS, "ddp_find_unused_parameters": False, "ddp_broadcast_buffers": False}


class _Batches(IterableDataset):
    def __init__(self, make: Callable[[], Iterator[Any]]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[Any]:
        return self._make()


def hf_trainer(setup: Setup, gate: Gate) -> None:
    """transformers' Trainer; in the first table with the model's own loss, which computes the logits of all positions."""
    from transformers import Trainer, TrainerCallback, TrainingArguments
    from transformers.trainer_utils import set_seed

    task = setup.task()
    model = Loss(task) if setup.best else task.model
    batches = setup.batches if setup.best else setup.as_transformers
    arguments = TrainingArguments(
        output_dir=str(setup.folder / "trainer"), max_steps=1_000_000, per_device_train_batch_size=setup.config.batch.micro,
        learning_rate=LR, lr_scheduler_type="constant", weight_decay=0.0, max_grad_norm=CLIP, use_cpu=True, ddp_backend="gloo",
        report_to=[], save_strategy="no", disable_tqdm=True, **(HF_BEST if setup.best else HF_DEFAULTS),
    )  # fmt: skip
    if arguments.world_size != setup.world_size:
        raise RuntimeError(f"transformers has started {arguments.world_size} processes, not {setup.world_size}")
    losses: list[Any] = []

    class Gated(Trainer):
        def get_train_dataloader(self) -> Any:
            return DataLoader(_Batches(batches), batch_size=None)

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            losses[:] = [super().training_step(*args, **kwargs)]
            return losses[0]

    class Callback(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            gate.open()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            gate.after_step(losses[0])

    gate.parameters = model.parameters
    set_seed(setup.config.seed)
    Gated(model=model, args=arguments, train_dataset=_Batches(batches), callbacks=[Callback()]).train()


def timm_step(setup: Setup, gate: Gate) -> None:
    """The step of timm's train.py with timm's optimizer and clipping. The script is in its repository, not in its package."""
    factory = importlib.import_module("timm.optim").create_optimizer_v2
    clip = importlib.import_module("timm.utils").dispatch_clip_grad
    dist.init_process_group("gloo")
    model = torch.nn.parallel.DistributedDataParallel(setup.task())
    optimizer = factory(model, opt="adamw", lr=LR, weight_decay=0.0, **({"fused": True} if setup.best else {}))
    batches = setup.batches()
    gate.parameters = model.parameters
    gate.open()
    while True:
        loss = model(**next(batches))[0].mean()
        loss.backward()
        clip(model.parameters(), value=CLIP, mode="norm")
        optimizer.step()
        optimizer.zero_grad()
        gate.after_step(loss.detach())


def composer(setup: Setup, gate: Gate) -> None:
    """Composer's Trainer around the same model and loss."""
    package: Any = importlib.import_module("composer")
    clipping = importlib.import_module("composer.algorithms").GradientClipping

    class Model(package.ComposerModel):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Loss(setup.task())

        def forward(self, batch: Any) -> Any:
            return self.inner(**batch)

        def loss(self, outputs: Any, batch: Any) -> Any:
            return outputs["loss"]

    class Callback(package.Callback):
        def fit_start(self, state: Any, logger: Any) -> None:
            gate.open()

        def batch_end(self, state: Any, logger: Any) -> None:
            gate.after_step(state.loss)

    model = Model()
    gate.parameters = model.parameters
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0, fused=setup.best or None)
    package.Trainer(
        model=model, optimizers=optimizer, train_dataloader=DataLoader(_Batches(setup.batches), batch_size=None),
        max_duration="1000000ba", device="cpu", precision="fp32", progress_bar=False, callbacks=[Callback()],
        algorithms=[clipping(clipping_type="norm", clipping_threshold=CLIP)],
    ).fit()  # fmt: skip

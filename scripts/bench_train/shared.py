"""Model, weights and batches of a workload, the same for each contestant."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bellwether.trainer import models
from bellwether.trainer.config import Config, validate
from bellwether.trainer.data import Dataset, load
from bellwether.trainer.data.loader import train_batches
from bellwether.trainer.data.sampling import fold_in
from scripts.bench_train.gate import uncounted

LR, CLIP = 1e-3, 1.0
STEPS = 20  # updates whose losses are compared
PERTURBATIONS = 2  # runs of as many updates from weights that are 1 ulp larger


@dataclass(frozen=True)
class Setup:
    """What a contestant is given.

    Attributes:
        folder: scratch of this contestant.
        best: with the flags of the second table.
    """

    raw: dict[str, Any]
    folder: Path
    best: bool

    @property
    def rank(self) -> int:
        return int(os.environ["RANK"])

    @property
    def world_size(self) -> int:
        return int(os.environ["WORLD_SIZE"])

    @cached_property
    def config(self) -> Config:
        return validate({"name": "bench", "runs": str(self.folder / "runs"), **self.raw})

    @cached_property
    def dataset(self) -> Dataset:
        return load(self.config.data)

    def task(self) -> Any:
        """The model with its loss and the weights of the config's seed, as a run of Bellwether has them."""
        torch.manual_seed(self.config.seed)
        return models.build(self.config.model, self.dataset)

    def batches(self) -> Iterator[dict[str, Tensor]]:
        """The micro-batches of a run of Bellwether, from its loader: the same work for each contestant."""
        micro = self.config.batch.micro
        return uncounted(train_batches(
            self.dataset.train, seed=fold_in(self.config.seed, 0), start=0, steps=1_000_000, global_batch=max(self.config.batch.all_sizes),
            micro=micro, accumulation=max(self.config.batch.all_sizes) // (micro * self.world_size), rank=self.rank,
            world_size=self.world_size, workers=0,
        ))  # fmt: skip

    def as_transformers(self) -> Iterator[dict[str, Tensor]]:
        """The same batches as transformers' collators make them: a label at each position, -100 where nothing is masked."""
        for batch in self.batches():
            if "masked_positions" not in batch:
                yield {name: batch[name] for name in ("pixel_values", "labels")}
                continue
            labels = torch.full_like(batch["input_ids"], -100)
            labels.scatter_(1, batch["masked_positions"], batch["labels"])
            yield {"input_ids": batch["input_ids"], "labels": labels}

    def real_tokens(self, count: int = 20) -> float | None:
        """Mean tokens of a sample that are no padding; None for images."""
        pad: Any = getattr(self.dataset.tokenizer, "pad_token_id", None)
        if self.config.data.kind != "text":
            return None
        batches = self.batches()
        found = [next(batches)["input_ids"].ne(pad).sum(1).double().mean().item() for _ in range(count)]
        return sum(found) / count


class Loss(torch.nn.Module):
    """A task as transformers' Trainer and others want a model: batches to ``{"loss": mean}``."""

    def __init__(self, task: Any) -> None:
        super().__init__()
        self.task = task

    def forward(self, **batch: Tensor) -> dict[str, Tensor]:
        batch.pop("num_items_in_batch", None)  # which transformers' Trainer passes to whatever takes keywords
        return {"loss": self.task(**batch)[0].mean()}

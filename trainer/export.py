"""Export of a checkpoint to the format that ``AutoModel...from_pretrained`` reads. One process, no engine."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
import transformers

from bellwether.trainer import checkpoint, image_processor, run_paths
from bellwether.trainer.config import Config
from bellwether.trainer.data import Dataset
from bellwether.trainer.data.image_samples import ImageSamples
from bellwether.trainer.data.loader import train_batches
from bellwether.trainer.data.sampling import fold_in
from bellwether.trainer.export_in_parts import export_in_parts
from bellwether.trainer.models import build
from bellwether.trainer.models.architecture import for_checkpoint
from bellwether.trainer.models.norm import norms


def export(source: Path, run: Path, config: Config, data: Dataset) -> Path:
    """Write ``run/export`` from a checkpoint's fp32 weights, with BatchNorm statistics averaged over the ranks. At stage 3 in parts.

    Where the run averages weights, the average is exported, with statistics from ``averaging.batch_norm`` training samples. An
    earlier export is replaced once the new one is complete.
    """
    torch.manual_seed(config.seed)
    partial, final = run / "export.partial", run / "export"
    shutil.rmtree(partial, ignore_errors=True)
    transformers.utils.logging.disable_progress_bar()

    def task() -> Any:
        with for_checkpoint():
            return build(config.model, data)

    # At stage 3 the whole model may fit on no rank.
    if config.engine.stage < 3 or not export_in_parts(source, task, partial):
        _export_whole(source, task(), config, data, partial)
    if data.tokenizer is not None:
        data.tokenizer.save_pretrained(partial)
    if isinstance(data.validation, ImageSamples):
        image_processor.write(partial, data.validation.config)
    for file in partial.rglob("*.safetensors"):
        run_paths.apply_umask(file)
    old = run / "export.old"
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    partial.rename(final)
    shutil.rmtree(old, ignore_errors=True)
    return final


def _export_whole(source: Path, task: Any, config: Config, data: Dataset, folder: Path) -> None:
    if checkpoint.load_into_model(source, task) and any(norms(task)):
        _recompute_batch_norm(task, config, data)
    task.model.save_pretrained(folder)


def _recompute_batch_norm(task: torch.nn.Module, config: Config, data: Dataset) -> None:
    """Recompute BatchNorm's running statistics from training samples."""
    model: Any = task.model
    unit = config.data.unit
    micro = max(min(config.batch.most, *config.batch.all_sizes) // unit, 1) * unit
    batches = train_batches(
        data.train, seed=fold_in(config.seed, 0), start=0, steps=max(1, min(config.averaging.batch_norm, len(data.train)) // micro),
        global_batch=micro, micro=micro, accumulation=1, rank=0, world_size=1, workers=0,
    )  # fmt: skip
    # Not optimizers.recompute_batch_norm, which is collective.
    torch.optim.swa_utils.update_bn((batch["pixel_values"] for batch in batches), model)

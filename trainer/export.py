"""From a checkpoint to the format that ``AutoModel...from_pretrained`` reads. One process, no engine."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
import transformers

from trainer import checkpoint
from trainer.config import Config
from trainer.data import Data
from trainer.models import build


def export(source: Path, run: Path, config: Config, data: Data) -> Path:
    """Write ``run/export`` from a checkpoint's fp32 weights, with BatchNorm statistics as the ranks agree on them.

    An earlier export of the same run is moved aside, and deleted once the new one is in its place.
    """
    torch.manual_seed(config.seed)
    task = build(config.model, data)
    checkpoint.load_into_model(source, task)
    partial, final = run / "export.partial", run / "export"
    shutil.rmtree(partial, ignore_errors=True)
    transformers.utils.logging.disable_progress_bar()
    task.model.save_pretrained(partial)
    if data.tokenizer is not None:
        data.tokenizer.save_pretrained(partial)
    old = run / "export.old"
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    partial.rename(final)
    shutil.rmtree(old, ignore_errors=True)
    return final

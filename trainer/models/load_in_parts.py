"""Pretrained weights into a model that is split over the ranks: tensor by tensor, so that no rank holds the whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor, nn

from bellwether.trainer.models.partitioned import gathered, initialize

# Names in checkpoints of BERT's first years.
_OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


def load_in_parts(model: Any, folder: Path) -> dict[str, Any]:
    """Loads the safetensors of a folder, which rank 0 reads, into a model without values, and draws what they lack. Collective.

    Returns:
        what `from_pretrained` returns with ``output_loading_info``: missing, unexpected and mismatched names. transformers renames
        the tensors of some architectures, which this does not: all of these are then missing.
    """
    # Tied weights under each of their names.
    targets: dict[str, Any] = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    prefix = model.base_model_prefix
    loaded: set[Tensor] = set()
    unexpected: list[str] = []
    mismatched: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = []
    with torch.no_grad():
        for key, tensor in _tensors(folder):
            name = _name(key, prefix, targets)
            if name is None:
                unexpected.append(key)
                continue
            target = targets[name]
            here, there = tuple(getattr(target, "ds_shape", target.shape)), tuple(tensor.get_shape())
            if here != there:
                mismatched.append((name, there, here))
                continue
            loaded.add(target)
            if isinstance(target, nn.Parameter):
                with gathered([target]):
                    if dist.get_rank() == 0:
                        target.copy_(tensor[:] if there else tensor[...])
            else:
                target.copy_(tensor[:] if there else tensor[...])
    there_at_all = loaded | {targets[name] for name, _, _ in mismatched}
    missing = [name for name, parameter in model.named_parameters() if parameter not in there_at_all]
    initialize(model, loaded)
    return {"missing_keys": missing, "unexpected_keys": unexpected, "mismatched_keys": mismatched}


def _name(key: str, prefix: str, names: dict[str, Any]) -> str | None:
    """The name in the model of a tensor of a file, which may be of the body alone, or of the body with another head."""
    for old, new in _OLD_NAMES.items():
        key = key.replace(old, new)
    return next((name for name in (key, f"{prefix}.{key}", key.removeprefix(f"{prefix}.")) if name in names), None)


def _tensors(folder: Path) -> Iterator[tuple[str, Any]]:
    """Each tensor of the files by name, as a slice that is read when it is indexed; in the same order on every rank."""
    index = folder / "model.safetensors.index.json"
    files = ["model.safetensors"]
    if index.is_file():
        files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    for file in files:
        # One mapped file at a time counts as memory of the process.
        with safe_open(folder / file, framework="pt") as opened:
            for key in sorted(opened.keys()):
                yield key, opened.get_slice(key)

"""Writes a checkpoint's weights as safetensors shards with an index, one shard in memory at a time: for models that fit on no single rank."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from bellwether.trainer import checkpoint
from bellwether.trainer.models.norm import norms

log = logging.getLogger(__name__)

SHARD_BYTES = 2 * 2**30


def export_in_parts(source: Path, build: Callable[[], Any], folder: Path, shard_bytes: int = SHARD_BYTES) -> bool:
    """Write what ``save_pretrained`` writes of a model with a checkpoint's weights, in fp32.

    Args:
        source: the checkpoint.
        build: makes the task, whose model is built without memory.
        shard_bytes: largest size of a file, unless a single tensor is larger.

    Returns:
        False, with nothing written, where the whole model is needed: for statistics of BatchNorm that belong to averaged weights, and
        for an architecture whose tensors transformers stores in another form than it computes with (other names are no other form).
    """
    with torch.device("meta"):
        task = build()
    model = task.model
    tensors = model.state_dict(keep_vars=True)
    for name in model._keys_to_ignore_on_save or ():
        tensors.pop(name, None)
    tensors = revert_weight_conversion(model, remove_tied_weights_from_state_dict(tensors, model))
    # Of tied weights a checkpoint has the first name, and an export may have another.
    of_task = {id(tensor): name for name, tensor in (*task.named_buffers(), *task.named_parameters())}
    if any(id(tensor) not in of_task for tensor in tensors.values()):
        return False
    names = {name: of_task[id(tensor)] for name, tensor in tensors.items()}
    split = split_torch_state_dict_into_shards(
        {name: tensor.detach() for name, tensor in tensors.items()},
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=shard_bytes,
    )
    with checkpoint.exported_weights(source) as weights:
        if (weights.is_average and any(norms(task))) or any(
            not isinstance(tensor, nn.Parameter) and names[name] not in weights.buffers
            for name, tensor in tensors.items()
        ):
            return False
        model.save_pretrained(folder, state_dict={})  # the config, and the code of own architectures
        (folder / "model.safetensors").unlink(missing_ok=True)  # of nothing
        for file, of_file in split.filename_to_tensors.items():
            shard = {}
            for name in of_file:
                shard[name] = torch.empty(tensors[name].shape, dtype=_type_of(tensors[name]))
                weights.read(names[name], shard[name])
            save_file(shard, folder / file, metadata={"format": "pt"})
            del shard
    if split.is_sharded:
        elements = sum(parameter.numel() for parameter in model.parameters())
        index = {
            "metadata": {"total_parameters": elements, **split.metadata},
            "weight_map": split.tensor_to_filename,
        }
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
        log.info("exported in %d files, each of which fits into memory alone", len(split.filename_to_tensors))
    return True


def _type_of(tensor: Tensor) -> torch.dtype:
    return torch.float32 if isinstance(tensor, nn.Parameter) else tensor.dtype

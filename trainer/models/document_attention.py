"""Attention inside a document only, for sequences that hold several: ``data.packing: documents``.

Through torch's `flex_attention`, which computes the blocks of the attention matrix that documents fill, where it can train: on a GPU,
without dropout of attention. Else through a dense mask for scaled_dot_product_attention.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface

from bellwether.trainer.models.architecture import POSITIONS_AFTER_PADDING
from bellwether.trainer.models.block_mask import document_mask
from bellwether.trainer.models.model_config import has_storage, say

FLEX = "bellwether-flex"  # transformers' own has code for all shapes: see `compile_layers`
_SHAPES = 16  # of training, evaluation and its last batch, of each kind of mask
_DROPOUT = ("attention_probs_dropout_prob", "attention_dropout")
_TOLERANCE = {
    torch.float32: 1e-2,
    torch.bfloat16: 5e-2,
    torch.float16: 2e-2,
}  # of results of about 1; TF32 rounds as fp16 does


class DocumentAttention:
    """The inputs by which a model treats each document of a sequence as if it stood alone.

    All ranks take the same one: under ZeRO-3 they gather weights layer by layer in step, and gradients of one global batch are of one
    kernel.

    Args:
        model: its attention becomes `flex_attention` with the first batch, where that can train on the batch's device.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._has_chosen = False

    def inputs(self, documents: Tensor, position_ids: Tensor) -> dict[str, Any]:
        """The inputs for a batch; one mask for all layers of a kind.

        Args:
            documents: the number of each token's document, [B, L].
            position_ids: of each token in its document, [B, L].
        """
        config = self._model.config
        if not self._has_chosen:
            self._choose(documents)
        is_flex = config._attn_implementation == FLEX
        mask: Any = document_mask(documents) if is_flex else (documents[:, :, None] == documents[:, None, :])[:, None]
        if config.model_type == "modernbert":
            if is_flex:
                near: Any = document_mask(documents, config.sliding_window)
            else:
                apart = (position_ids[:, :, None] - position_ids[:, None, :]).abs()[:, None]
                near = mask & (apart <= config.sliding_window)
            mask = {"full_attention": mask, "sliding_attention": near}
        if config.model_type in POSITIONS_AFTER_PADDING:
            position_ids = position_ids + config.pad_token_id + 1
        return {"attention_mask": mask, "position_ids": position_ids}

    def _choose(self, documents: Tensor) -> None:
        self._has_chosen = True
        parameter = next(self._model.parameters())
        problem = of_all_ranks(obstacle(self._model, parameter.dtype, documents), documents.device)
        if problem is None:
            self._model.set_attn_implementation(FLEX)
            say("attention inside documents is flex_attention, over the blocks that documents fill")
        else:
            say(f"attention inside documents has a dense mask: {problem}")


def of_all_ranks(problem: str | None, device: torch.device) -> str | None:
    """A rank's own problem, or else that of another; None if no rank has one. Collective where there is a process group.

    Every rank's first batch comes in the same step, in which no other collective is under way. On a machine of its own kind, or where
    compiling fails, a rank may have a problem that the others do not have.
    """
    if not (has_storage() and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return problem
    none = dist.get_world_size()
    first = torch.tensor(none if problem is None else dist.get_rank(), device=device)
    dist.all_reduce(first, op=dist.ReduceOp.MIN)
    rank = int(first)
    if rank == none:
        return None
    return problem if problem is not None else f"rank {rank} cannot run flex_attention"


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """torch's `flex_attention` as a function of transformers' `AttentionInterface`: [B, heads, L, D] to [B, L, heads, D]."""
    found = _compiled()(query, key, value, block_mask=attention_mask, scale=scaling)
    return found.transpose(1, 2).contiguous(), None


AttentionInterface.register(FLEX, attend)


@functools.cache
def _compiled() -> Any:
    import torch._dynamo
    from torch.nn.attention.flex_attention import flex_attention

    settings: Any = torch._dynamo.config
    settings.recompile_limit = max(settings.recompile_limit, _SHAPES)
    return torch.compile(flex_attention, dynamic=False)


def obstacle(model: Any, dtype: torch.dtype, documents: Tensor) -> str | None:
    """Why `flex_attention` cannot train a model on batches like this one, or None."""
    if documents.device.type != "cuda":
        return f"torch's flex_attention has no backward pass on {documents.device.type}"
    if not getattr(model, "_supports_flex_attn", False):
        return f"transformers' {model.config.model_type} does not support flex_attention"
    if getattr(model, "has_compiled_layers", False):
        return "engine.compile: layers has not been tried with flex_attention on a GPU"
    for key in _DROPOUT:
        if getattr(model.config, key, 0.0):
            return f"flex_attention has no dropout; it takes over where model.config has {key}: 0"
    try:
        with torch.enable_grad():
            return difference(model.config, dtype, documents)
    except Exception as error:  # of a compiler: any
        return f"flex_attention does not run here: {type(error).__name__}: {' '.join(str(error).split())[:200]}"


def difference(config: Any, dtype: torch.dtype, documents: Tensor) -> str | None:
    """Compares results and gradients of `flex_attention` on random numbers in the shape of a batch with those of a dense mask."""
    (count, length), heads = documents.shape, config.num_attention_heads
    generator = torch.Generator(documents.device).manual_seed(0)
    shape = (4, count, heads, length, config.hidden_size // heads)
    *given, grad = torch.randn(shape, dtype=torch.float32, device=documents.device, generator=generator).to(dtype)
    results = []
    for is_flex in (True, False):
        # All of the batch, because another shape would be compiled again; compared is its first sequence.
        query, key, value = (t.clone().requires_grad_() for t in (given if is_flex else [t[:1] for t in given]))
        if is_flex:
            found = attend(None, query, key, value, document_mask(documents))[0].transpose(1, 2)
        else:
            same = (documents[:1, :, None] == documents[:1, None, :])[:, None]
            found = functional.scaled_dot_product_attention(query, key, value, attn_mask=same)
        found.backward(grad[: len(found)])
        results.append([found.detach(), *(t.grad for t in (query, key, value))])
    for flex, dense in zip(*results, strict=True):
        most = float((flex[:1] - dense).abs().max())
        if not most < _TOLERANCE.get(dtype, 0.0):
            return f"flex_attention differs from it by {most:.2g} here"
    return None

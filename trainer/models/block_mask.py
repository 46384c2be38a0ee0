"""The blocks of the attention matrix that documents of a packed sequence fill: masks for torch's `flex_attention`.

`torch.nn.attention.flex_attention.create_block_mask` evaluates all L x L pairs of positions. Here the blocks follow from the first and
the last document of each run of `BLOCK` positions, without a wait for the device.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

BLOCK = 128  # positions of a side of a block: flex_attention's own


def document_mask(documents: Tensor, window: int | None = None) -> Any:
    """A `BlockMask` of attention inside each document.

    Args:
        documents: the number of each token's document, [B, L], in any order; fewest blocks are computed where it does not decrease.
        window: attention reaches as many positions to each side; None: the whole document.
    """
    from torch.nn.attention.flex_attention import BlockMask

    documents = documents.to(torch.int32).contiguous()
    length = documents.shape[1]

    def mask_mod(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        same = documents[batch, query] == documents[batch, key]
        return same if window is None else same & ((query - key).abs() <= window)

    partial, full = _blocks(documents, window)
    return BlockMask.from_kv_blocks(
        *_listed(partial), *_listed(full), BLOCK_SIZE=BLOCK, mask_mod=mask_mod, seq_lengths=(length, length)
    )


def _blocks(documents: Tensor, window: int | None) -> tuple[Tensor, Tensor]:
    """The blocks that may have some pairs to attend to, and those of which every pair is one, bool [B, 1, blocks, blocks] each."""
    length, count = documents.shape[1], math.ceil(documents.shape[1] / BLOCK)
    number = torch.arange(count, device=documents.device)
    places = torch.arange(count * BLOCK, device=documents.device).clamp(max=length - 1)
    first, last = documents[:, places].unflatten(1, (count, BLOCK)).aminmax(dim=2)
    meets = (first[:, :, None] <= last[:, None, :]) & (first[:, None, :] <= last[:, :, None])
    alone = (first == last) & ((number + 1) * BLOCK <= length)
    full = meets & alone[:, :, None] & alone[:, None, :]
    if window is not None:
        apart = (number[:, None] - number[None, :]).abs()
        # The nearest pair of two blocks is one position closer than their distance and a block, the farthest as much farther.
        meets = meets & ((apart - 1) * BLOCK + 1 <= window)
        full = full & ((apart + 1) * BLOCK - 1 <= window)
    return (meets & ~full)[:, None], full[:, None]


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks of each row are set, and the numbers of these before those of the others, as `BlockMask` has them."""
    numbers = torch.argsort(blocks.to(torch.int32), dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32), numbers.to(torch.int32)

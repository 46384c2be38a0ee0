"""Brings batches to the device: on a GPU by a stream of its own, one batch ahead of the one that is trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

Batch = dict[str, Tensor]


def to_device(batches: Iterator[Batch], device: torch.device, finish: Callable[[Batch], Batch]) -> Iterator[Batch]:
    """Yields finished batches on a device.

    On a GPU, the copy and `finish` of the next batch are queued on a stream of their own before a batch is yielded, so that
    they overlap with the work on it. The host does not wait. On a CPU, batches are finished one by one.

    Args:
        batches: in pinned memory, for a GPU.
        finish: is given a batch on the device.
    """
    if device.type != "cuda":
        for batch in batches:
            yield finish({name: tensor.to(device) for name, tensor in batch.items()})
        return
    stream = torch.cuda.Stream(device)
    ready: tuple[Batch, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(stream):
            moved = finish({name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()})
            event = stream.record_event()
        if ready is not None:
            yield _received(*ready)
        ready = moved, event
    if ready is not None:
        yield _received(*ready)


def _received(batch: Batch, event: torch.cuda.Event) -> Batch:
    current = torch.cuda.current_stream()
    current.wait_event(event)
    for tensor in batch.values():
        tensor.record_stream(current)  # its memory was allocated on the other stream
    return batch

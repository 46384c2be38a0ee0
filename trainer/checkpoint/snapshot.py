"""A rank's part of a checkpoint in host memory: copied at a step boundary, written to a file while training goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from bellwether.optimizers.shards.layout import ShardLayout
from bellwether.trainer import file_errors
from bellwether.trainer.distributed import World
from bellwether.trainer.engine import Engine

# Bytes that are hashed and written at a time.
_BLOCK = 1 << 22

# safetensors' names of types.
_TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


class HostBuffer:
    """Host memory that is kept from one checkpoint to the next; page-locked where the tensors are on a GPU.

    It is as large as the largest checkpoint of this rank so far.
    """

    def __init__(self, pinned: bool) -> None:
        self._pinned = pinned
        self._memory = torch.empty(0, dtype=torch.uint8)

    def reserve(self, size: int) -> Tensor:
        """Memory of some bytes, uint8 [size]. That of the last call must not be in use any more."""
        if self._memory.numel() < size:
            self.release()
            self._memory = torch.empty(size, dtype=torch.uint8, pin_memory=self._pinned)
        return self._memory[:size]

    def release(self) -> None:
        """Give the memory back."""
        self._memory = torch.empty(0, dtype=torch.uint8)


@dataclass(frozen=True)
class Snapshot:
    """The content of a safetensors file, byte for byte as that library would write it."""

    header: bytes
    data: Tensor  # uint8 [bytes]
    offsets: Mapping[str, tuple[int, int]]  # of each tensor in `data`: begin, end
    on_block: Callable[[], None] = lambda: None  # called for each block that is written

    @classmethod
    def reserve(cls, tensors: Mapping[str, tuple[torch.dtype, int]], buffer: HostBuffer) -> Snapshot:
        """A snapshot to be filled.

        Args:
            tensors: type and number of elements by key.
        """
        # safetensors cannot write a file without tensors.
        tensors = tensors or {"nothing": (torch.float32, 1)}
        header: dict[str, Any] = {}
        end = 0
        for key in sorted(tensors, key=lambda key: (-tensors[key][0].itemsize, key)):
            dtype, elements = tensors[key]
            begin, end = end, end + elements * dtype.itemsize
            header[key] = {"dtype": _TYPES[dtype], "shape": [elements], "data_offsets": [begin, end]}
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        offsets = {key: (about["data_offsets"][0], about["data_offsets"][1]) for key, about in header.items()}
        snapshot = cls(len(text).to_bytes(8, "little") + text, buffer.reserve(end), offsets)
        if "nothing" in offsets:
            snapshot.data.zero_()
        return snapshot

    def fill(self, key: str, values: Tensor) -> None:
        """Copy the values of a tensor. On a GPU the copy may not have ended yet."""
        begin, end = self.offsets[key]
        self.data[begin:end].view(values.dtype).copy_(values.detach().reshape(-1), non_blocking=True)

    def write(self, file: Path) -> dict[str, Any]:
        """Write the file, and bring it to the disk; returns its number of bytes and its checksum, for a manifest.

        Raises:
            OSError: naming the file.
        """
        digest, size = xxhash.xxh3_128(), 0
        with file_errors.naming(file), open(file, "wb", buffering=0) as stream:
            for block in self._blocks():
                digest.update(block)
                size += len(block)
                _write_block(stream, block)
                self.on_block()
            os.fsync(stream.fileno())
        return {"bytes": size, "xxh3_128": digest.hexdigest()}

    def _blocks(self) -> Iterator[memoryview]:
        for part in memoryview(self.header), self.data.numpy().data:
            for begin in range(0, len(part), _BLOCK):
                yield part[begin : begin + _BLOCK]


def _write_block(stream: RawIOBase, block: memoryview) -> None:
    while block:
        block = block[stream.write(block) :]


def take(engine: Engine, world: World, buffer: HostBuffer) -> Snapshot:
    """Copy what this rank owns: slices of weights and optimizer state, frozen parameters, carried state, and buffers. Collective.

    When it returns, the copy is complete, and training may go on.
    """
    owned = dict(_owned(engine, world))
    frozen = {f"frozen|{name}|0": parameter for name, parameter in engine.frozen()}
    tensors = {key: (values.dtype, values.numel()) for key, values in owned.items()}
    if world.is_main:
        tensors |= {key: (parameter.dtype, engine.elements(parameter)) for key, parameter in frozen.items()}
    snapshot = Snapshot.reserve(tensors, buffer)
    for key, values in owned.items():
        snapshot.fill(key, values)
    for key, parameter in frozen.items():
        with engine.gathered(parameter):
            if world.is_main:
                snapshot.fill(key, parameter)
    if world.device.type == "cuda":
        torch.cuda.synchronize(world.device)
    return snapshot


def state_tensors(engine: Engine, shard: ShardLayout) -> dict[str, Tensor]:
    """The optimizer's state tensors that have the layout of a shard, by name."""
    state = engine.optimizer.state.get(shard.tensor, {})
    whole = whole_state(engine, shard)
    return {k: v for k, v in state.items() if isinstance(v, Tensor) and k != "step" and k not in whole}


def whole_state(engine: Engine, shard: ShardLayout) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the optimizer's state tensors that do not have the layout of a shard of a whole parameter."""
    if shard.process_group is not None:
        return {}
    groups = (group for group in engine.optimizer.param_groups if any(p is shard.tensor for p in group["params"]))
    return {k: v for group in groups for k, v in engine.optimizer.whole_state(shard.parameters[0].shape, group).items()}


def _owned(engine: Engine, world: World) -> Iterator[tuple[str, Tensor]]:
    for index, shard in enumerate(engine.optimizer.shards):
        # Tensors that every rank holds completely are written once, by the ranks in turn.
        if shard.process_group is None and index % world.size != world.rank:
            continue
        for kind, tensor in {"weight": shard.tensor, **state_tensors(engine, shard)}.items():
            for part, view in shard.views(tensor.detach()):
                yield f"{kind}|{shard.parameters[part.index].name}|{part.start}", view
        state = engine.optimizer.state.get(shard.tensor, {})
        for kind in whole_state(engine, shard).keys() & state.keys():
            yield f"{kind}|{shard.parameters[0].name}|0", state[kind].detach()
    if engine.carried is not None:
        for name, start, values in engine.carried.slices():
            yield f"carried|{name}|{start}", values
    for name, values in engine.buffers():
        yield f"buffer|{name}|0", values.detach()

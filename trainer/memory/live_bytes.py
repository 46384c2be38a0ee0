"""Counts the bytes of live tensors, operation by operation, for real and for fake tensors."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """While the mode is active, counts every storage that an operation creates until it is freed.

    Views share a storage, which is counted once. The workspace of a running kernel and an allocator's rounding are not seen.

    Args:
        known: existing tensors that are not counted.
        watch: called with the live bytes after each new storage.
    """

    def __init__(self, known: Iterable[Tensor] = (), watch: Callable[[int], None] | None = None) -> None:
        super().__init__()
        self.bytes = 0
        self.peak = 0
        self._watch = watch
        self._sizes: dict[int, int] = {}
        # Kept alive, so that no new storage can reuse one of their addresses.
        self._known = [tensor.untyped_storage() for tensor in known]
        for storage in self._known:
            self._sizes[storage._cdata] = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.device.type != "meta":
                self._follow(leaf)
        return result

    def reset_peak(self) -> int:
        """The peak since the last reset, in bytes."""
        peak, self.peak = self.peak, self.bytes
        return peak

    def _follow(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        size = storage.nbytes()
        self._sizes[key] = size
        # The Python object of a storage lives as long as the storage itself.
        weakref.finalize(storage, self._forget, key).atexit = False
        self.bytes += size
        self.peak = max(self.peak, self.bytes)
        if self._watch is not None:
            self._watch(self.bytes)

    def _forget(self, key: int) -> None:
        self.bytes -= self._sizes.pop(key, 0)

"""How many bytes of tensors are alive, followed operation by operation: on real tensors, and on fake ones that have none."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Inside, every storage that an operation makes is counted until it dies.

    Views share a storage and are counted once. What a kernel takes for itself while it runs is not seen, nor what is
    rounded up by an allocator.

    Args:
        known: tensors that were there before and are not to be counted.
        watch: called with the bytes alive after each new storage.
    """

    def __init__(self, known: Iterable[Tensor] = (), watch: Callable[[int], None] | None = None) -> None:
        super().__init__()
        self.bytes = 0
        self.peak = 0
        self._watch = watch
        self._sizes: dict[int, int] = {}
        # Held, so that no new storage takes the place of one of them.
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
        """The most since the last reset, in bytes."""
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

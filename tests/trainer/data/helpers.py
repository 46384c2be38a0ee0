"""A dataset for the tests of the loader, in a module that its worker processes can import."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

import torch
from torch import Tensor

from bellwether.trainer.config.errors import ConfigError


class Plain:
    """Samples whose batches contain the requested rows and keys, and the process that made them."""

    def __init__(self, length: int, broken: int = -1, buggy: int = -1, deadly: int = -1) -> None:
        self.length, self.broken, self.buggy, self.deadly = length, broken, buggy, deadly

    def __len__(self) -> int:
        return self.length

    def batch(self, indices: Sequence[int], keys: Sequence[int]) -> dict[str, Tensor]:
        if self.broken in indices:
            raise ConfigError("data.source", "cat.png", "cannot be decoded: truncated", "repair or remove it")
        if self.buggy in indices:
            raise KeyError("a bug")
        if self.deadly in indices:
            os.kill(os.getpid(), signal.SIGKILL)
        size = len(indices)
        return {
            "rows": torch.tensor([int(i) for i in indices]),
            "keys": torch.tensor([int(k) for k in keys]),
            "process": torch.full((size,), os.getpid()),
            "threads": torch.full((size,), torch.get_num_threads()),
        }

"""In a rank of a test of hangs: a function of Bellwether never returns from one of its calls.

TEST_HANG is ``RANKS PROCESS module.Class.function CALL``, as in ``1,2 rank bellwether.trainer.engine.Engine.forward 9``; PROCESS is
``rank``, ``worker`` (a data worker) or ``evaluation`` (the rank, and only calls under torch.no_grad count).
"""

import importlib
import os
import sys
import threading
from typing import Any


def hang(path: str, call: int, only_evaluation: bool) -> None:
    parts = path.split(".")
    last = next((index for index, part in enumerate(parts) if part[0].isupper()), len(parts) - 1)
    owner: Any = importlib.import_module(".".join(parts[:last]))
    for name in parts[last:-1]:
        owner = getattr(owner, name)
    original = getattr(owner, parts[-1])
    calls = []

    def hanging(*arguments: Any, **more: Any) -> Any:
        import torch

        if not only_evaluation or not torch.is_grad_enabled():
            calls.append(1)
        if len(calls) == call:
            threading.Event().wait()
        return original(*arguments, **more)

    setattr(owner, parts[-1], hanging)


if "TEST_HANG" in os.environ:
    ranks, process, path, call = os.environ["TEST_HANG"].split()
    is_rank = "bellwether.trainer" in sys.orig_argv
    is_wanted = not is_rank and "forkserver" in str(sys.orig_argv) if process == "worker" else is_rank
    if os.environ.get("RANK") in ranks.split(",") and is_wanted:
        hang(path, int(call), process == "evaluation")

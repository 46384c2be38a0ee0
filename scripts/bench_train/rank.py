"""One process of a contestant, forked from a server that has imported what all of them need."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import Any

PRELOAD = "scripts.bench_train.preload"


def run(
    name: str, raw: dict[str, Any], folder: str, best: bool, rank: int, size: int, port: int, core: int, connection: Any
) -> None:
    """Train as rank ``rank`` of ``size`` on one core, under the gate's commands; what the libraries print is dropped."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), LOCAL_WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port), DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="", ACCELERATE_USE_CPU="true",
    )  # fmt: skip
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    import torch

    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    from scripts.bench_train.contestants import CONTESTANTS, ROUNDED_OTHERWISE
    from scripts.bench_train.gate import serve
    from scripts.bench_train.shared import Setup

    contestant = next(one for one in (*CONTESTANTS, ROUNDED_OTHERWISE) if one.name == name)
    setup = Setup(raw, Path(folder), best)
    with open(os.devnull, "w") as null, contextlib.redirect_stdout(null), contextlib.redirect_stderr(null):
        serve(lambda gate: contestant.load()(setup, gate), connection)
    os._exit(0)  # a process group whose peers have gone is not cleaned up

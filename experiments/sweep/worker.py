"""One trial in a process forked from a server that has imported torch and DeepSpeed already."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch

import bellwether.trainer.run
from bellwether.trainer.__main__ import main
from bellwether.trainer.libraries import import_deepspeed

# These imports take seconds. multiprocessing's fork server does them once, for all trials.
assert bellwether.trainer.run
import_deepspeed()


def run(config: str, log: str, cores: list[int]) -> None:
    """Body of the process: train with one rank on these cores, with stdout and stderr appended to a file."""
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)  # and the user's umask
    os.dup2(out, 1)
    os.dup2(out, 2)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the sweep handles Ctrl-C, and lets its trials save
    if cores:
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(len(cores))
    # The process ends with its parent, as the ranks of `bellwether train` do.
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", BELLWETHER_WORLD_SIZE="1")
    sys.exit(main([config]))

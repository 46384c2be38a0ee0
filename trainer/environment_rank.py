"""The rank that the launcher's variables give this process, for messages before the process group is up.

`process_info.detect` reads the same variables, and refuses contradictions among them. Imports nothing of Bellwether.
"""

from __future__ import annotations

import os

LOCAL_RANK = "BELLWETHER_LOCAL_RANK"  # set when LOCAL_RANK is the index of a GPU instead
MPI_RANK = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK")


def environment_rank() -> int:
    """This process's rank according to the environment; 0 where it is not set."""
    e = os.environ
    names = ["RANK", *MPI_RANK, *(["SLURM_PROCID"] if "SLURM_STEP_ID" in e else [])]
    return next((int(e[name]) for name in names if e.get(name, "").isdigit()), 0)


def is_local_rank_0() -> bool:
    """Whether this process has local rank 0 according to the environment."""
    e = os.environ
    names = [
        LOCAL_RANK,
        "LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        *(["SLURM_LOCALID"] if "SLURM_STEP_ID" in e else []),
    ]
    return next((e[name] for name in names if name in e), "0") == "0"

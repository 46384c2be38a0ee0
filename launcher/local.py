"""``bellwether train``: starts N processes of ``python -m bellwether.trainer`` on this machine."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from bellwether.launcher import console
from bellwether.trainer import existing_run, run_paths
from bellwether.trainer.config import Config, ConfigError, load, phases
from bellwether.trainer.phases import check_world_size, splits
from bellwether.trainer.report.summary import summary

log = logging.getLogger(__name__)


def train(config: str, overrides: Sequence[str], nproc: int | None) -> int:
    """Check the config, start the processes and wait for them. Returns the exit status for the shell.

    Rank 0 writes to this terminal, the others to files. If a rank fails, all are ended, and its error is printed.

    Args:
        nproc: number of processes; default: one per GPU, or one.

    Raises:
        ConfigError: if the config is wrong or does not fit this machine.
    """
    console.setup()
    checked = load(config, overrides)
    nproc = _process_count(checked, nproc)
    check_world_size(checked, nproc, f"write --nproc {checked.engine.world_size}")
    splits(phases(checked), nproc)
    existing_run.check_early(checked)
    if existing_run.is_complete(checked):
        run = run_paths.directory(checked)
        log.info("nothing is left to do: %s is finished", run)
        print(summary(run))
        return 0

    from bellwether.launcher import ranks
    from bellwether.trainer import rendezvous, store

    server = store.serve("127.0.0.1") if nproc > 1 else None  # for as long as the ranks run
    machine = ranks.Machine(nproc, "127.0.0.1", 0 if server is None else server.port)
    logs = run_paths.directory(checked) / "logs"
    return ranks.run(machine, rendezvous.new_secret(), logs, [config, *overrides], checked.log.keep)


def _process_count(config: Config, nproc: int | None) -> int:
    import torch

    gpus = torch.cuda.device_count() if config.engine.device != "cpu" else 0
    if nproc is None:
        return gpus if gpus and torch.cuda.is_available() else 1
    if 0 < gpus < nproc:
        problem = f"this machine has {gpus} GPUs"
        raise ConfigError("--nproc", nproc, problem, "start one process per GPU, or set engine.device=cpu")
    return nproc

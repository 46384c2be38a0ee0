"""``python -m bellwether.trainer CONFIG [key=value ...]``: one process of a run, under any launcher that sets RANK and WORLD_SIZE."""

from __future__ import annotations

import argparse
import logging
import os
import resource
import sys
import threading
import time

from bellwether.trainer import error_file, file_errors, libraries, log, signals
from bellwether.trainer.environment_rank import environment_rank, is_local_rank_0

_log = logging.getLogger("bellwether.trainer")  # __name__ is __main__ here


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m trainer",
        description="Run one process of a training run. Start it with bellwether train, torchrun, or another launcher that sets "
        "RANK and WORLD_SIZE.",
    )
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, as in configs/")
    parser.add_argument(
        "overrides",
        metavar="key=value",
        nargs="*",
        help="overrides, as in optimizer.lr=2e-3 batch.global=4096",
    )
    arguments = parser.parse_args(argv)
    libraries.use_huge_pages()
    signals.listen()
    log.setup()
    _raise_open_files_limit()

    try:
        return _run(arguments.config, arguments.overrides)
    except KeyboardInterrupt:
        return signals.INTERRUPTED


def _run(path: str, overrides: list[str]) -> int:
    if "BELLWETHER_WORLD_SIZE" in os.environ:
        threading.Thread(target=_exit_with_parent, args=(os.getppid(),), daemon=True).start()
    from bellwether.trainer.checked_config import load_checked
    from bellwether.trainer.config import ConfigError, ConfigErrors

    try:
        libraries.quicken_transformers()
        config = load_checked(path, overrides)
        from bellwether.trainer.run import run

        stopped = run(config)
    except (ConfigError, ConfigErrors) as error:
        _report_config_error(error)
        return 2
    except signals.LostRank as error:
        _log.error("exiting: %s", error)
        return signals.LOST
    except Exception as error:
        status = _record_failure(error)
        return signals.IO if isinstance(error, OSError) and error.errno == signals.READ_FAILED else status
    return signals.SAVED if stopped else 0


def _raise_open_files_limit() -> None:
    """The usual soft limit of 1,024 open files is less than the connections among 1,024 ranks; the hard limit is more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _exit_with_parent(parent: int) -> None:
    """Exit when the parent launcher dies: killed with SIGKILL, it could not end its ranks."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _report_config_error(error: Exception) -> None:
    """Log a config error once where all ranks raise it, and once per machine before they are connected.

    An error of one rank only, such as an image that cannot be read, goes to the error file, from which bellwether reports it.
    """
    from torch.distributed import is_initialized

    rank = environment_rank()
    if "BELLWETHER_WORLD_SIZE" in os.environ and is_initialized() and not getattr(error, "raised_by_all_ranks", False):
        error_file.write(error)
    if rank == 0:
        for line in str(error).splitlines():
            _log.error("%s", line)
    elif is_local_rank_0() and not is_initialized():
        for line in str(error).splitlines():
            _log.error("%s", line, extra=log.EVERY_RANK)


def _record_failure(error: Exception) -> int:
    """Write the traceback to torchrun's error file, from which bellwether shows that of the rank that failed first.

    What a disk reports is written in one line instead, which rank 0 logs where all ranks raise it.
    """
    import traceback

    text = file_errors.explain(error)
    if error_file.write(error, text) and "BELLWETHER_WORLD_SIZE" in os.environ:
        return 1
    if text is None:
        traceback.print_exception(error)
    elif environment_rank() == 0 or not getattr(error, "raised_by_all_ranks", False):
        _log.error("%s", text, extra=log.EVERY_RANK)
    return 1


if __name__ == "__main__":
    status = main()
    if status in (1, 2, signals.IO, signals.LOST):
        # The process group was not destroyed, and where gloo's threads still run, C++ would end this process with SIGABRT.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)

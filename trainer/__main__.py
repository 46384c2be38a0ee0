"""``python -m bellwether.trainer CONFIG [key=value ...]``: one process of a run, under any launcher that sets RANK and WORLD_SIZE."""

from __future__ import annotations

import argparse
import os
import resource
import socket
import sys
import threading
import time

from bellwether.trainer import signals


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m trainer",
        description="Run one process of a training run. Start it with bellwether train, torchrun, or what else sets RANK and WORLD_SIZE.",
    )
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, as in configs/")
    parser.add_argument(
        "overrides",
        metavar="key=value",
        nargs="*",
        help="overrides, as in optimizer.lr=2e-3 batch.global=4096",
    )
    arguments = parser.parse_args(argv)
    signals.listen()
    _allow_open_files()

    try:
        return _run(arguments.config, arguments.overrides)
    except KeyboardInterrupt:
        return 130


def _run(path: str, overrides: list[str]) -> int:
    if "BELLWETHER_WORLD_SIZE" in os.environ:
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    from bellwether.trainer.config import ConfigError, ConfigErrors, load

    try:
        config = load(path, overrides)
        from bellwether.trainer.loop import run

        stopped = run(config)
    except (ConfigError, ConfigErrors) as error:
        _tell(error)
        return 2
    except Exception as error:
        return _failed(error)
    return signals.SAVED if stopped else 0


def _allow_open_files() -> None:
    """The usual soft limit of 1,024 is less than the connections among 1,024 ranks; the hard one is for who needs more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _end_with(parent: int) -> None:
    """Not to train on, unseen, when bellwether was killed and could not end its ranks."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _tell(error: Exception) -> None:
    """Once where all ranks come to the same verdict, as they do once they can talk; before, once a machine.

    Where a rank alone has failed, such as on an image that cannot be read, bellwether tells from the error file.
    """
    from torch.distributed import is_initialized
    from torch.distributed.elastic.multiprocessing.errors import ErrorHandler

    from bellwether.trainer import process_info

    rank = process_info.rank()
    if "BELLWETHER_WORLD_SIZE" in os.environ and is_initialized() and not getattr(error, "agreed", False):
        ErrorHandler().record_exception(error)
    if rank == 0 or (process_info.is_first_here() and not is_initialized()):
        where = "" if rank == 0 else f"{socket.gethostname()}: "
        for line in str(error).splitlines():
            print(f"bellwether: {where}{line}", file=sys.stderr)


def _failed(error: Exception) -> int:
    """Hand the traceback to torchrun's error file, from which bellwether shows that of the rank that failed first."""
    import traceback

    from torch.distributed.elastic.multiprocessing.errors import ErrorHandler

    ErrorHandler().record_exception(error)
    if "BELLWETHER_WORLD_SIZE" not in os.environ:
        traceback.print_exc()
    return 1


if __name__ == "__main__":
    status = main()
    if status in (1, 2):
        # The process group was not taken down, and where gloo's threads still run C++ would end this with SIGABRT.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)

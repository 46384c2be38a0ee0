"""``python -m trainer CONFIG [key=value ...]``: one process of a run, under any launcher that sets RANK and WORLD_SIZE."""

from __future__ import annotations

import argparse
import sys


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m trainer",
        description="Run one process of a training run. Start it with bellwether train, torchrun, accelerate, mpirun or srun.",
    )
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, as in configs/")
    parser.add_argument(
        "overrides",
        metavar="key=value",
        nargs="*",
        help="overrides, as in optimizer.lr=2e-3 batch.global=4096",
    )
    arguments = parser.parse_args(argv)

    from trainer.config import ConfigError, ConfigErrors, load

    try:
        config = load(arguments.config, arguments.overrides)
        from trainer.loop import run

        run(config)
    except (ConfigError, ConfigErrors) as error:
        # Every rank comes to the same verdict; one tells.
        from trainer.distributed import rank_from_environment

        if rank_from_environment() == 0:
            for line in str(error).splitlines():
                print(f"bellwether: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        return _failed(error)
    return 0


def _failed(error: Exception) -> int:
    """Hand the traceback to torchrun's error file, from which bellwether shows that of the rank that failed first."""
    import os
    import traceback

    from torch.distributed.elastic.multiprocessing.errors import ErrorHandler

    ErrorHandler().record_exception(error)
    if "BELLWETHER_WORLD_SIZE" not in os.environ:
        traceback.print_exc()
    return 1


if __name__ == "__main__":
    sys.exit(main())

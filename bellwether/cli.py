"""The command ``bellwether``. Imports nothing heavy until a command needs it."""

from __future__ import annotations

import argparse
import os
import sys

from bellwether.commands import measuring, running


def main(argv: list[str] | None = None) -> int:
    parser = _parser()
    # argparse takes the positional arguments before an option for all there are: the overrides behind it are left over.
    arguments, rest = parser.parse_known_args(argv)
    if rest and (not hasattr(arguments, "overrides") or any(r.startswith("-") for r in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.overrides += rest
    try:
        status: int = arguments.act(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # as `| head` leaves it; there is nobody to tell, also not when Python ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "bellwether":
            raise
        print(f"bellwether: {error.name} is not installed; pip install 'bellwether[train]' brings it", file=sys.stderr)
        return 2
    except ValueError as error:
        from bellwether.trainer.config import ConfigError, ConfigErrors

        if not isinstance(error, ConfigError | ConfigErrors):
            raise
        for line in str(error).splitlines():
            print(f"bellwether: {line}", file=sys.stderr)
        return 2
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bellwether",
        description="Large-batch training of BERT and ResNet on DeepSpeed ZeRO, with exact LAMB.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    running.add(commands)
    measuring.add(commands)
    return parser

"""The command ``bellwether``. A command's own imports happen when it runs, so that ``--help`` is quick."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from bellwether.commands import (
    bench,
    branch,
    compare,
    convert,
    data,
    doctor,
    env,
    evaluate,
    fit,
    frontier,
    keys,
    launch,
    logs,
    lr_find,
    plan,
    predict,
    prepare,
    recipe,
    report,
    status,
    sweep,
    train,
)

# The subcommands, in the order in which --help lists them.
COMMANDS = (
    train,
    launch,
    status,
    logs,
    doctor,
    env,
    data,
    prepare,
    lr_find,
    sweep,
    report,
    compare,
    evaluate,
    predict,
    fit,
    convert,
    recipe,
    plan,
    frontier,
    branch,
    bench,
    keys,
)

_COMPLETION = """\
Shell completion of commands, options, config keys and recipes:
  bash, zsh: eval "$(register-python-argcomplete bellwether)"
  fish:      register-python-argcomplete --shell fish bellwether | source"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit status: 2 for a user's error, 130 after Ctrl-C."""
    parser = build_parser()
    if "_ARGCOMPLETE" in os.environ:  # the shell asks for completions
        import argcomplete

        argcomplete.autocomplete(parser)
    try:
        arguments = _parse(parser, argv)
        status: int = arguments.run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader is gone, as in `bellwether ... | head`; Python must not flush into it at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "bellwether":
            raise
        print(
            f"bellwether: {error.name} is not installed; pip install 'bellwether[train]' installs it", file=sys.stderr
        )
        return 2
    except OSError as error:
        from bellwether.trainer import file_errors, signals

        text = file_errors.explain(error, "goes on where this one ended, or starts anew")
        if text is None:
            raise
        print(f"bellwether: {text}", file=sys.stderr)
        return signals.IO if error.errno == signals.READ_FAILED else 1
    except ValueError as error:
        from bellwether.trainer.config import ConfigError, ConfigErrors

        if not isinstance(error, ConfigError | ConfigErrors):
            raise
        for line in str(error).splitlines():
            print(f"bellwether: {line}", file=sys.stderr)
        return 2
    return status


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="bellwether",
        description="Large-batch training of BERT and ResNet on DeepSpeed ZeRO.",
        epilog=_COMPLETION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version", action=_Version, nargs=0, help="print the versions of bellwether, torch and others"
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add(commands)
    return parser


def _parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    # argparse assigns the overrides once, before the first option; those after an option come back as `rest`.
    arguments, rest = parser.parse_known_args(argv)
    if rest and (not hasattr(arguments, "overrides") or any(argument.startswith("-") for argument in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.overrides += rest
    return arguments


class _Version(argparse.Action):
    """Collects the versions only when they are asked for: that imports torch."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from bellwether.version import version_report

        print(version_report())
        parser.exit()

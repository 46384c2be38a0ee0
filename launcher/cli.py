"""The command ``bellwether``. Imports nothing heavy until a command needs it."""

from __future__ import annotations

import argparse
import sys


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
    except KeyboardInterrupt:
        return 130
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] in ("launcher", "trainer", "optimizers"):
            raise
        print(f"bellwether: {error.name} is not installed; pip install 'bellwether[train]' brings it", file=sys.stderr)
        return 2
    except ValueError as error:
        from trainer.config import ConfigError, ConfigErrors

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

    train = commands.add_parser(
        "train",
        help="train on this machine",
        description="Train on this machine, one process a GPU or as many as --nproc says.",
    )
    train.add_argument("config", metavar="CONFIG", help="a YAML file, as in configs/")
    train.add_argument(
        "overrides",
        metavar="key=value",
        nargs="*",
        help="overrides, as in optimizer.lr=2e-3 batch.global=4096",
    )
    train.add_argument("--nproc", type=_count, metavar="N", help="number of processes; default: one a GPU, or one")
    train.set_defaults(act=_train)

    report = commands.add_parser(
        "report",
        help="write a run's report.html anew",
        description="Write a run's report anew, also while it runs.",
    )
    report.add_argument("run", metavar="RUN", help="a run directory, as in runs/bert-tiny")
    report.set_defaults(act=_report)
    return parser


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: write a whole number from 1 up")
    return int(text)


def _train(arguments: argparse.Namespace) -> int:
    from launcher.local import train

    return train(arguments.config, arguments.overrides, arguments.nproc)


def _report(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from trainer import report
    from trainer.config import ConfigError

    run = Path(arguments.run)
    if not (run / "config.yaml").is_file():
        raise ConfigError(
            "RUN",
            arguments.run,
            "no run directory: it has no config.yaml",
            "give a directory such as runs/bert-tiny",
        )
    report.write(run)
    print(report.summary(run))
    return 0

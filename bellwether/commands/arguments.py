"""Argument types and options that several subcommands share. Imports nothing outside the standard library."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_config(parser: argparse.ArgumentParser, example: str = "batch.global=4096") -> None:
    """CONFIG and the overrides of its keys."""
    config = parser.add_argument(
        "config", metavar="CONFIG", help="a YAML file, or the name of a shipped recipe such as bert-tiny"
    )
    overrides = parser.add_argument("overrides", metavar="key=value", nargs="*", help=f"overrides, such as {example}")
    # argcomplete reads this attribute.
    config.completer = complete_config  # type: ignore[attr-defined]
    overrides.completer = complete_override  # type: ignore[attr-defined]


def add_nproc(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--nproc", type=positive_int, metavar="N", help="number of processes; default: one per GPU, or 1 without GPUs"
    )


def add_allocation(parser: argparse.ArgumentParser) -> None:
    """The resources of a job, for launch and sweep."""
    parser.add_argument("--nodes", type=positive_int, metavar="N", help="number of nodes (slurm, mpi); default: 1")
    parser.add_argument(
        "--tasks-per-node", type=positive_int, metavar="N", help="processes per node; default: one per GPU"
    )
    parser.add_argument("--cpus-per-task", type=positive_int, metavar="N", help="cores per process (slurm); default: 8")
    parser.add_argument("--time", metavar="D-HH:MM:SS", help="time limit (slurm); default: 1-00:00:00")
    parser.add_argument(
        "--sbatch",
        metavar="OPTION",
        action="append",
        default=[],
        help="another option of sbatch, such as --sbatch=--exclude=node3; may be repeated",
    )
    add_node_selection(parser)


def add_node_selection(parser: argparse.ArgumentParser) -> None:
    """Which nodes of a cluster to use, for doctor as well."""
    parser.add_argument(
        "--gpus-per-node",
        type=non_negative_int,
        metavar="N",
        help="GPUs and processes per node, 0 for none; default on slurm: the site file's value, 8, or the sweep's",
    )
    for name in ("partition", "account", "qos", "constraint"):
        parser.add_argument(f"--{name}", metavar="NAME", help=f"sbatch --{name} (slurm)")
    parser.add_argument(
        "--site", metavar="FILE", help="settings of the cluster; default: slurm/site.yaml if that file exists"
    )


def positive_int(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least 1")
    return int(text)


def non_negative_int(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least 0")
    return int(text)


def positive_ints(text: str) -> list[int]:
    """A comma-separated list. ``1,024`` is refused, because it could be one number or two."""
    parts = text.split(",")
    if any(
        len(part) == 3 and len(before) <= 3 and int(before or 0) < 512
        for before, part in pairwise(parts)
        if part.isdigit() and before.isdigit()
    ):
        raise argparse.ArgumentTypeError(f"{text!r}: write numbers without thousands separators, such as 1024,2048")
    return [positive_int(part.strip()) for part in parts]


def positive_float(text: str) -> float:
    value = _float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number above 0")
    return value


def non_negative_float(text: str) -> float:
    value = _float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number of at least 0")
    return value


def fraction(text: str) -> float:
    value = positive_float(text)
    if value >= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number between 0 and 1")
    return value


def throughput(text: str) -> float | dict[int, float]:
    """Samples per second: one number, or one for each batch size as in ``64=800,128=1200``."""
    try:
        pairs = [part.split("=") for part in text.split(",")]
        values = {int(batch): float(value) for batch, value in pairs} if "=" in text else {0: float(text)}
    except ValueError:
        values = {0: math.nan}
    if not all(0 < value < math.inf for value in values.values()):
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected samples per second above 0, or one number per batch size as in 64=800,128=1200"
        )
    return values if "=" in text else values[0]


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def complete_config(prefix: str, **_: Any) -> Iterator[str]:
    """Shell completion of CONFIG: YAML files and the names of shipped recipes."""
    from argcomplete.completers import FilesCompleter

    from bellwether.trainer.config import shipped_recipes

    yield from shipped_recipes()
    yield from FilesCompleter(("yaml", "yml"))(prefix)


def complete_key(prefix: str, **_: Any) -> list[str]:
    """Shell completion of a config key or section."""
    from bellwether.trainer.config.reference import keys

    return sorted({key.path for key in keys(prefix) if key.path.startswith(prefix)})


def complete_override(prefix: str, **_: Any) -> list[str]:
    """Shell completion of ``key=value``: the keys, each with its equals sign."""
    from bellwether.trainer.config.reference import keys

    return sorted({f"{key.path}=" for key in keys(prefix) if not key.is_section and key.path.startswith(prefix)})

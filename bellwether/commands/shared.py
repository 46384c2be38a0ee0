"""What several commands share: kinds of numbers, and the options of a cluster."""

from __future__ import annotations

import argparse
import math
from itertools import pairwise
from typing import TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def config(parser: argparse.ArgumentParser, example: str = "batch.global=4096") -> None:
    """The config of a run, and keys of it on the command line."""
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, as in configs/")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help=f"overrides, as in {example}")


def processes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--nproc", type=count, metavar="N", help="number of processes; default: one a GPU, or one")


def machines(parser: argparse.ArgumentParser) -> None:
    """What is asked of a cluster: the options that launch and sweep share."""
    parser.add_argument("--nodes", type=count, metavar="N", help="machines (slurm, mpi); default: 1")
    parser.add_argument("--tasks-per-node", type=count, metavar="N", help="processes a machine; default: one a GPU")
    parser.add_argument("--cpus-per-task", type=count, metavar="N", help="cores a process (slurm); default: 8")
    parser.add_argument("--time", metavar="D-HH:MM:SS", help="time limit (slurm); default: 1-00:00:00")
    parser.add_argument(
        "--sbatch",
        metavar="OPTION",
        action="append",
        default=[],
        help="any other option, as in --sbatch=--exclude=node3",
    )
    where(parser)


def where(parser: argparse.ArgumentParser) -> None:
    """Which of a cluster's machines: the options that doctor takes too."""
    parser.add_argument(
        "--gpus-per-node",
        type=number,
        metavar="N",
        help="GPUs, and processes, a machine; 0: none; default on slurm: the site's file, 8, or what a sweep says",
    )
    for name in ("partition", "account", "qos", "constraint"):
        parser.add_argument(f"--{name}", metavar="NAME", help="as sbatch has it (slurm)")
    parser.add_argument(
        "--site", metavar="FILE", help="the cluster's ways; default: slurm/site.yaml, where there is one"
    )


def count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: write a whole number from 1 up")
    return int(text)


def counts(text: str) -> list[int]:
    parts = text.split(",")
    if any(
        len(part) == 3 and len(before) <= 3 and int(before or 0) < 512
        for before, part in pairwise(parts)
        if part.isdigit() and before.isdigit()
    ):
        raise argparse.ArgumentTypeError(f"{text!r}: write a number without commas in it, and commas between two")
    return [count(part.strip()) for part in parts]


def number(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r}: write a whole number from 0 up")
    return int(text)


def price(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: write a number from 0 up")
    return value


def throughput(text: str) -> float | dict[int, float]:
    try:
        pairs = [part.split("=") for part in text.split(",")]
        found = {int(batch): float(value) for batch, value in pairs} if "=" in text else {0: float(text)}
    except ValueError:
        found = {0: math.nan}
    if not all(0 < value < math.inf for value in found.values()):
        raise argparse.ArgumentTypeError(f"{text!r}: write samples a second above 0, or 64=800,128=1200 by batch")
    return found if "=" in text else found[0]


def positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: write a number above 0")
    return value


def share(text: str) -> float:
    value = positive(text)
    if value >= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: write a share between 0 and 1")
    return value

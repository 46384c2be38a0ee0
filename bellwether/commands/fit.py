"""``bellwether fit``: the critical batch size from a file of measurements."""

from __future__ import annotations

import argparse

from bellwether.commands.arguments import Commands, positive_int


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "fit",
        help="critical batch size from a file of measurements",
        description="Fit the samples to a target over the batch size, S_min (1 + B / B_crit) or with another knee, to MLPerf's rcps_*.json or to a table (.csv, .parquet).",
    )
    parser.add_argument(
        "file",
        metavar="FILE",
        help="rcps_*.json, a sweep's measurements, or a table with batch_size and samples or steps",
    )
    parser.add_argument(
        "--unit",
        choices=["samples", "epochs", "steps"],
        help="unit of MLPerf's numbers; default: the benchmark's",
    )
    parser.add_argument(
        "--dataset-size", type=positive_int, metavar="N", help="samples per epoch, for a file that counts epochs"
    )
    parser.add_argument(
        "--target",
        metavar="'METRIC >= N'",
        help="target of a sweep's measurements; default: the one in the sweep.yaml next to them",
    )
    parser.add_argument("--optimizer", metavar="NAME", help="which of the optimizers that a sweep measured")
    parser.add_argument("--json", action="store_true", help="print s_min, b_crit, its interval and more as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from bellwether.experiments.analysis.fitting import show

    a = arguments
    return show(a.file, a.unit, a.dataset_size, a.target, a.optimizer, a.json)

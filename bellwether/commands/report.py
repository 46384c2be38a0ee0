"""``bellwether report``: write the report of a run or a sweep."""

from __future__ import annotations

import argparse
from pathlib import Path

from bellwether.commands.arguments import Commands, non_negative_float, throughput


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "report",
        help="write the report of a run or a sweep",
        description="Write report.html of a run or a sweep, or NAME.report.html next to a table of measurements. "
        "Runs and sweeps may still be in progress.",
    )
    parser.add_argument(
        "path", metavar="PATH", help="the directory of a run or a sweep, or measurements as .csv or .parquet"
    )
    parser.add_argument(
        "--target",
        metavar="'METRIC >= N'",
        help="target of a sweep, such as 'val/accuracy >= 0.9'; default: the one in its sweep.yaml",
    )
    parser.add_argument(
        "--price", type=non_negative_float, metavar="X", help="price of an hour of one process (sweeps)"
    )
    parser.add_argument(
        "--throughput",
        type=throughput,
        metavar="X",
        help="samples per second of one process, or by batch size as in 64=800,128=1200 (sweeps); default: as measured",
    )
    parser.add_argument(
        "--runs",
        action="store_true",
        help="first write the missing reports of a sweep's runs, a few seconds each",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from bellwether.experiments.analysis import io

    path = Path(arguments.path)
    return _report_sweep(path, arguments) if io.is_measured(path) else _report_run(path, arguments)


def _report_sweep(path: Path, arguments: argparse.Namespace) -> int:
    from bellwether.experiments import report
    from bellwether.experiments.analysis import io

    facts = report.load(path, target=arguments.target, price=arguments.price, throughput=arguments.throughput)
    if arguments.target is not None and facts.target is not None:
        io.check_measured(facts.target, facts.trials)
    if arguments.runs:
        report.write_runs(facts)
    print(report.summary(facts, report.write(path, facts)))
    return 0


def _report_run(path: Path, arguments: argparse.Namespace) -> int:
    from bellwether.trainer import report
    from bellwether.trainer.config import ConfigError

    if not (path / "config.yaml").is_file():
        raise ConfigError(
            "PATH",
            arguments.path,
            "neither a run directory, which has a config.yaml, nor a sweep's, which has a measurements.csv",
            "give a directory such as runs/bert-tiny",
        )
    for key in ("target", "price", "throughput", "runs"):
        value = getattr(arguments, key)
        if value is not None and value is not False:
            raise ConfigError(f"--{key}", value, f"is for sweeps, and {path} is a run", "leave it out")
    report.write(path)
    print(report.summary(path))
    return 0

"""``bellwether sweep``: train over batch sizes, settings, seeds and optimizers."""

from __future__ import annotations

import argparse

from bellwether.commands.arguments import Commands, add_allocation, positive_int


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "sweep",
        help="train over batch sizes, settings, seeds and optimizers",
        description="Run the trials of SWEEP.yaml, here or as SLURM job arrays. The same command resumes a sweep.",
    )
    parser.add_argument(
        "sweep", metavar="SWEEP", help="a YAML file, or the name of a shipped sweep such as 4-batch-bert"
    )
    parser.add_argument("--on", choices=["local", "slurm"], default="local", help="default: local")
    parser.add_argument(
        "--jobs", type=positive_int, metavar="N", help="most trials at a time; default: as many as fit, or all on slurm"
    )
    parser.add_argument("--retry", action="store_true", help="run failed trials again")
    parser.add_argument("--dry-run", action="store_true", help="print what would run; start nothing")
    add_allocation(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from bellwether.experiments.sweep.start import sweep
    from bellwether.launcher.launch import LaunchRequest

    options = vars(arguments)
    keys = LaunchRequest.__dataclass_fields__.keys() - {"config", "overrides", "hostfile", "spares", "chain"}
    request = LaunchRequest(config=arguments.sweep, overrides=(), **{key: options[key] for key in keys})
    return sweep(arguments.sweep, request, arguments.jobs, arguments.retry)

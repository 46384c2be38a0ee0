"""``bellwether frontier``: time and cost of a target, over GPUs and batch sizes."""

from __future__ import annotations

import argparse

from bellwether.commands.arguments import Commands, add_config, positive_float, positive_int


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "frontier",
        help="which batch size on how many GPUs, for a deadline or a budget",
        description="Join the samples that each batch size needs, measured by a sweep or in MLPerf's rcps_*.json, with the time of a step "
        "on each number of GPUs: hours, GPU hours and cost with 90 % intervals, the Pareto front, and a config for the recommended point.",
    )
    add_config(parser, "batch.micro=64")
    parser.add_argument(
        "--from", dest="source", metavar="FILE", required=True, help="a sweep, or a file as for bellwether fit"
    )
    parser.add_argument(
        "--throughput",
        type=positive_float,
        metavar="X",
        required=True,
        help="samples per second on one GPU, measured with the config's micro-batch",
    )
    parser.add_argument(
        "--gpu", metavar="NAME", default="h100", help="as for bellwether plan, for its links; default: h100"
    )
    parser.add_argument("--gpus-per-node", type=positive_int, metavar="N", default=8, help="default: 8")
    parser.add_argument(
        "--max-gpus", type=positive_int, metavar="N", default=4096, help="the most to consider; default: 4096"
    )
    parser.add_argument(
        "--network", type=positive_float, metavar="GBIT", help="bandwidth between nodes, Gbit/s for each GPU"
    )
    parser.add_argument("--price", type=positive_float, metavar="X", help="price of an hour of one GPU")
    parser.add_argument(
        "--deadline", type=positive_float, metavar="HOURS", help="recommend the cheapest that is done in time"
    )
    parser.add_argument(
        "--budget",
        type=positive_float,
        metavar="X",
        help="recommend the fastest that costs at most this, or so many GPU hours",
    )
    parser.add_argument(
        "--unit", choices=["samples", "epochs", "steps"], help="of MLPerf's numbers; default: the benchmark's"
    )
    parser.add_argument(
        "--dataset-size", type=positive_int, metavar="N", help="samples per epoch, for a file that counts epochs"
    )
    parser.add_argument("--target", metavar="'METRIC >= N'", help="of a sweep's measurements; default: the sweep's")
    parser.add_argument("--optimizer", metavar="NAME", help="which of the optimizers that a sweep measured")
    parser.add_argument("--output", metavar="DIR", help="for the picture and the config; default: NAME-frontier")
    parser.add_argument("--json", action="store_true", help="print all numbers as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from bellwether.experiments.planner.frontier_show import FrontierRequest, show

    options = vars(arguments)
    return show(FrontierRequest(**{key: options[key] for key in FrontierRequest.__dataclass_fields__}))

"""``bellwether plan``: memory, time and energy of a run on given GPUs, without running it."""

from __future__ import annotations

import argparse

from bellwether.commands.arguments import Commands, add_config, fraction, positive_float, positive_int


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "plan",
        help="memory, time, energy and scaling of a run on given GPUs, without running it",
        description="Estimate what a run takes on machines that need not be here: memory per rank by ZeRO stage, the "
        "largest micro-batch, step time, hours, energy, and scaling up to 4,096 GPUs. The assumptions are printed.",
    )
    add_config(parser, "engine.stage=3")
    parser.add_argument(
        "--gpu", metavar="NAME", required=True, help="h100, a100, h200 and others, or a YAML file with a GPU's numbers"
    )
    parser.add_argument("--nodes", type=positive_int, metavar="N", default=1, help="number of nodes; default: 1")
    parser.add_argument("--gpus-per-node", type=positive_int, metavar="N", default=8, help="default: 8")
    parser.add_argument(
        "--dataset-size", type=positive_int, metavar="N", help="training samples, if the dataset is not on this machine"
    )
    parser.add_argument(
        "--critical-batch",
        metavar="N",
        help="critical batch size in samples, a run that logs noise_scale, or a file as for bellwether fit",
    )
    parser.add_argument("--mfu", type=fraction, metavar="X", help="model FLOPs utilization, between 0 and 1")
    parser.add_argument(
        "--throughput",
        type=positive_float,
        metavar="X",
        help="samples per second and GPU, measured with the config's micro-batch; takes precedence over --mfu",
    )
    parser.add_argument(
        "--mean-length", type=positive_int, metavar="N", help="mean tokens of a text sample, if padding costs nothing"
    )
    parser.add_argument(
        "--headroom", type=fraction, metavar="X", default=0.1, help="fraction of memory to leave free; default: 0.1"
    )
    parser.add_argument(
        "--network", type=positive_float, metavar="GBIT", help="bandwidth between nodes, Gbit/s for each GPU"
    )
    parser.add_argument("--price", type=positive_float, metavar="X", help="price of an hour of one GPU")
    parser.add_argument("--json", action="store_true", help="print all numbers as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from bellwether.experiments.planner.show import PlanRequest, show

    options = vars(arguments)
    return show(PlanRequest(**{key: options[key] for key in PlanRequest.__dataclass_fields__}))

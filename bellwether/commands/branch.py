"""``bellwether branch``: the critical batch size over a run, from branches at larger batches."""

from __future__ import annotations

import argparse

from bellwether.commands.arguments import Commands, add_nproc, positive_float, positive_int, positive_ints


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "branch",
        help="how far the batch of a run can grow, over its course",
        description="From checkpoints of a run, train the same samples at its own batch and at multiples of it, with the learning rate "
        "scaled by the rule, and report the largest batch whose held-out loss stays within a tolerance (Merrill et al. 2025, 2505.23971), "
        "with the noise between seeds, beside the gradient noise scale; and the batch warm-up that follows. The run itself stays as it is. "
        "The same command continues where it was stopped.",
    )
    parser.add_argument("branched", metavar="RUN", help="a run directory, with the checkpoints to branch from")
    parser.add_argument(
        "--factors",
        type=positive_ints,
        metavar="K,K,...",
        default=[2, 4, 8, 16],
        help="multiples of the batch; default: 2,4,8,16",
    )
    parser.add_argument(
        "--window", metavar="DURATION", help="length of a branch, as in '20_000 samples'; default: a tenth of the run"
    )
    parser.add_argument(
        "--at",
        type=_steps,
        metavar="STEP,STEP,...",
        help="checkpoints to branch from, 0 for the beginning; default: see --points",
    )
    parser.add_argument(
        "--points",
        type=positive_int,
        metavar="N",
        default=4,
        help="so many of the kept checkpoints and the beginning; default: 4",
    )
    parser.add_argument("--seeds", type=positive_int, metavar="N", default=3, help="branches of each batch; default: 3")
    parser.add_argument(
        "--tolerance",
        type=positive_float,
        metavar="X",
        default=0.01,
        help="loss above that of the run's own batch; default: 0.01",
    )
    parser.add_argument(
        "--rule",
        choices=["linear", "sqrt", "none"],
        help="of the learning rate; default: scaling.rule, or linear for sgd and lars, else sqrt",
    )
    add_nproc(parser)
    parser.add_argument("--output", metavar="DIR", help="for branches and results; default: RUN-branches")
    parser.add_argument("--json", action="store_true", help="print all numbers as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from bellwether.experiments.branch.show import BranchRequest, show

    options = {**vars(arguments), "run": arguments.branched}
    return show(BranchRequest(**{key: options[key] for key in BranchRequest.__dataclass_fields__}))


def _steps(text: str) -> list[int]:
    return [int(part) if part.strip() == "0" else positive_int(part.strip()) for part in text.split(",")]

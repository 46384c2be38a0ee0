"""The commands that ask how large the batch, the rate and the machine should be, and show what came out."""

from __future__ import annotations

import argparse
from pathlib import Path

from bellwether.commands.shared import (
    Commands,
    config,
    count,
    counts,
    machines,
    positive,
    price,
    processes,
    share,
    throughput,
)


def add(commands: Commands) -> None:
    lr_find = commands.add_parser(
        "lr-find",
        help="learning rate range test, with a suggestion",
        description="Raise the learning rate exponentially until the loss diverges; plot it and suggest one. The run gets a "
        "directory of its own, NAME-lr-find.",
    )
    config(lr_find)
    processes(lr_find)
    lr_find.add_argument("--from", dest="low", type=float, default=1e-6, metavar="LR", help="default: 1e-6")
    lr_find.add_argument("--to", dest="high", type=float, default=1.0, metavar="LR", help="default: 1")
    lr_find.add_argument("--steps", type=count, default=200, metavar="N", help="from one to the other; default: 200")
    lr_find.set_defaults(act=_lr_find)

    sweep = commands.add_parser(
        "sweep",
        help="batches x settings x seeds x optimizers",
        description="Run what a SWEEP.yaml asks for, here or as SLURM job arrays; go on where it stood.",
    )
    sweep.add_argument("sweep", metavar="SWEEP", help="a YAML file, as in configs/experiments/")
    sweep.add_argument("--on", choices=["local", "slurm"], default="local", help="default: local")
    sweep.add_argument("--jobs", type=count, metavar="N", help="most runs at a time; default: as many as fit, or all")
    sweep.add_argument("--retry", action="store_true", help="try again what failed")
    sweep.add_argument("--dry-run", action="store_true", help="print what would run, and do nothing")
    machines(sweep)
    sweep.set_defaults(act=_sweep)

    report = commands.add_parser(
        "report",
        help="write the report.html of a run or a sweep anew",
        description="Write the report of a run, of a sweep, or of a table of measurements (NAME.report.html beside it) anew, also while they run.",
    )
    report.add_argument(
        "path", metavar="PATH", help="a run's or a sweep's directory, or measurements as .csv or .parquet"
    )
    report.add_argument(
        "--target",
        metavar="'METRIC >= N'",
        help="of a sweep, as in 'val/accuracy >= 0.9'; default: as in its sweep.yaml",
    )
    report.add_argument("--price", type=price, metavar="X", help="of an hour of one process (a sweep)")
    report.add_argument(
        "--throughput",
        type=throughput,
        metavar="X",
        help="samples a second of one process, or by batch as in 64=800,128=1200 (a sweep); default: as measured",
    )
    report.add_argument(
        "--runs", action="store_true", help="first the reports of a sweep's runs that have none; seconds each"
    )
    report.set_defaults(act=_report)

    fit = commands.add_parser(
        "fit",
        help="the critical batch of a file of measurements",
        description="Fit samples = S_min (1 + B / B_crit) to MLPerf's rcps_*.json, or to a table (.csv, .parquet).",
    )
    fit.add_argument(
        "file",
        metavar="FILE",
        help="rcps_*.json, a sweep's measurements, or a table with batch_size and samples or steps",
    )
    fit.add_argument("--unit", choices=["samples", "epochs"], help="of MLPerf's numbers; default: told by their size")
    fit.add_argument("--dataset-size", type=count, metavar="N", help="samples an epoch, where a file counts epochs")
    fit.add_argument(
        "--target", metavar="'METRIC >= N'", help="of a sweep's measurements; default: as in the sweep.yaml beside them"
    )
    fit.add_argument("--optimizer", metavar="NAME", help="of a sweep's measurements, where they hold several")
    fit.add_argument("--json", action="store_true", help="s_min, b_crit, b_crit_low, b_crit_high and more, as JSON")
    fit.set_defaults(act=_fit)

    convert = commands.add_parser(
        "convert",
        help="measurements from one layout to another",
        description="Read a sweep's directory, a table, or Shallue et al.'s layout; write a table or that layout.",
    )
    convert.add_argument(
        "source", metavar="FROM", help="a sweep's directory, .csv, .parquet, or a directory of DATASET/MODEL/..."
    )
    convert.add_argument("to", metavar="TO", help=".csv or .parquet; without a suffix Shallue et al.'s directories")
    convert.set_defaults(act=_convert)

    recipe = commands.add_parser(
        "recipe",
        help="published learning rates and warm-ups by batch",
        description="What a published recipe says at a batch: learning rate, warm-up, length and the rule's options.",
    )
    recipe.add_argument("name", metavar="NAME", nargs="?", help="as in lamb-bert; without one, all are listed")
    recipe.add_argument(
        "--batch", type=counts, metavar="N,N,...", default=[], help="default: those that were published"
    )
    recipe.add_argument("--json", action="store_true", help="a list of objects instead of a table")
    recipe.set_defaults(act=_recipe)

    plan = commands.add_parser(
        "plan",
        help="memory, time, energy and scaling of a run, before it runs",
        description="What a config would take on machines that need not be here: memory a rank by ZeRO stage, the largest "
        "micro-batch, the time of a step, hours and energy, scaling to 4,096 GPUs. Its assumptions are printed.",
    )
    config(plan, "engine.stage=3")
    plan.add_argument("--nodes", type=count, metavar="N", default=1, help="machines; default: 1")
    plan.add_argument("--gpus-per-node", type=count, metavar="N", default=8, help="default: 8")
    plan.add_argument(
        "--gpu", metavar="NAME", required=True, help="as in h100, a100, h200, or a YAML file with its numbers"
    )
    plan.add_argument("--dataset-size", type=count, metavar="N", help="training samples, where the data are not here")
    plan.add_argument(
        "--critical-batch", metavar="N", help="samples, a run that logs noise_scale, or a file as for fit"
    )
    plan.add_argument("--mfu", type=share, metavar="X", help="share of the GPU's peak that training reaches")
    plan.add_argument(
        "--throughput", type=positive, metavar="X", help="samples a second and GPU, measured; beats --mfu"
    )
    plan.add_argument("--headroom", type=share, metavar="X", default=0.1, help="share of memory to leave; default: 0.1")
    plan.add_argument("--network", type=positive, metavar="GBIT", help="Gbit/s between nodes for each GPU")
    plan.add_argument("--price", type=positive, metavar="X", help="of an hour of one GPU")
    plan.add_argument("--json", action="store_true", help="everything as JSON")
    plan.set_defaults(act=_plan)


def _lr_find(arguments: argparse.Namespace) -> int:
    from bellwether.experiments.lr_find import find

    a = arguments
    return find(a.config, a.overrides, a.nproc, a.low, a.high, a.steps)


def _sweep(arguments: argparse.Namespace) -> int:
    from bellwether.experiments.sweep.start import sweep
    from bellwether.launcher.launch import Request

    given = vars(arguments)
    keys = Request.__dataclass_fields__.keys() - {"config", "overrides", "hostfile"}
    request = Request(config=arguments.sweep, overrides=(), **{key: given[key] for key in keys})
    return sweep(arguments.sweep, request, arguments.jobs, arguments.retry)


def _report(arguments: argparse.Namespace) -> int:
    from bellwether.experiments.analysis import io
    from bellwether.trainer.config import ConfigError

    path, given = Path(arguments.path), vars(arguments)
    options = {key: given[key] for key in ("target", "price", "throughput")}
    if io.is_measured(path):
        from bellwether.experiments import report as sweep

        facts = sweep.load(path, **options)
        if arguments.target is not None and facts.target is not None:
            io.check_measured(facts.target, facts.trials)
        if arguments.runs:
            sweep.write_runs(facts)
        print(sweep.summary(facts, sweep.write(path, facts)))
        return 0
    if not (path / "config.yaml").is_file():
        raise ConfigError(
            "PATH",
            arguments.path,
            "neither a run directory, with a config.yaml, nor a sweep's, with a measurements.csv",
            "give a directory such as runs/bert-tiny",
        )
    for key, value in [*options.items(), ("runs", arguments.runs or None)]:
        if value is not None:
            raise ConfigError(f"--{key}", value, f"is for sweeps, and {path} is a run", "leave it out")
    from bellwether.trainer import report

    report.write(path)
    print(report.summary(path))
    return 0


def _fit(arguments: argparse.Namespace) -> int:
    from bellwether.experiments.analysis.fitting import show

    a = arguments
    return show(a.file, a.unit, a.dataset_size, a.target, a.optimizer, a.json)


def _convert(arguments: argparse.Namespace) -> int:
    from bellwether.experiments.analysis.convert import convert

    return convert(arguments.source, arguments.to)


def _recipe(arguments: argparse.Namespace) -> int:
    from bellwether.experiments.recipe_table import show

    return show(arguments.name, arguments.batch, arguments.json)


def _plan(arguments: argparse.Namespace) -> int:
    from bellwether.experiments.planner.show import Request, show

    given = vars(arguments)
    return show(Request(**{key: given[key] for key in Request.__dataclass_fields__}))

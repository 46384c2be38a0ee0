"""The command ``bellwether``. Imports nothing heavy until a command needs it."""

from __future__ import annotations

import argparse
import math
import os
import sys
from itertools import pairwise


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
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # as `| head` leaves it; there is nobody to tell, also not when Python ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
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

    lr_find = commands.add_parser(
        "lr-find",
        help="learning rate range test, with a suggestion",
        description="Raise the learning rate exponentially until the loss diverges; plot it and suggest one. The run gets a "
        "directory of its own, NAME-lr-find.",
    )
    lr_find.add_argument("config", metavar="CONFIG", help="a YAML file, as in configs/")
    lr_find.add_argument("overrides", metavar="key=value", nargs="*", help="overrides, as in batch.global=4096")
    lr_find.add_argument("--nproc", type=_count, metavar="N", help="number of processes; default: one a GPU, or one")
    lr_find.add_argument("--from", dest="low", type=float, default=1e-6, metavar="LR", help="default: 1e-6")
    lr_find.add_argument("--to", dest="high", type=float, default=1.0, metavar="LR", help="default: 1")
    lr_find.add_argument("--steps", type=_count, default=200, metavar="N", help="from one to the other; default: 200")
    lr_find.set_defaults(act=_lr_find)

    launch = commands.add_parser(
        "launch",
        help="start a run on SLURM, over MPI or ssh, or here",
        description="Start a run where --on says: the same config everywhere.",
    )
    launch.add_argument("config", metavar="CONFIG", help="a YAML file, as in configs/")
    launch.add_argument("overrides", metavar="key=value", nargs="*", help="overrides, as in batch.global=4096")
    launch.add_argument("--on", choices=["local", "slurm", "mpi", "ssh"], default="local", help="default: local")
    _machines(launch)
    launch.add_argument("--hostfile", metavar="FILE", help="one host a line, as in node1 slots=8 (mpi, ssh)")
    launch.add_argument("--dry-run", action="store_true", help="print the script or the command, and do nothing")
    launch.set_defaults(act=_launch)

    sweep = commands.add_parser(
        "sweep",
        help="batches x settings x seeds x optimizers",
        description="Run what a SWEEP.yaml asks for, here or as SLURM job arrays; go on where it stood.",
    )
    sweep.add_argument("sweep", metavar="SWEEP", help="a YAML file, as in configs/experiments/")
    sweep.add_argument("--on", choices=["local", "slurm"], default="local", help="default: local")
    sweep.add_argument("--jobs", type=_count, metavar="N", help="most runs at a time; default: as many as fit, or all")
    sweep.add_argument("--retry", action="store_true", help="try again what failed")
    sweep.add_argument("--dry-run", action="store_true", help="print what would run, and do nothing")
    _machines(sweep)
    sweep.set_defaults(act=_sweep)

    plan = commands.add_parser(
        "plan",
        help="memory, time, energy and scaling of a run, before it runs",
        description="What a config would take on machines that need not be here: memory a rank by ZeRO stage, the largest "
        "micro-batch, the time of a step, hours and energy, scaling to 4,096 GPUs. Its assumptions are printed.",
    )
    plan.add_argument("config", metavar="CONFIG", help="a YAML file, as in configs/")
    plan.add_argument("overrides", metavar="key=value", nargs="*", help="overrides, as in engine.stage=3")
    plan.add_argument("--nodes", type=_count, metavar="N", default=1, help="machines; default: 1")
    plan.add_argument("--gpus-per-node", type=_count, metavar="N", default=8, help="default: 8")
    plan.add_argument(
        "--gpu", metavar="NAME", required=True, help="as in h100, a100, h200, or a YAML file with its numbers"
    )
    plan.add_argument("--dataset-size", type=_count, metavar="N", help="training samples, where the data are not here")
    plan.add_argument(
        "--critical-batch", metavar="N", help="samples, a run that logs noise_scale, or a file as for fit"
    )
    plan.add_argument("--mfu", type=_share, metavar="X", help="share of the GPU's peak that training reaches")
    plan.add_argument(
        "--throughput", type=_positive, metavar="X", help="samples a second and GPU, measured; beats --mfu"
    )
    plan.add_argument(
        "--headroom", type=_share, metavar="X", default=0.1, help="share of memory to leave; default: 0.1"
    )
    plan.add_argument("--network", type=_positive, metavar="GBIT", help="Gbit/s between nodes for each GPU")
    plan.add_argument("--price", type=_positive, metavar="X", help="of an hour of one GPU")
    plan.add_argument("--json", action="store_true", help="everything as JSON")
    plan.set_defaults(act=_plan)

    status = commands.add_parser("status", help="how a run goes", description="Queue state, restarts, progress, ETA.")
    status.add_argument("run", metavar="RUN", help="a run directory, as in runs/bert-large")
    status.set_defaults(act=_status)

    logs = commands.add_parser("logs", help="what rank 0 of a SLURM run prints", description="Rank 0's log.")
    logs.add_argument("run", metavar="RUN", help="a run directory, as in runs/bert-large")
    logs.add_argument("-f", "--follow", action="store_true", help="go on with what is added, until Ctrl-C or the end")
    logs.set_defaults(act=_logs)

    doctor = commands.add_parser(
        "doctor",
        help="is this machine, or the cluster, ready to train?",
        description="Look at every node and between them; say what to do. Ends with 1 when something is red.",
    )
    doctor.add_argument("--on", choices=["local", "slurm", "mpi", "ssh"], default="local", help="default: local")
    doctor.add_argument(
        "--nodes", type=_count, metavar="N", help="default: those of the host file or of the job; outside of a job 2"
    )
    doctor.add_argument("--hostfile", metavar="FILE", help="one host a line (mpi, ssh)")
    _where(doctor)
    doctor.add_argument(
        "--runs", metavar="DIR", default="runs", help="directory of all runs, to be shared by the nodes"
    )
    doctor.add_argument("--timeout", type=_count, metavar="S", help="seconds that the nodes have; default: 240")
    doctor.add_argument("--json", action="store_true", help="rows and facts as JSON, for a program or a bug report")
    doctor.set_defaults(act=_doctor)

    recipe = commands.add_parser(
        "recipe",
        help="published learning rates and warm-ups by batch",
        description="What a published recipe says at a batch: learning rate, warm-up, length and the rule's options.",
    )
    recipe.add_argument("name", metavar="NAME", nargs="?", help="as in lamb-bert; without one, all are listed")
    recipe.add_argument(
        "--batch", type=_counts, metavar="N,N,...", default=[], help="default: those that were published"
    )
    recipe.add_argument("--json", action="store_true", help="a list of objects instead of a table")
    recipe.set_defaults(act=_recipe)

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
    fit.add_argument("--dataset-size", type=_count, metavar="N", help="samples an epoch, where a file counts epochs")
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

    report = commands.add_parser(
        "report",
        help="write the report.html of a run or a sweep anew",
        description="Write the report of a run, of a sweep, or of a table of measurements anew, also while they run.",
    )
    report.add_argument(
        "path", metavar="PATH", help="a run's or a sweep's directory, or measurements as .csv or .parquet"
    )
    report.add_argument(
        "--target",
        metavar="'METRIC >= N'",
        help="of a sweep, as in 'val/accuracy >= 0.9'; default: as in its sweep.yaml",
    )
    report.add_argument("--price", type=_price, metavar="X", help="of an hour of one process (a sweep)")
    report.add_argument(
        "--throughput",
        type=_throughput,
        metavar="X",
        help="samples a second of one process, or by batch as in 64=800,128=1200 (a sweep); default: as measured",
    )
    report.add_argument(
        "--runs", action="store_true", help="first the reports of a sweep's runs that have none; seconds each"
    )
    report.set_defaults(act=_report)
    return parser


def _machines(parser: argparse.ArgumentParser) -> None:
    """What is asked of a cluster: the options that launch and sweep share."""
    parser.add_argument("--nodes", type=_count, metavar="N", help="machines (slurm, mpi); default: 1")
    parser.add_argument("--tasks-per-node", type=_count, metavar="N", help="processes a machine; default: one a GPU")
    parser.add_argument("--cpus-per-task", type=_count, metavar="N", help="cores a process (slurm); default: 8")
    parser.add_argument("--time", metavar="D-HH:MM:SS", help="time limit (slurm); default: 1-00:00:00")
    parser.add_argument(
        "--sbatch",
        metavar="OPTION",
        action="append",
        default=[],
        help="any other option, as in --sbatch=--exclude=node3",
    )
    _where(parser)


def _where(parser: argparse.ArgumentParser) -> None:
    """Which of a cluster's machines: the options that doctor takes too."""
    parser.add_argument(
        "--gpus-per-node",
        type=_number,
        metavar="N",
        help="GPUs, and processes, a machine; 0: none; default on slurm: the site's file, 8, or what a sweep says",
    )
    for name in ("partition", "account", "qos", "constraint"):
        parser.add_argument(f"--{name}", metavar="NAME", help="as sbatch has it (slurm)")
    parser.add_argument(
        "--site", metavar="FILE", help="the cluster's ways; default: slurm/site.yaml, where there is one"
    )


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: write a whole number from 1 up")
    return int(text)


def _counts(text: str) -> list[int]:
    parts = text.split(",")
    if any(
        len(part) == 3 and len(before) <= 3 and int(before or 0) < 512
        for before, part in pairwise(parts)
        if part.isdigit() and before.isdigit()
    ):
        raise argparse.ArgumentTypeError(f"{text!r}: write a number without commas in it, and commas between two")
    return [_count(part.strip()) for part in parts]


def _number(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r}: write a whole number from 0 up")
    return int(text)


def _price(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: write a number from 0 up")
    return value


def _throughput(text: str) -> float | dict[int, float]:
    try:
        pairs = [part.split("=") for part in text.split(",")]
        found = {int(batch): float(value) for batch, value in pairs} if "=" in text else {0: float(text)}
    except ValueError:
        found = {0: math.nan}
    if not all(0 < value < math.inf for value in found.values()):
        raise argparse.ArgumentTypeError(f"{text!r}: write samples a second above 0, or 64=800,128=1200 by batch")
    return found if "=" in text else found[0]


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: write a number above 0")
    return value


def _share(text: str) -> float:
    value = _positive(text)
    if value >= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: write a share between 0 and 1")
    return value


def _plan(arguments: argparse.Namespace) -> int:
    from launcher.planning.show import Request, show

    given = vars(arguments)
    return show(Request(**{key: given[key] for key in Request.__dataclass_fields__}))


def _launch(arguments: argparse.Namespace) -> int:
    from launcher.launch import Request, launch

    given = vars(arguments)
    return launch(Request(**{key: given[key] for key in Request.__dataclass_fields__}))


def _sweep(arguments: argparse.Namespace) -> int:
    from launcher.launch import Request
    from launcher.sweep.start import sweep

    given = vars(arguments)
    keys = Request.__dataclass_fields__.keys() - {"config", "overrides", "hostfile"}
    request = Request(config=arguments.sweep, overrides=(), **{key: given[key] for key in keys})
    return sweep(arguments.sweep, request, arguments.jobs, arguments.retry)


def _status(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from launcher.status import status

    return status(Path(arguments.run))


def _logs(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from launcher.status import logs

    return logs(Path(arguments.run), arguments.follow)


def _recipe(arguments: argparse.Namespace) -> int:
    from launcher.recipe import show

    return show(arguments.name, arguments.batch, arguments.json)


def _fit(arguments: argparse.Namespace) -> int:
    from launcher.sweep.fitting import show

    a = arguments
    return show(a.file, a.unit, a.dataset_size, a.target, a.optimizer, a.json)


def _convert(arguments: argparse.Namespace) -> int:
    from launcher.sweep.convert import convert

    return convert(arguments.source, arguments.to)


def _train(arguments: argparse.Namespace) -> int:
    from launcher.local import train

    return train(arguments.config, arguments.overrides, arguments.nproc)


def _lr_find(arguments: argparse.Namespace) -> int:
    from launcher.lr_find import find

    a = arguments
    return find(a.config, a.overrides, a.nproc, a.low, a.high, a.steps)


def _doctor(arguments: argparse.Namespace) -> int:
    from launcher.doctor import TIMEOUT, doctor

    a = arguments
    said = {key: getattr(a, key) for key in ("gpus_per_node", "partition", "account", "qos", "constraint")}
    given = {key: value for key, value in said.items() if value is not None}
    return doctor(a.on, a.nodes, a.hostfile, a.site, a.runs, a.json, a.timeout or TIMEOUT, given)


def _report(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from launcher.sweep import directory
    from trainer.config import ConfigError

    path, given = Path(arguments.path), vars(arguments)
    options = {key: given[key] for key in ("target", "price", "throughput")}
    if directory.is_measured(path):
        from launcher.sweep import report as sweep

        facts = sweep.load(path, **options)
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
    from trainer import report

    report.write(path)
    print(report.summary(path))
    return 0

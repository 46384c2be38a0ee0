"""The command ``bellwether``. Imports nothing heavy until a command needs it."""

from __future__ import annotations

import argparse
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
    except KeyboardInterrupt:
        return 130
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
    launch.add_argument("--nodes", type=_count, metavar="N", help="machines (slurm, mpi); default: 1")
    launch.add_argument(
        "--gpus-per-node",
        type=_number,
        metavar="N",
        help="GPUs, and processes, a machine; 0: none; default on slurm: 8",
    )
    launch.add_argument("--tasks-per-node", type=_count, metavar="N", help="processes a machine; default: one a GPU")
    launch.add_argument("--cpus-per-task", type=_count, metavar="N", help="cores a process (slurm); default: 8")
    launch.add_argument("--time", metavar="D-HH:MM:SS", help="time limit (slurm); default: 1-00:00:00")
    for name in ("partition", "account", "qos", "constraint"):
        launch.add_argument(f"--{name}", metavar="NAME", help="as sbatch has it (slurm)")
    launch.add_argument(
        "--sbatch",
        metavar="OPTION",
        action="append",
        default=[],
        help="any other option, as in --sbatch=--exclude=node3",
    )
    launch.add_argument("--hostfile", metavar="FILE", help="one host a line, as in node1 slots=8 (mpi, ssh)")
    launch.add_argument(
        "--site", metavar="FILE", help="the cluster's ways; default: slurm/site.yaml, where there is one"
    )
    launch.add_argument("--dry-run", action="store_true", help="print the script or the command, and do nothing")
    launch.set_defaults(act=_launch)

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
    doctor.add_argument(
        "--site", metavar="FILE", help="the cluster's ways; default: slurm/site.yaml, where there is one"
    )
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
        "file", metavar="FILE", help="rcps_*.json, or a table with batch_size and samples, steps or epochs"
    )
    fit.add_argument("--unit", choices=["samples", "epochs"], help="of MLPerf's numbers; default: told by their size")
    fit.add_argument("--dataset-size", type=_count, metavar="N", help="samples an epoch, where a file counts epochs")
    fit.add_argument("--json", action="store_true", help="s_min, b_crit, b_crit_low, b_crit_high and more, as JSON")
    fit.set_defaults(act=_fit)

    report = commands.add_parser(
        "report",
        help="write a run's report.html anew",
        description="Write a run's report anew, also while it runs.",
    )
    report.add_argument("run", metavar="RUN", help="a run directory, as in runs/bert-tiny")
    report.set_defaults(act=_report)
    return parser


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


def _launch(arguments: argparse.Namespace) -> int:
    from launcher.launch import Request, launch

    given = vars(arguments)
    return launch(Request(**{key: given[key] for key in Request.__dataclass_fields__}))


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

    return show(arguments.file, arguments.unit, arguments.dataset_size, arguments.json)


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
    return doctor(a.on, a.nodes, a.hostfile, a.site, a.runs, a.json, a.timeout or TIMEOUT)


def _report(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from trainer import report
    from trainer.config import ConfigError

    run = Path(arguments.run)
    if not (run / "config.yaml").is_file():
        raise ConfigError(
            "RUN",
            arguments.run,
            "no run directory: it has no config.yaml",
            "give a directory such as runs/bert-tiny",
        )
    report.write(run)
    print(report.summary(run))
    return 0

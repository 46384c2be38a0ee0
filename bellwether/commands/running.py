"""The commands that start runs and look after them."""

from __future__ import annotations

import argparse
from pathlib import Path

from bellwether.commands.shared import Commands, config, count, machines, processes, where


def add(commands: Commands) -> None:
    train = commands.add_parser(
        "train",
        help="train on this machine",
        description="Train on this machine, one process a GPU or as many as --nproc says.",
    )
    config(train, "optimizer.lr=2e-3 batch.global=4096")
    processes(train)
    train.set_defaults(act=_train)

    launch = commands.add_parser(
        "launch",
        help="start a run on SLURM, over MPI or ssh, or here",
        description="Start a run where --on says: the same config everywhere.",
    )
    config(launch)
    launch.add_argument("--on", choices=["local", "slurm", "mpi", "ssh"], default="local", help="default: local")
    machines(launch)
    launch.add_argument("--hostfile", metavar="FILE", help="one host a line, as in node1 slots=8 (mpi, ssh)")
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
        "--nodes", type=count, metavar="N", help="default: those of the host file or of the job; outside of a job 2"
    )
    doctor.add_argument("--hostfile", metavar="FILE", help="one host a line (mpi, ssh)")
    where(doctor)
    doctor.add_argument(
        "--runs", metavar="DIR", default="runs", help="directory of all runs, to be shared by the nodes"
    )
    doctor.add_argument("--timeout", type=count, metavar="S", help="seconds that the nodes have; default: 240")
    doctor.add_argument("--json", action="store_true", help="rows and facts as JSON, for a program or a bug report")
    doctor.set_defaults(act=_doctor)


def _train(arguments: argparse.Namespace) -> int:
    from bellwether.launcher.local import train

    return train(arguments.config, arguments.overrides, arguments.nproc)


def _launch(arguments: argparse.Namespace) -> int:
    from bellwether.launcher.launch import Request, launch

    given = vars(arguments)
    return launch(Request(**{key: given[key] for key in Request.__dataclass_fields__}))


def _status(arguments: argparse.Namespace) -> int:
    from bellwether.launcher.status import status

    return status(Path(arguments.run))


def _logs(arguments: argparse.Namespace) -> int:
    from bellwether.launcher.status import logs

    return logs(Path(arguments.run), arguments.follow)


def _doctor(arguments: argparse.Namespace) -> int:
    from bellwether.launcher.doctor import TIMEOUT, doctor

    a = arguments
    said = {key: getattr(a, key) for key in ("gpus_per_node", "partition", "account", "qos", "constraint")}
    given = {key: value for key, value in said.items() if value is not None}
    return doctor(a.on, a.nodes, a.hostfile, a.site, a.runs, a.json, a.timeout or TIMEOUT, given)

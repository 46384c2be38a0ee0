"""The configuration files of a SLURM cluster on one machine."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path


def write(directory: Path, controller: str, port: int, nodes: Mapping[str, str]) -> None:
    """Write slurm.conf, cgroup.conf, mpi.conf, gres.conf, and a hosts file for the nodes.

    Args:
        directory: for these files, and the daemons' state, sockets and logs.
        controller: address of slurmctld.
        port: its port.
        nodes: addresses by name.
    """
    host = socket.gethostname().split(".")[0]
    lines = _slurm_conf(directory, f"{host}({controller})", port)
    text = "".join(f"{key}={value}\n" for key, value in lines.items())
    for name, address in nodes.items():
        text += f"NodeName={name} NodeAddr={address} CPUs=4 RealMemory=4000 Gres=gpu:2 State=UNKNOWN\n"
    all_nodes = f"Nodes={','.join(nodes)} MaxTime=INFINITE State=UP"
    text += f"PartitionName=main {all_nodes} Default=YES PriorityTier=1 GraceTime=60\n"
    text += f"PartitionName=urgent {all_nodes} PriorityTier=10\n"
    (directory / "slurm.conf").write_text(text)
    (directory / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")  # otherwise slurmd requires cgroups
    (directory / "mpi.conf").write_text("PMIxCliTmpDirBase=/dev/shm\n")  # the nodes share /tmp
    # Devices that exist on every machine stand in for GPUs: SLURM counts them without opening them.
    gpus = "".join(f"NodeName={name} Name=gpu File=/dev/tty[0-1]\n" for name in nodes)
    (directory / "gres.conf").write_text(f"AutoDetect=off\n{gpus}")
    addresses = f"{controller} {host}\n" + "".join(f"{address} {name}\n" for name, address in nodes.items())
    (directory / "hosts").write_text(f"127.0.0.1 localhost\n{addresses}")


def _slurm_conf(directory: Path, controller: str, port: int) -> dict[str, str]:
    return {
        "ClusterName": "bellwether",
        "SlurmctldHost": controller,
        "SlurmctldPort": str(port),
        "SlurmUser": "root",
        "SlurmdUser": "root",
        # A requeued job waits until its old credential expires: two minutes by default, at least 5 s.
        "AuthInfo": f"socket={directory}/munge.socket,cred_expire=5",
        "StateSaveLocation": f"{directory}/state",
        "SlurmdSpoolDir": f"{directory}/spool/%n",
        "SlurmctldPidFile": f"{directory}/slurmctld.pid",
        "SlurmdPidFile": f"{directory}/spool/%n/slurmd.pid",
        "SlurmctldLogFile": f"{directory}/slurmctld.log",
        "SlurmdLogFile": f"{directory}/%n.log",
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "JobAcctGatherType": "jobacct_gather/none",
        "SwitchType": "switch/none",
        "MpiDefault": "none",
        "MailProg": "/bin/true",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_Core",
        "SchedulerType": "sched/backfill",
        "SchedulerParameters": "sched_interval=1,batch_sched_delay=0,bf_interval=1,requeue_delay=1",
        "PreemptType": "preempt/partition_prio",
        "PreemptMode": "REQUEUE",
        "ReturnToService": "2",
        "SlurmdParameters": "config_overrides",
        "SlurmctldTimeout": "30",
        "SlurmdTimeout": "30",
        "MessageTimeout": "10",
        "KillWait": "30",
        "GresTypes": "gpu",
        "JobCompType": "jobcomp/none",
    }

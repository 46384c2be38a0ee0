"""The commands that start the doctor's probes."""

from __future__ import annotations

import shlex
import sys

from bellwether.launcher.doctor import (
    commands,
)
from bellwether.launcher.site_config import Site

PROBE = commands.Probe(2, "/work/my runs", "abc", 60, "/work/my code", {"NCCL_IB_HCA": "mlx5"})
TAIL = [
    "-m",
    "bellwether.launcher.doctor.node",
    "--shared",
    "/work/my runs",
    "--nonce",
    "abc",
    "--limit",
    "60",
    "--size",
    "2",
]


def test_srun_allocates_nodes_or_uses_those_of_the_job() -> None:
    site = Site(
        partition="gpu", account="me", gpus_per_node=4, cpus_per_task=8, srun="--mpi=pmix --cpu-bind=none",
        sbatch=["--exclusive", "--mem=0", "--requeue", "--signal=USR2@300", "--output=x", "--time 1-0", "-W", "-C fast"],
    )  # fmt: skip
    assert commands.srun(PROBE, site, in_job=False) == [
        "srun", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--export=ALL", "--kill-on-bad-exit=0", "--wait=0",
        "--job-name=bellwether-doctor", "--immediate=60", "--time=5", "--partition=gpu", "--account=me",
        "--gpus-per-node=4", "--cpus-per-task=8", "--exclusive", "--mem=0", "-C", "fast", "--mpi=pmix",
        "--cpu-bind=none", sys.executable, *TAIL,
    ]  # fmt: skip
    assert commands.srun(PROBE, site, in_job=True) == [
        "srun", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--export=ALL", "--kill-on-bad-exit=0", "--wait=0",
        "--overlap", "--mpi=pmix", "--cpu-bind=none", sys.executable, *TAIL,
    ]  # fmt: skip


def test_node_uses_the_python_of_the_site() -> None:
    assert commands.node(PROBE, Site(venv="/envs/b")) == ["/envs/b/bin/python", *TAIL]
    assert commands.node(PROBE, Site(venv="/envs/b", container="apptainer exec 'my image'")) == [
        "apptainer", "exec", "my image", "python", *TAIL,
    ]  # fmt: skip
    shell = commands.node(PROBE, Site(modules="cuda/12.8 gcc", venv="/envs/b"))
    assert shell == ["bash", "-lc", 'module load cuda/12.8 gcc >&2 && exec "$@"', "doctor", "/envs/b/bin/python", *TAIL]
    merged = commands.with_environment(Site(venv="/a"), {"BELLWETHER_VENV": "/b", "BELLWETHER_INTERFACE": "ib0"})
    assert (merged.venv, merged.interface) == ("/a", "ib0")


def test_mpirun_and_ssh_forward_the_environment_without_tokens() -> None:
    environment = {"PYTHONPATH": "/a b", "BELLWETHER_INTERFACE": "ib0", "HF_TOKEN": "secret"}
    command = commands.mpirun(PROBE, Site(), ["node1", "node2"], environment)
    assert command == [
        "mpirun", "-np", "2", "--map-by", "ppr:1:node", "--bind-to", "none", "--wdir", "/work/my code", "--host",
        "node1,node2", "-x", "BELLWETHER_INTERFACE", "-x", "PYTHONPATH", "-x", "NCCL_IB_HCA", sys.executable, *TAIL,
    ]  # fmt: skip
    alone = commands.mpirun(PROBE, Site(), [], environment, root=True)
    assert "--host" not in alone
    assert "--allow-run-as-root" in alone
    both = commands.ssh(PROBE, Site(), ["me@node1", "node2"], 10123, environment)
    assert [command[:-1] for command in both] == [
        ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", host] for host in ("me@node1", "node2")
    ]
    words = shlex.split(both[1][-1])
    assert words[:3] == ["exec", "sh", "-c"]
    assert words[5:] == [
        "/work/my code", "env", "RANK=1", "WORLD_SIZE=2", "LOCAL_RANK=0", "MASTER_ADDR=node1", "MASTER_PORT=10123",
        sys.executable, *TAIL,
    ]  # fmt: skip
    assert (
        commands.ssh_variables(PROBE, environment) == b"BELLWETHER_INTERFACE=ib0\nPYTHONPATH=/a b\nNCCL_IB_HCA=mlx5\n\n"
    )
    assert "secret" not in str(both)

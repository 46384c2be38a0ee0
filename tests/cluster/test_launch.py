"""bellwether launch, status and logs on a real SLURM; MPI and ssh between hosts that are network namespaces."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.cluster.conftest import (
    STEPS,
    Space,
    bellwether,
    command_lines,
    environment_of,
    listening,
    ranks,
    wait_for_step,
)
from tests.cluster.machine import Cluster


def test_launch_status_and_logs(two: Cluster, space: Space) -> None:
    (space.folder / "site.yaml").write_text(f"gpus_per_node: 1\ncpus_per_task: 1\nvenv: {sys.prefix}\n")
    arguments = (
        "quick.yaml",
        "name=launched",
        "--on",
        "slurm",
        "--nodes",
        "2",
        "--site",
        "site.yaml",
        "--time",
        "10:00",
    )
    shown = bellwether(two, space, "launch", *arguments, "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("#!")
    assert two.run("squeue", "--noheader") == ""
    hold = space.folder / "hold"
    hold.touch()
    done = bellwether(two, space, "launch", *arguments, TEST_HOLD=str(hold))
    assert done.returncode == 0, done.stderr
    early = bellwether(two, space, "status", "runs/launched")
    assert "not started" in early.stdout or "running" in early.stdout, early.stderr
    job = int(re.search(r"submitted job (\d+)", done.stdout)[1])  # type: ignore[index]
    assert f"bellwether logs {Path('runs/launched')} -f" in done.stdout
    assert f"scancel {job}" in done.stdout
    # The submitted script is the one that --dry-run printed.
    assert two.run("scontrol", "write", "batch_script", str(job), "-") == shown.stdout.strip()
    with subprocess.Popen(
        [sys.executable, "-m", "bellwether", "logs", "runs/launched", "-f"], cwd=space.folder, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**two.environment, **space.environment()},
    ) as following:  # fmt: skip
        wait_for_step(two, space, "launched", 3)
        # The heartbeat that knows the length of the run may come seconds after the step.
        deadline = time.monotonic() + 60
        while f"of {STEPS}" not in (running := bellwether(two, space, "status", "runs/launched")).stdout:
            assert time.monotonic() < deadline, running.stdout
            time.sleep(1)
        assert running.returncode == 0, running.stderr
        for words in ("running", f"{job}, running", f"of {STEPS}", "samples/s", "furthest behind: rank", "2 processes"):
            assert words in running.stdout, running.stdout
        hold.unlink()
        two.wait_for(job, "COMPLETED")
        out, error = following.communicate(timeout=600)
    assert "launched: finished" in out, error
    assert not (space.run("launched") / "logs/rank0.log").exists()  # srun keeps the output
    finished = bellwether(two, space, "status", "runs/launched").stdout
    assert re.search(r"^  state +finished$", finished, re.M)
    assert f"{STEPS} of {STEPS}, 100.0%" in finished
    again = bellwether(two, space, "launch", *arguments)
    assert again.returncode == 2
    assert "is finished" in again.stderr


def test_launch_refuses_before_submitting(two: Cluster, space: Space) -> None:
    for arguments, words in (
        (["quick.yaml", "batch.global=15", "--nodes", "2"], "batch.global: 15"),
        (["quick.yaml", "engine.world_size=3", "--nodes", "2"], "engine.world_size: 3: 16 processes"),
        (["quick.yaml", "--partition", "nowhere"], "sbatch refused the job"),
        (["quick.yaml", "--hostfile", "h"], "--hostfile: 'h': does not apply to --on slurm"),
    ):
        done = bellwether(two, space, "launch", *arguments, "--on", "slurm")
        assert done.returncode != 0
        assert words in done.stderr
        assert "Traceback" not in done.stderr
    assert two.run("squeue", "--noheader") == ""


@pytest.fixture(scope="module")
def hosts(two: Cluster, space: Space) -> Iterator[dict[str, str]]:
    """sshd on both nodes, and the environment with which ssh and mpirun reach them."""
    sshd = shutil.which("sshd")
    if sshd is None:
        pytest.skip("no sshd here (scripts/install-system.sh)")
    keys = space.folder / "keys"
    keys.mkdir(mode=0o700)
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(keys / name)], check=True)
    (keys / "authorized").write_text((keys / "user.pub").read_text())
    (keys / "sshd.conf").write_text(
        f"HostKey {keys}/host\nAuthorizedKeysFile {keys}/authorized\nStrictModes no\nPidFile none\n"
        "PermitRootLogin yes\nPasswordAuthentication no\nUsePAM no\n"
    )
    (keys / "ssh.conf").write_text(
        f"Host *\n  IdentityFile {keys}/user\n  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n  LogLevel ERROR\n"
    )
    (space.folder / "hosts").write_text("# two nodes\nnode1 slots=1\nnode2 slots=1\n")
    Path("/run/sshd").mkdir(exist_ok=True)
    client = f"ssh -F {keys}/ssh.conf"
    with ExitStack() as stack:
        for node in two.names:
            stack.enter_context(two.on(node, sshd, "-D", "-f", str(keys / "sshd.conf")))
        for node in two.names:
            _wait_for_port(two.address(node), 22)
        environment = space.environment(BELLWETHER_SSH=client, OMPI_MCA_plm_rsh_agent=client, OMPI_MCA_plm="rsh")
        # Nodes are connected by the bridge only; MPI must not try their loopback interfaces.
        environment |= {"OMPI_MCA_btl_tcp_if_include": "eth0", "OMPI_MCA_oob_tcp_if_include": "eth0"}
        yield environment


def _wait_for_port(address: str, port: int) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            return socket.create_connection((address, port), 5).close()
        except OSError:
            assert time.monotonic() < deadline, f"nothing listens on {address}:{port}"
            time.sleep(0.05)


def command(space: Space, on: str, name: str) -> str:
    launch = f"cd {space.folder} && exec {sys.executable} -m bellwether launch quick.yaml --on {on} --hostfile hosts"
    return f"{launch} name={name} engine.world_size=2"


def check_privacy(cluster: Cluster, name: str, *values: str) -> None:
    """The ranks know these values and their secret, which ps does not show, and listen on the network between the hosts only."""
    shown = command_lines()
    for node, pids in ranks(cluster, name).items():
        assert pids, node
        for pid in pids:
            environment = environment_of(pid)
            for value in (*values, *filter(None, [environment.get("BELLWETHER_SECRET")])):
                assert value in environment.values()
                assert value not in shown
            assert listening(pid) <= {cluster.address(node)}
    launchers = cluster.processes("node1", ["-m bellwether.launcher.ranks", f"name={name}"])
    assert all(listening(pid) <= {cluster.address("node1")} for pid in launchers)


def test_two_hosts_train_over_mpi(two: Cluster, space: Space, hosts: dict[str, str]) -> None:
    with two.on("node1", "bash", "-c", command(space, "mpi", "over-mpi"), **hosts) as process:
        out, _ = process.communicate(timeout=600)
    assert process.returncode == 0, out
    assert "over-mpi: finished" in out
    assert "over-mpi: finished" in bellwether(two, space, "logs", "runs/over-mpi", "-f").stdout
    assert out.count("plan of") == 1
    (start,) = space.events("over-mpi", "start")
    assert start["world_size"] == 2


def test_signal_stops_both_hosts_over_ssh_and_the_same_command_resumes(
    two: Cluster, space: Space, hosts: dict[str, str]
) -> None:
    environment = {**hosts, "TEST_STEP": "0.5", "NCCL_TEST": "a value of mine", "MY_CREDENTIAL": "hunter2"}
    environment |= {"BELLWETHER_FORWARD": "TEST_STEP MY_CREDENTIAL"}
    with two.on("node1", "bash", "-c", command(space, "ssh", "over-ssh"), **environment) as process:
        wait_for_step(two, space, "over-ssh", 3, process=process)
        check_privacy(two, "over-ssh", "a value of mine", "hunter2")
        (launcher,) = two.processes("node1", ["-m bellwether launch", "name=over-ssh"])[:1]
        os.kill(launcher, 15)
        out, _ = process.communicate(timeout=600)
    assert process.returncode == 75, out
    assert re.search(r"stopped by SIGTERM at step \d+", out)
    assert [p for node in two.names for p in two.processes(node, ["-m bellwether.trainer", "name=over-ssh"])] == []
    with two.on("node1", "bash", "-c", command(space, "ssh", "over-ssh"), **hosts) as process:
        out, _ = process.communicate(timeout=600)
    assert process.returncode == 0, out
    assert "over-ssh: finished" in out
    assert out.count("plan of") == 1
    assert [line["world_size"] for line in space.events("over-ssh", "start")] == [2, 2]
    log = bellwether(two, space, "logs", "runs/over-ssh").stdout
    assert re.search(r"stopped by SIGTERM at step \d+", log)
    assert "over-ssh: finished" in log


@pytest.mark.full
def test_ranks_under_srun_with_pmix_are_detected_through_mpi(two: Cluster, space: Space) -> None:
    if "pmix" not in two.run("srun", "--mpi=list", check=False):
        pytest.skip("this SLURM has no pmix")
    out = two.run(
        "srun", "--mpi=pmix", "-N2", "--ntasks-per-node=1", f"--chdir={space.folder}", sys.executable, "-m", "bellwether.trainer",
        "quick.yaml", "name=pmix", "duration=5 steps", "engine.world_size=2", **space.environment(), timeout=600,
    )  # fmt: skip
    assert "pmix: finished" in out


def test_sweep_as_job_arrays_survives_a_requeue(two: Cluster, space: Space) -> None:
    """Two settings in parallel, then the better one with another seed; one is preempted and resumes."""
    (space.folder / "SWEEP.yaml").write_text(
        "{name: swept, config: quick.yaml, batches: [16], seeds: 2, search: {kind: grid}, "
        "space: {optimizer.lr: [1.0e-2, 1.0e-9]}, "
        "set: {duration: 40 steps, evaluate.every: 20 steps, checkpoint.every: 1 steps}}"
    )
    arguments = ("sweep", "SWEEP.yaml", "--on", "slurm", "--time", "10:00")
    done = bellwether(two, space, *arguments, TEST_FIRST_STEP="0.2")
    assert done.returncode == 0, done.stderr
    first, second = (int(job) for job in re.findall(r"submitted job array (\d+)", done.stdout))
    assert "1 trial, after the others" in done.stdout
    again = bellwether(two, space, *arguments)
    assert again.returncode == 2
    assert f"job {first} works on runs/swept" in again.stderr
    trials = space.run("swept") / "trials"
    log = trials / "config-16-001-0" / "metrics.jsonl"
    two.wait(lambda: log.exists() and log.read_text().count('"event": "train"') > 3, 600, "steps of the second run")
    two.run("scontrol", "requeue", f"{first}_2")
    two.wait(lambda: (trials / "config-16-000-1/finished.json").exists(), 900, "the repetition")
    two.wait(lambda: "end" in metrics_of(trials / "config-16-000-1"), 600, "its end")
    two.wait(lambda: not two.run("squeue", "--noheader"), 600, "an empty queue")

    shown = bellwether(two, space, "convert", "runs/swept", "swept.csv")
    assert "3 trials, 6 measurements" in shown.stdout, shown.stderr
    with open(space.folder / "swept.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["status"] for row in rows} == {"complete"}
    assert [(row["seed"], row["parameter/optimizer.lr"], row["step"]) for row in rows] == [
        ("1", "0.01", "20"), ("1", "0.01", "40"), ("1", "1e-09", "20"), ("1", "1e-09", "40"),
        ("2", "0.01", "20"), ("2", "0.01", "40"),
    ]  # fmt: skip
    events = metrics_of(trials / "config-16-001-0")
    assert events.count("start") >= 2
    assert (space.run("swept") / "measurements.csv").read_text() == (space.folder / "swept.csv").read_text()
    assert not (trials / "config-16-000-1/checkpoints").exists()
    assert "nothing is left to do" in bellwether(two, space, *arguments).stdout
    assert second > first


def metrics_of(run: Path) -> list[str]:
    """The events of a run, in order."""
    file = run / "metrics.jsonl"
    return [json.loads(line)["event"] for line in file.read_text().splitlines()] if file.exists() else []

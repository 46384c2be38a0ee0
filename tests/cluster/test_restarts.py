"""What a job does after a failure: starts again inside its allocation, replaces or excludes bad nodes, or submits itself again."""

from __future__ import annotations

import os
import re
import signal

import pytest

from bellwether.trainer import rendezvous
from tests.cluster.conftest import ONE_EACH, TRAIN, Space, bellwether, environment_of, ranks, wait_for_step
from tests.cluster.machine import Cluster

# Stands in for nvidia-smi. The GPU of the node that the file names has fallen off the bus.
NVIDIA_SMI = """#!/bin/sh
if [ "$(hostname)" = "$(cat %s)" ]; then echo "Unable to determine the device handle for GPU: Unknown Error"; exit 9; fi
echo "NVIDIA H100, 550.1, 81559"
echo "NVIDIA H100, 550.1, 81559"
"""


def with_gpus(space: Space, broken: str) -> dict[str, str]:
    """An environment whose ``nvidia-smi`` reports a broken GPU on one node."""
    folder = space.folder / "bin"
    folder.mkdir(exist_ok=True)
    (space.folder / "broken").write_text(broken)
    (folder / "nvidia-smi").write_text(NVIDIA_SMI % (space.folder / "broken"))
    (folder / "nvidia-smi").chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


@pytest.fixture(scope="module")
def whole(three: Cluster, space: Space) -> bytes:
    """The weights of an uninterrupted run on two nodes."""
    job = three.submit(space.folder, "-N2", *ONE_EACH, TRAIN, "quick.yaml", "name=whole-of-2", **space.environment())
    three.wait_for(job, "COMPLETED")
    return space.weights("whole-of-2")


def test_failures_on_one_node_restart_inside_the_allocation_then_exclude_it(
    three: Cluster, space: Space, whole: bytes
) -> None:
    arguments = (TRAIN, "quick.yaml", "name=bad-node", "checkpoint.every=10 steps")
    environment = space.environment(TEST_FAIL="25", TEST_FAIL_ON="node2")
    job = three.submit(space.folder, "-N2", *ONE_EACH, *arguments, **environment)
    three.wait_for(job, "COMPLETED")
    begins = space.begins("bad-node")
    assert space.starts("bad-node") == [(str(job), False), (str(job), False), (str(job), True)]
    nodes = [rendezvous.expand(str(begin["nodes"])) for begin in begins]
    assert nodes == [["node1", "node2"], ["node1", "node2"], ["node1", "node3"]], space.output(job)
    ends = [line for line in space.attempts("bad-node") if line["event"] == "end"]
    assert [end["failed_on"] for end in ends] == [["node2"], ["node2"], []]
    assert three.show(job)["ExcNodeList"] == "node2"
    assert three.show(job)["NodeList"] == "node[1,3]"
    log = space.output(job)
    assert "excluded from now on: node2 (ranks failed there 2 times)" in log
    assert re.search(r"failed with status 1 at step 2\d \(rank 1 on node2\); retries from step 20", log)
    status = bellwether(three, space, "status", "runs/bad-node").stdout
    assert "node2 (ranks failed there 2 times)" in status
    assert space.weights("bad-node") == whole


def test_spare_replaces_a_node_with_a_broken_gpu(three: Cluster, space: Space, whole: bytes) -> None:
    environment = space.environment(BELLWETHER_SPARES="1", **with_gpus(space, "node1"))
    job = three.submit(space.folder, "-N3", *ONE_EACH, TRAIN, "quick.yaml", "name=broken-gpu", **environment)
    three.wait_for(job, "COMPLETED")
    assert [rendezvous.expand(str(begin["nodes"])) for begin in space.begins("broken-gpu")] == [["node2", "node3"]]
    assert "without node1: GPUs: nvidia-smi: Unable to determine the device handle" in space.output(job)
    assert space.weights("broken-gpu") == whole


@pytest.mark.full
def test_spare_replaces_a_node_with_a_broken_gpu_and_one_that_dies(three: Cluster, space: Space, whole: bytes) -> None:
    arguments = (TRAIN, "quick.yaml", "name=spare", "checkpoint.every=10 steps")
    environment = space.environment(TEST_FIRST_STEP="0.2", BELLWETHER_SPARES="1", **with_gpus(space, "node1"))
    job = three.submit(space.folder, "-N3", "--no-kill", *ONE_EACH, *arguments, **environment)
    wait_for_step(three, space, "spare", 15)
    assert {node: len(pids) for node, pids in ranks(three, "spare").items()} == {"node1": 0, "node2": 1, "node3": 1}
    assert "rendezvous at node2:" in space.output(job)
    assert "without node1: GPUs: nvidia-smi: Unable to determine the device handle" in space.output(job)
    (space.folder / "broken").write_text("node3")  # node1 has been mended
    three.kill_node("node2")
    three.run("scontrol", "update", "nodename=node2", "state=down", "reason=test")
    three.wait(lambda: len(space.begins("spare")) == 2 or three.state(job) != "RUNNING", 600, "the next attempt")
    three.bring_back("node2")
    # One node is left: the job is requeued on three nodes, without the bad one where the partition has others.
    (space.folder / "broken").write_text("none")
    three.wait_for(job, "COMPLETED")
    assert int(three.show(job)["NumNodes"]) == 3
    assert space.weights("spare") == whole


@pytest.mark.full
def test_spare_takes_over_inside_the_allocation(three: Cluster, space: Space, whole: bytes) -> None:
    arguments = (
        "launch",
        "quick.yaml",
        "name=spared",
        "checkpoint.every=10 steps",
        "--on",
        "slurm",
        "--nodes=2",
        "--spares=1",
    )
    each = ("--gpus-per-node=1", "--cpus-per-task=1")
    done = bellwether(three, space, *arguments, *each, TEST_FIRST_STEP="0.4")
    assert "2 x 1 processes and 1 spare node" in done.stdout, done.stderr
    job = done.stdout.split()[2].rstrip(":")
    wait_for_step(three, space, "spared", 15)
    three.kill_node("node2")
    three.run("scontrol", "update", "nodename=node2", "state=down", "reason=test")
    three.wait(lambda: len(space.begins("spared")) == 2, 600, "the next attempt")
    three.wait_for(job, "COMPLETED")
    assert three.show(job)["Restarts"] == "0"
    assert space.begins("spared")[1]["nodes"] == "node1,node3"
    assert space.weights("spared") == whole
    three.bring_back("node2")


def test_job_that_may_not_be_requeued_submits_itself_again(three: Cluster, space: Space, whole: bytes) -> None:
    environment = space.environment(TEST_FIRST_STEP="0.4", MY_SETTING="kept")
    # A name may have any characters, and look like a field of what scontrol shows.
    options = (
        "-N2",
        "--no-requeue",
        "--time=30",
        "--comment=a job of mine",
        "--job-name=it's\nmine (1)",
        *ONE_EACH,
    )
    job = three.submit(space.folder, *options, TRAIN, "quick.yaml", "name=forbidden", **environment)
    wait_for_step(three, space, "forbidden", 3)
    three.run("scancel", "--signal=USR2", str(job))
    three.wait(lambda: len(space.begins("forbidden")) == 2, 600, "the next job")
    three.wait_for(job, "COMPLETED")
    assert "is presently disabled" in space.output(job)
    new = int(str(space.begins("forbidden")[1]["job"]))
    assert new > job
    assert space.begins("forbidden")[1]["series"] == str(job)
    three.wait(lambda: any(ranks(three, "forbidden").values()), 600, "its ranks")
    rank = environment_of(next(pid for pids in ranks(three, "forbidden").values() for pid in pids))
    assert (rank["SLURM_JOB_ID"], rank["MY_SETTING"]) == (str(new), "kept")
    assert not [name for name in rank if name in ("BELLWETHER_SERIES", "SLURM_RESTART_COUNT")]
    shown = three.show(new)
    old = three.show(job)
    for field in ("TimeLimit", "NumNodes", "NumTasks", "CPUs/Task", "TresPerNode", "JobName", "WorkDir"):
        assert shown[field] == old[field], field
    three.wait_for(new, "COMPLETED")
    assert list(space.folder.glob(f"it's*mine (1)-{new}.log"))
    assert space.weights("forbidden") == whole


def test_chain_of_jobs_goes_on_and_a_second_job_ends_with_0(three: Cluster, space: Space, whole: bytes) -> None:
    arguments = ("launch", "quick.yaml", "name=chained", "--on", "slurm", "--nodes=2", "--chain=3")
    done = bellwether(three, space, *arguments, "--gpus-per-node=1", "--cpus-per-task=1", TEST_FIRST_STEP="1")
    assert done.returncode == 0, done.stderr
    first = int(done.stdout.split()[2].rstrip(":"))
    wait_for_step(three, space, "chained", 3)
    status = bellwether(three, space, "status", "runs/chained").stdout
    assert f"{first}, running" in status
    # Not part of the chain, and on the third node.
    other = three.submit(
        space.folder, "-N1", *ONE_EACH, TRAIN, "quick.yaml", "name=chained", **space.environment(BELLWETHER_WAIT="2")
    )
    three.wait_for(other, "COMPLETED")
    assert f"job {first} trains in" in space.output(other)
    three.run("scancel", "--signal=USR2", str(first))
    for number in range(3):
        three.wait_for(first + number, "COMPLETED")
    assert [begin["job"] for begin in space.begins("chained")] == [str(first), str(first + 1)]
    assert [begin.get("series") for begin in space.begins("chained")] == ["", str(first)]
    assert "nothing to do" in (space.folder / f"chained-{first + 2}.log").read_text()
    assert space.weights("chained") == whole


@pytest.mark.full
def test_record_that_cannot_be_written_ends_no_run(three: Cluster, space: Space) -> None:
    record = space.run("unrecorded") / "logs/attempts.jsonl"
    record.mkdir(parents=True)
    arguments = (TRAIN, "quick.yaml", "name=unrecorded", "checkpoint.every=1 steps", "duration=30 steps")
    job = three.submit(space.folder, "-N1", *ONE_EACH, *arguments, **space.environment(TEST_STEP="0.2"))
    wait_for_step(three, space, "unrecorded", 3)
    (victim,) = three.processes("node1", ["-m bellwether.trainer", "name=unrecorded"])[-1:]
    os.kill(victim, signal.SIGKILL)
    three.wait_for(job, "COMPLETED")
    assert "writing attempts.jsonl failed" in space.output(job)
    assert space.step("unrecorded") == 30


def test_jobs_that_cannot_work_are_refused(three: Cluster, space: Space) -> None:
    quick = (TRAIN, "quick.yaml", "name=refused")
    alone = three.submit(
        space.folder,
        "-n1",
        "--ntasks-per-node=1",
        "--gpus-per-node=2",
        "--cpus-per-task=1",
        *quick,
        "engine.device=auto",
        **space.environment(),
    )
    het = ("-N1", "-n1", *ONE_EACH, ":", "-N1", "-n1", "--gpus-per-node=1")
    mixed = three.submit(space.folder, *het, *quick, **space.environment())
    for job, words in ((alone, "1 task a node would use as many of its 2 GPUs"), (mixed, "a heterogeneous job")):
        three.wait_for(job, "FAILED")
        assert words in space.output(job)
    assert not (space.run("refused") / "metrics.jsonl").exists()

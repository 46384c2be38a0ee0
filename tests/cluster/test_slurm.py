"""slurm/train.sbatch on a real SLURM: time limits, preemption, failures, lost nodes, cancellation."""

from __future__ import annotations

import os
import re
import signal
import socket
import time

import pytest

from bellwether.trainer import metrics, rendezvous
from tests.cluster.conftest import ONE_EACH, ROOT, STEPS, TRAIN, Space, wait_for_step
from tests.cluster.machine import Cluster


@pytest.fixture(scope="session")
def jobs(two: Cluster, space: Space) -> dict[str, int]:
    """Two simultaneous jobs on two nodes: one with two ranks per node, and one that runs without interruption."""
    pair = ("-N2", "--ntasks-per-node=2", "--gpus-per-node=1", "--cpus-per-task=1", TRAIN, "quick.yaml")
    jobs = {
        "pair": two.submit(
            space.folder, *pair, "name=pair", "duration=20 steps", "batch.micro=4", **space.environment()
        ),
        "whole": two.submit(space.folder, "-N2", *ONE_EACH, TRAIN, "quick.yaml", "name=whole", **space.environment()),
    }
    for job in jobs.values():
        two.wait_for(job, "COMPLETED")
    return jobs


@pytest.fixture(scope="session")
def whole(jobs: dict[str, int], space: Space) -> bytes:
    """The weights of an uninterrupted run on two nodes."""
    return space.weights("whole")


def check_history(space: Space, name: str, restarts: int) -> None:
    """Check that one metrics file has every step once and that the run finished."""
    history = metrics.read(space.run(name))
    assert [line["step"] for line in history.train] == list(range(1, STEPS + 1))
    # SLURM may requeue a job a second time, when it repeats a message that a lost node did not receive.
    assert len(history.start) >= restarts + 1
    assert history.state == "finished"


def test_two_jobs_share_two_nodes_with_different_ports(jobs: dict[str, int], space: Space) -> None:
    log = (space.folder / f"logs/{jobs['pair']}/rank0.log").read_text()
    assert "16 = 4 micro x 1 accumulation x 4 processes" in log
    assert "pair: finished" in log
    for rank in range(1, 4):
        file = space.folder / f"logs/{jobs['pair']}/rank{rank}.log"
        assert not file.exists() or "plan of" not in file.read_text()  # an empty one is deleted
    assert space.step("pair") == 20
    check_history(space, "whole", 0)
    addresses = [re.search(r"rendezvous at (\S+):(\d+)", space.output(job)) for job in jobs.values()]
    assert addresses[0]
    assert addresses[1]
    assert addresses[0][1] == addresses[1][1] == "node1"
    assert addresses[0][2] != addresses[1][2]


@pytest.mark.full
def test_time_limit_while_the_controller_is_down_requeues_the_job(two: Cluster, space: Space, whole: bytes) -> None:
    environment = space.environment(TEST_STEP="0.8")
    # SLURM checks limits every 30 s and may send the signal that much early: here 20 to 50 s after the start.
    options = ("-N2", "--time=10", "--signal=USR2@550", *ONE_EACH)
    job = two.submit(space.folder, *options, TRAIN, "quick.yaml", "name=limited", **environment)
    two.wait_for(job, "RUNNING")
    wait_for_step(two, space, "limited", 1)
    # The job saves and requests its requeue while the controller is down.
    two.wait(lambda: bool(space.events("limited", "checkpoint")), 240, "the signal")
    two.stop_controller()
    time.sleep(3)
    two.start_controller()
    two.wait(lambda: two.state(job) == "PENDING", 240, "the requeue")
    two.run("scontrol", "update", f"jobid={job}", "timelimit=60")  # one requeue is enough
    two.wait_for(job, "COMPLETED")
    assert space.weights("limited") == whole
    reasons = [str(a["reason"]) for a in space.attempts("limited") if a["event"] == "end"]
    assert "after a signal" in reasons[0], space.output(job)
    check_history(space, "limited", len(reasons) - 1)
    assert "stopped by SIGUSR2 at step" in space.output(job)


def test_preempted_job_resumes(two: Cluster, space: Space, whole: bytes) -> None:
    environment = space.environment(TEST_FIRST_STEP="0.4")
    # Occupy the first port that this job would use.
    last = two.submit(space.folder, "--wrap=true")
    port = next(rendezvous.ports(last + 1))
    listen = f"import socket, time\ns = socket.create_server(('', {port}))\ntime.sleep(300)"
    with two.on("node1", "python3", "-c", listen):
        arguments = (TRAIN, "quick.yaml", "name=preempted", "log.trackers=[tensorboard]")
        job = two.submit(space.folder, "-N2", *ONE_EACH, *arguments, **environment)
        assert job == last + 1
        wait_for_step(two, space, "preempted", 5)
        urgent = two.submit(space.folder, "-N2", "--exclusive", "--partition=urgent", "--wrap=sleep 2")
        two.wait_for(urgent, "COMPLETED")
        assert int(two.show(job)["Restarts"]) >= 1
        two.wait_for(job, "COMPLETED")
    assert space.weights("preempted") == whole
    check_history(space, "preempted", 1)
    launches = len(space.events("preempted", "start"))
    assert len(list((space.run("preempted") / "logs/tensorboard").glob("events*"))) == launches
    assert "stopped by SIGTERM at step" in space.output(job)
    first = re.search(r"rendezvous at node1:(\d+)", space.output(job))
    assert first
    assert int(first[1]) != port


# A restart inside the allocation is also in test_restarts.py, and a killed rank in tests/launcher/test_interruptions.py.
@pytest.mark.full
def test_killed_rank_restarts_inside_the_allocation_and_ends_in_the_same_weights(
    two: Cluster, space: Space, whole: bytes
) -> None:
    arguments = (TRAIN, "quick.yaml", "name=killed", "checkpoint.every=10 steps")
    job = two.submit(space.folder, "-N2", *ONE_EACH, *arguments, **space.environment(TEST_STEP="0.1"))
    wait_for_step(two, space, "killed", 15)
    (victim,) = two.processes("node2", ["-m bellwether.trainer", "name=killed"])[-1:]
    os.kill(victim, signal.SIGKILL)
    two.wait_for(job, "COMPLETED")
    assert space.begins("killed")[1]["step"] == 10
    assert two.show(job)["Restarts"] == "0"
    assert space.weights("killed") == whole
    check_history(space, "killed", 1)


@pytest.mark.full
def test_job_survives_a_killed_rank_a_silent_link_and_the_loss_of_each_node(
    two: Cluster, space: Space, whole: bytes
) -> None:
    arguments = (TRAIN, "quick.yaml", "name=unlucky", "checkpoint.every=10 steps", "engine.heartbeat=12")
    job = two.submit(space.folder, "-N2", *ONE_EACH, *arguments, **space.environment(TEST_STEP="0.2"))

    def restarted(attempt: int, step: int) -> None:
        two.wait(lambda: len(space.begins("unlucky")) == attempt, 240, f"attempt {attempt}")
        wait_for_step(two, space, "unlucky", step)

    wait_for_step(two, space, "unlucky", 15)
    (victim,) = two.processes("node2", ["-m bellwether.trainer", "name=unlucky"])[-1:]
    os.kill(victim, signal.SIGKILL)

    restarted(2, 25)
    assert space.begins("unlucky")[1]["step"] == 10
    two.silence("node2")
    two.wait(lambda: "rank 1 on node2 has been silent for" in space.output(job), 120, "the message of the heartbeat")
    two.wait(
        lambda: re.search("rank 0 (has not answered|cannot be reached)", space.output(job)) is not None,
        30,
        "the message of rank 1",
    )
    two.reconnect("node2")

    restarted(3, 35)
    two.kill_node("node2")
    two.wait(lambda: two.state(job) != "RUNNING", 240, "the end of the attempt")
    two.bring_back("node2")

    restarted(4, 45)
    two.kill_node("node1")  # with the batch script
    two.wait(lambda: two.state(job) != "RUNNING", 240, "the end of the attempt")
    two.bring_back("node1")

    two.wait_for(job, "COMPLETED")
    assert space.weights("unlucky") == whole
    check_history(space, "unlucky", 4)
    assert "the previous attempt recorded no end" in space.output(job)
    assert space.attempts("unlucky")[-1]["reason"] == "finished"


# In test_other_jobs.py, the job that is submitted inside another one fails in this way.
@pytest.mark.full
def test_same_failure_twice_stops_the_job(two: Cluster, space: Space) -> None:
    arguments = (TRAIN, "quick.yaml", "name=failing", "checkpoint.every=10 steps")
    job = two.submit(space.folder, "-N1", *ONE_EACH, *arguments, **space.environment(TEST_FAIL="25"))
    two.wait_for(job, "FAILED")
    ends = [a for a in space.attempts("failing") if a["event"] == "end"]
    # Twice on one node, and then on the other one.
    assert [(a["saved"], a["failed_on"]) for a in ends] == [(20, ["node1"]), (20, ["node1"]), (20, ["node2"])]
    assert "failed twice at step" in str(ends[-1]["reason"])
    assert "the test wants this rank to fail" in (space.folder / f"logs/{job}/rank0.log").read_text()


@pytest.mark.full
def test_cancelled_job_saves_a_checkpoint_and_is_not_requeued(two: Cluster, space: Space, whole: bytes) -> None:
    arguments = (TRAIN, "quick.yaml", "name=cancelled")
    environment = space.environment(TEST_FIRST_STEP="0.2", BELLWETHER_RESTARTS="0")
    job = two.submit(space.folder, "-N2", *ONE_EACH, *arguments, **environment)
    wait_for_step(two, space, "cancelled", 20)
    two.run("scancel", str(job))
    two.wait_for(job, "CANCELLED")
    time.sleep(8)  # longer than a requeue takes
    assert two.state(job) == "CANCELLED"
    (end,) = (a for a in space.attempts("cancelled") if a["event"] == "end")
    assert "cancelled" in str(end["reason"])
    assert int(str(end["saved"])) >= 20
    # A second sbatch resumes; a third has nothing to do.
    again = two.submit(space.folder, "-N2", *ONE_EACH, *arguments, **space.environment())
    two.wait_for(again, "COMPLETED")
    assert space.weights("cancelled") == whole
    check_history(space, "cancelled", 1)
    third = two.submit(space.folder, "-N2", *ONE_EACH, *arguments, **space.environment())
    two.wait_for(third, "COMPLETED")
    assert "is finished, nothing to do" in space.output(third)
    check_history(space, "cancelled", 1)


@pytest.mark.full
def test_job_stops_when_no_restarts_are_left(two: Cluster, space: Space) -> None:
    environment = space.environment(TEST_FAIL="3", BELLWETHER_RESTARTS="0")
    job = two.submit(space.folder, "-N1", *ONE_EACH, TRAIN, "quick.yaml", "name=spent", **environment)
    two.wait_for(job, "FAILED")
    assert "BELLWETHER_RESTARTS allows 0 restarts" in space.output(job)
    assert two.show(job)["Restarts"] == "0"


@pytest.mark.full
def test_srun_by_hand_on_three_nodes(three: Cluster, space: Space) -> None:
    # Without the batch script, every task derives address and port itself.
    out = three.run(
        "srun", "-N3", "--ntasks-per-node=1", f"--chdir={space.folder}", os.path.join(os.sys.prefix, "bin/python"), "-m",
        "bellwether.trainer", "quick.yaml", "name=three", "batch.global=15", "duration=10 steps", **space.environment(), timeout=300,
    )  # fmt: skip
    assert "three: finished" in out
    assert space.step("three") == 10


@pytest.mark.full
def test_job_array(three: Cluster, space: Space) -> None:
    runs = space.folder / "runs.txt"
    runs.write_text(
        "quick.yaml name=array1 'duration=5 steps' seed=1\nquick.yaml name=array2 'duration=5 steps' seed=2\n"
    )
    script = str(ROOT / "slurm/sweep.sbatch")
    job = three.submit(space.folder, "--array=1-2", "-N1", *ONE_EACH, script, "runs.txt", **space.environment())
    three.wait(lambda: (space.run("array2") / "finished.json").exists(), 240, "task 2")
    three.wait_for(f"{job}_1", "COMPLETED")
    for task in (1, 2):
        assert f"array{task}: finished" in (space.folder / f"logs/{job}_{task}/rank0.log").read_text()


def test_host_list_parser_agrees_with_scontrol(two: Cluster) -> None:
    for text in ("rack[1-2]n[3-4],x7", "node1", "a[01-03,7],b[9-11]", "n[0-1][2-3]", "c[098-101]"):
        assert rendezvous.expand(text) == two.run("scontrol", "show", "hostnames", text).split()


def test_different_jobs_begin_with_different_ports() -> None:
    assert len({next(rendezvous.ports(job)) for job in range(1000, 1500)}) == 500
    with socket.create_server(("", 0)) as server:
        assert not rendezvous.is_free(server.getsockname()[1])

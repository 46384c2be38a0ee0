"""A job that is submitted inside another one takes nothing from it and does nothing to it."""

from __future__ import annotations

import re
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.conftest import ONE_EACH, TRAIN, Space, command_lines, environment_of, ranks
from tests.cluster.machine import Cluster
from tests.tiers import covering

# Those of a restarted array task with two cores and memory of its own, of a step of it, and of programs in it.
LEFTOVERS = {
    "SLURM_RESTART_COUNT": "7", "SLURM_MEM_PER_CPU": "50", "SLURM_MEM_PER_GPU": "60", "SLURM_DISTRIBUTION": "777", "SLURM_GPUS": "3",
    "SLURM_NTASKS": "9", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "9", "PMI_RANK": "3", "PMIX_RANK": "3", "PMI_SIZE": "9",
    "SBATCH_SIGNAL": "USR2@9", "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "9", "RANK": "3", "WORLD_SIZE": "9",
    "LOCAL_RANK": "3", "MASTER_ADDR": "elsewhere", "TORCHELASTIC_USE_AGENT_STORE": "True", "BELLWETHER_WORLD_SIZE": "9",
}  # fmt: skip


def by_sbatch(name: str) -> str:
    return shlex.join(["sbatch", "-N1", *ONE_EACH, TRAIN, "quick.yaml", f"name={name}", "checkpoint.every=5 steps"])


def by_launch(name: str) -> str:
    python = [
        sys.executable,
        "-m",
        "bellwether",
        "launch",
        "quick.yaml",
        f"name={name}",
        "checkpoint.every=5 steps",
        "--on",
        "slurm",
    ]
    return shlex.join([*python, "--nodes=1", "--gpus-per-node=1", "--cpus-per-task=1"])


@covering(lambda submit: submit is by_sbatch)
@pytest.mark.parametrize("submit", [by_sbatch, by_launch], ids=["sbatch", "launch"])
def test_job_submitted_inside_an_array_task_requeues_and_fails_on_its_own(
    two: Cluster, space: Space, submit: Callable[[str], str]
) -> None:
    name = f"inside-{submit.__name__}"
    leftovers = " ".join(f"{key}={value}" for key, value in LEFTOVERS.items())
    inner = f"export {leftovers}; {submit(name)} > {name}.submitted 2>&1"
    script = f"if [ $SLURM_ARRAY_TASK_ID = 1 ]; then {inner}; fi; sleep 900"
    environment = space.environment(TEST_FAIL="8", TEST_STEP="0.2")
    outer = two.submit(space.folder, "--array=1-2", "-n1", "--requeue", "--wrap", script, **environment)
    try:
        submitted = space.folder / f"{name}.submitted"
        two.wait(
            lambda: submitted.exists() and bool(re.search(r"job (\d+)", submitted.read_text())), 600, "the inner job"
        )
        match = re.search(r"job (\d+)", submitted.read_text())
        assert match
        job = match[1]
        two.wait(lambda: any(ranks(two, name).values()), 600, "a rank of the inner job")
        rank = environment_of(next(pid for pids in ranks(two, name).values() for pid in pids))
        assert rank["BELLWETHER_SECRET"] not in command_lines()
        two.wait_for(job, "FAILED")
        time.sleep(2)
        # Nothing of the outer job has arrived, and what belongs to the inner one has.
        assert {key: rank.get(key) for key in LEFTOVERS if rank.get(key) == LEFTOVERS[key]} in (
            {},
            {"SLURM_STEP_ID": "0"},
        )
        assert (rank["SLURM_JOB_ID"], rank["SLURM_NTASKS"], rank["SLURM_CPUS_PER_TASK"]) == (job, "1", "1")
        assert "SLURM_ARRAY_JOB_ID" not in rank
        assert rank["SLURM_STEP_GPUS"], "GPUs of the job are those of its step"
        assert space.starts(name) == [(job, False), (job, False), (job, True)]
        # Twice on one node, and then on the other one.
        ends = [a for a in space.attempts(name) if a["event"] == "end"]
        assert [(a["saved"], a["failed_on"]) for a in ends] == [(5, ["node1"]), (5, ["node1"]), (5, ["node2"])]
        assert "failed twice at step" in str(ends[-1]["reason"])
        assert "the test wants this rank to fail" in (space.folder / f"logs/{job}/rank0.log").read_text()
        for task in (1, 2):
            shown = two.show(f"{outer}_{task}")
            assert (shown["JobState"], shown["Restarts"]) == ("RUNNING", "0")
    finally:
        two.run("scancel", str(outer), check=False)


def test_sweep_script_does_not_take_the_task_of_another_array(two: Cluster, space: Space) -> None:
    (space.folder / "lines.txt").write_text("quick.yaml name=wrong-line\n")
    script = Path(TRAIN).with_name("sweep.sbatch")
    job = two.submit(
        space.folder, "-N1", *ONE_EACH, str(script), "lines.txt",
        **space.environment(SLURM_ARRAY_JOB_ID="1", SLURM_ARRAY_TASK_ID="1"),
    )  # fmt: skip
    two.wait_for(job, "FAILED")
    assert not space.run("wrong-line").exists()


# test_job_submitted_inside_an_array_task shows the same of a job that only inherits the variables.
@pytest.mark.full
def test_array_task_acts_on_itself_alone(two: Cluster, space: Space) -> None:
    """Of the last task, the job id is the number of the whole array."""
    (space.folder / "two.txt").write_text("".join(f"quick.yaml name=own-{n} stop_after='5 steps'\n" for n in (1, 2)))
    script = Path(TRAIN).with_name("sweep.sbatch")
    environment = space.environment(TEST_FAIL="3")
    job = two.submit(space.folder, "--array=1-2%1", "-N1", *ONE_EACH, str(script), "two.txt", **environment)
    two.wait(lambda: not two.run("squeue", "--noheader", "--jobs", str(job), check=False), 900, "the end of both tasks")
    for number in (1, 2):
        assert [requeued for _, requeued in space.starts(f"own-{number}")] == [False, False, True]

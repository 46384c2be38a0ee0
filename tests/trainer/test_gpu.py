"""Which GPU a process takes: tables over what the tasks of a node see, and what the launcher says."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from bellwether.trainer import distributed, gpu
from bellwether.trainer.config import ConfigError
from bellwether.trainer.environment_rank import is_local_rank_0
from bellwether.trainer.process_info import ProcessInfo

# name -> the GPUs that each task of a node sees, and the index that each takes, or words of the refusal
SEEN: dict[str, tuple[list[str], list[int] | str]] = {
    "all see all": (["abcd"] * 4, [0, 1, 2, 3]),
    "one each (--gpus-per-task=1)": (["a", "b", "c"], [0, 0, 0]),
    "closest, blocks of tasks": (["ab", "ab", "cd", "cd"], [0, 1, 0, 1]),
    "closest, tasks in turn": (["ab", "cd", "ab", "cd"], [0, 0, 1, 1]),
    "closest, one has one": (["ab", "a", "c"], [1, 0, 0]),
    "one task": (["a"], [0]),
    "one task, 8 GPUs (sbatch -n1)": (
        ["abcdefgh"],
        r"8 GPUs of .* are visible to 1 task: .*--ntasks-per-node=8\)?.*--gpus-per-node=1",
    ),
    "two each": (["ab", "cd"], r"4 GPUs .* 2 tasks.*--ntasks-per-node=4.*--gpus-per-task=1"),
    "more than tasks": (["abcd"] * 2, r"4 GPUs .* 2 tasks.*--gpus-per-node=2"),
    "all share one": (["a"] * 4, r"4 tasks of .* see 1 GPUs.*--gpus-per-node=4, or --ntasks-per-node=1"),
    "three on two": (["ab", "ab", "ab"], "3 tasks of .* see 2 GPUs"),
    "one sees none": (["a", ""], "2 tasks of .* see 1 GPUs"),
}


@pytest.mark.parametrize("name", SEEN)
def test_gpu_of_each_task_of_a_node(name: str) -> None:
    seen, expected = SEEN[name]
    if isinstance(expected, list):
        assert gpu.assign(seen) == expected
        return
    with pytest.raises(ConfigError, match=expected):
        gpu.assign(seen)


def test_idle_gpus_of_a_machine_without_slurm_are_allowed() -> None:
    assert gpu.assign(["abcd"] * 2, from_slurm=False) == [0, 1]


@pytest.mark.parametrize(
    ("launcher", "environment", "expected"),
    [
        ("srun", {"SLURM_STEP_TASKS_PER_NODE": "8(x2),4", "SLURM_NODEID": "2"}, 4),
        ("srun", {"SLURM_STEP_TASKS_PER_NODE": "8(x2),4", "SLURM_NODEID": "1"}, 8),
        ("srun", {}, None),
        ("mpirun", {"OMPI_COMM_WORLD_LOCAL_SIZE": "3"}, 3),
        ("none", {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1"}, 1),
        ("none", {}, None),
        ("torchrun", {"SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_NODEID": "0"}, None),
    ],
)
def test_number_of_tasks_on_this_node(launcher: str, environment: dict[str, str], expected: int | None) -> None:
    assert gpu.tasks_here(ProcessInfo(0, 8, 0, "a", 1, launcher), environment) == expected


def choose(
    monkeypatch: pytest.MonkeyPatch, launcher: str, local_rank: int, visible: list[str], **environment: str
) -> int:
    """The GPU of a process; the tasks of its node are played one after another, the last one for real."""
    for name in [name for name in os.environ if name.startswith(("SLURM_", "OMPI_", "CUDA_", "LOCAL_"))]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    own = visible[local_rank]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(own))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=own[index]))
    store = dist.HashStore()
    process = ProcessInfo(local_rank, len(visible), local_rank, "a", 1, launcher, secret="s")
    for other, seen in enumerate(visible):
        signed = gpu.SignedStore(store, "gpus/", "s")
        if other != local_rank:
            signed.set(f"{gpu.socket.gethostname()}/{other}", list(seen))
    return gpu.choose(process, store)


STEP = {"SLURM_STEP_ID": "0", "SLURM_NODEID": "0"}


def test_tasks_of_srun_tell_each_other_what_they_see(monkeypatch: pytest.MonkeyPatch) -> None:
    four = {**STEP, "SLURM_STEP_TASKS_PER_NODE": "4", "SLURM_STEP_NUM_TASKS": "4"}
    assert choose(monkeypatch, "srun", 3, ["ab", "cd", "ab", "cd"], **four) == 1
    assert choose(monkeypatch, "srun", 3, ["a", "b", "c", "d"], **four) == 0
    with pytest.raises(ConfigError, match="4 tasks of"):
        choose(monkeypatch, "srun", 3, ["a", "b", "c", "c"], **four)
    with pytest.raises(ConfigError, match=r"2 GPUs of .* are visible to 1 task"):
        choose(monkeypatch, "none", 0, ["ab"], **STEP, SLURM_STEP_NUM_TASKS="1", SLURM_STEP_TASKS_PER_NODE="1")


def test_tasks_wait_for_one_another_as_long_as_for_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers of the tasks of a node may start many minutes apart: the store's own timeout is engine.collective_timeout."""
    waits: list[tuple[Any, ...]] = []
    store: Any = SimpleNamespace(
        wait=lambda *arguments: waits.append(arguments), set=lambda *_: None, check=lambda _: False
    )
    gpu._exchange(ProcessInfo(0, 2, 0, "a", 1, "srun"), store, 2, ["x"])
    (arguments,) = waits
    assert len(arguments) == 1


def test_other_launchers_show_all_gpus_to_all(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose(monkeypatch, "torchrun", 2, ["abcd"] * 4, LOCAL_RANK="2") == 2
    with pytest.raises(ConfigError, match="there are 2 GPUs here"):
        choose(monkeypatch, "torchrun", 2, ["ab"] * 3, LOCAL_RANK="2")
    with pytest.raises(ConfigError, match="is not set, so every process"):
        gpu._by_local_rank(ProcessInfo(0, 2, 0, "a", 1, "environment"), 2, local_rank_given=False)


def test_mig_instance_is_chosen_before_cuda_takes_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    two: dict[str, Any] = {**STEP, "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_STEP_NUM_TASKS": "2"}
    names = ["MIG-a", "MIG-b"]
    monkeypatch.setattr(gpu, "_identities", lambda: pytest.fail("initializes CUDA"))

    def run(visible: list[list[str]]) -> int:
        return choose(monkeypatch, "srun", 1, visible, **two, CUDA_VISIBLE_DEVICES=",".join(visible[1]))  # type: ignore[arg-type]

    assert run([names, names]) == 0
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "MIG-b"
    assert run([["MIG-a"], ["MIG-b"]]) == 0
    assert gpu.mig_instances({"CUDA_VISIBLE_DEVICES": "0,1"}) == []
    assert gpu.mig_instances({}) == []


def test_deepspeed_is_told_the_index_of_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes LOCAL_RANK for that, and fails with 'invalid device ordinal' where each task sees one GPU."""
    for name in ("LOCAL_RANK", "BELLWETHER_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"):
        monkeypatch.setenv(name, "3")
    distributed._set_local_rank(3, torch.device("cuda", 0))
    assert (os.environ["LOCAL_RANK"], os.environ["OMPI_COMM_WORLD_LOCAL_RANK"]) == ("0", "0")
    assert not is_local_rank_0()
    distributed._set_local_rank(3, torch.device("cpu"))
    assert os.environ["LOCAL_RANK"] == "3"

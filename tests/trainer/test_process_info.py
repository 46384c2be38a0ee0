"""Rank, world size and rendezvous address are detected from what each launcher sets."""

from __future__ import annotations

import os

import pytest
import torch

from bellwether.trainer import distributed, process_info, rendezvous
from bellwether.trainer.config import ConfigError
from bellwether.trainer.environment_rank import environment_rank, is_local_rank_0

STEP = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1",
        "SLURM_JOB_ID": "123", "SLURM_STEP_NODELIST": "gpu[01-04]", "SLURM_JOB_NODELIST": "gpu[01-04]"}  # fmt: skip
TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "29400"}
OURS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_", "SLURM_", "OMPI_", "PMI", "TORCHELASTIC_", "BELLWETHER_")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(OURS)]:
        monkeypatch.delenv(name)


def detect(monkeypatch: pytest.MonkeyPatch, **environment: str) -> process_info.ProcessInfo:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return process_info.detect()


def test_process_without_launcher_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert detect(monkeypatch) == process_info.ProcessInfo(0, 1, 0, "127.0.0.1", 0, "none", one_machine=True)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (TORCHRUN, False),
        ({**TORCHRUN, "LOCAL_WORLD_SIZE": "2"}, False),
        ({**TORCHRUN, "LOCAL_WORLD_SIZE": "4"}, True),
        ({**TORCHRUN, "MASTER_ADDR": "127.0.0.1"}, True),
        (STEP, False),
        ({**STEP, "SLURM_STEP_NUM_NODES": "4"}, False),
        ({**STEP, "SLURM_STEP_NUM_NODES": "1"}, True),
    ],
)
def test_runs_on_one_machine_are_known(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: bool
) -> None:
    assert detect(monkeypatch, **environment).one_machine is expected


def test_secret_is_taken_out_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    found = detect(monkeypatch, **TORCHRUN, BELLWETHER_SECRET="abc")
    assert found.secret == "abc"
    assert "BELLWETHER_SECRET" not in os.environ
    assert "abc" not in repr(found)


def test_torchrun_takes_precedence_over_srun_and_mpirun(monkeypatch: pytest.MonkeyPatch) -> None:
    # torchrun inside a task of srun or mpirun: its variables describe the processes.
    outer = {**STEP, "OMPI_COMM_WORLD_RANK": "0", "TORCHELASTIC_RUN_ID": "x"}
    assert detect(monkeypatch, **outer, **TORCHRUN) == process_info.ProcessInfo(3, 4, 1, "a", 29400, "torchrun")
    assert environment_rank() == 3


MPI = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}
# name -> environment, launcher or words of the refusal
LEFT_OVER = {
    "equal, as from enroot's hook": ({**STEP, "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "gpu01"}, "srun"),
    "a launcher once a node": ({**STEP, "RANK": "41", "WORLD_SIZE": "64", "LOCAL_RANK": "1", "MASTER_ADDR": "a"}, "environment"),
    "the same, in mpirun": ({**MPI, "RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1", "MASTER_ADDR": "a"}, "environment"),
    "our own launcher in a step": ({**STEP, **TORCHRUN, "BELLWETHER_WORLD_SIZE": "4"}, "environment"),
    "a launcher in a shell of its own": ({**STEP, **TORCHRUN, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0",
                                          "SLURM_TASK_PID": "1"}, "environment"),
    "in a batch script": ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "8", **TORCHRUN}, "environment"),
    "another rank and size": ({**STEP, **TORCHRUN}, "RANK=3 and WORLD_SIZE=4 contradict srun's SLURM_PROCID=5 and SLURM_STEP_NUM_TASKS=8"),
    "another rank": ({**STEP, **TORCHRUN, "WORLD_SIZE": "8"}, "unset RANK WORLD_SIZE LOCAL_RANK"),
    "another node's": ({**STEP, **TORCHRUN, "WORLD_SIZE": "64"}, "contradict srun's"),
    "a single task of srun": ({**STEP, **TORCHRUN, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0",
                               "SLURM_TASK_PID": str(os.getpid())}, "contradict srun's SLURM_PROCID=0"),
    "mpirun's": ({**MPI, **TORCHRUN, "WORLD_SIZE": "3"}, "contradict mpirun's OMPI_COMM_WORLD_RANK=1"),
    "a heterogeneous job": ({**STEP, "SLURM_HET_SIZE": "2"}, "SLURM_HET_SIZE: '2': a heterogeneous job"),
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT_OVER)
def test_variables_of_another_launcher_are_refused_naming_both(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    environment, expected = LEFT_OVER[name]
    if expected in ("srun", "environment"):
        assert detect(monkeypatch, **environment).launcher == expected
        return
    with pytest.raises(ConfigError, match=expected):
        detect(monkeypatch, **environment)


def test_srun_with_master_addr_from_the_batch_script(monkeypatch: pytest.MonkeyPatch) -> None:
    found = detect(monkeypatch, **STEP, MASTER_ADDR="10.0.0.1", MASTER_PORT="12345")
    assert found == process_info.ProcessInfo(5, 8, 1, "10.0.0.1", 12345, "srun")
    assert environment_rank() == 5
    assert not is_local_rank_0()


def test_srun_by_hand_uses_the_first_node_and_the_jobs_port(monkeypatch: pytest.MonkeyPatch) -> None:
    found = detect(monkeypatch, **STEP)
    assert (found.address, found.port) == ("gpu01", next(rendezvous.ports(123)))
    other = detect(monkeypatch, SLURM_STEP_ID="1")
    assert other.port != found.port


def test_batch_script_is_one_process_despite_slurm_ntasks(monkeypatch: pytest.MonkeyPatch) -> None:
    found = detect(monkeypatch, SLURM_PROCID="0", SLURM_NTASKS="8", SLURM_JOB_ID="1", SLURM_JOB_NODELIST="a[1-8]")
    assert (found.rank, found.size) == (0, 1)


def test_pmi_variables_of_srun_do_not_need_mpi4py(monkeypatch: pytest.MonkeyPatch) -> None:
    pmi = {"PMI_RANK": "5", "PMI_SIZE": "8", "PMIX_RANK": "5"}
    found = detect(monkeypatch, **STEP, **pmi, MASTER_ADDR="a", MASTER_PORT="1")
    assert found.launcher == "srun"
    monkeypatch.setattr(process_info.importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("MASTER_ADDR")
    assert process_info.detect().launcher == "srun"


def test_single_task_of_srun_is_alone_despite_pmi_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    found = detect(
        monkeypatch, **{**STEP, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, PMIX_RANK="0", PMI_SIZE="1"
    )
    assert (found.rank, found.size, found.launcher) == (0, 1, "none")


def test_gpus_from_slurm_that_torch_does_not_find_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setenv("SLURM_JOB_GPUS", "0,1")
    with pytest.raises(RuntimeError, match=r"SLURM_JOB_GPUS gives this process GPUs, but torch finds none"):
        distributed.start("auto")


@pytest.mark.parametrize(
    ("launcher", "environment", "refused"),
    [
        ("mpirun", {"SLURM_STEP_NUM_TASKS": "1"}, False),  # mpirun inside srun --pty bash
        ("environment", {"SLURM_STEP_NUM_TASKS": "1"}, False),
        ("mpirun", {"OMPI_COMM_WORLD_SIZE": "4"}, True),  # mpi4py built for another MPI: each process is alone
        ("srun", {"SLURM_STEP_NUM_TASKS": "4"}, True),
        ("none", {"SLURM_STEP_NUM_TASKS": "4"}, True),
        ("torchrun", {"BELLWETHER_WORLD_SIZE": "4"}, True),
    ],
)
def test_world_size_is_checked_against_the_launchers_variable(
    monkeypatch: pytest.MonkeyPatch, launcher: str, environment: dict[str, str], refused: bool
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    world = distributed.World(0, 2, 0, torch.device("cpu"), launcher)
    if refused:
        with pytest.raises(ConfigError, match="asked for 4 processes"):
            distributed.check_world_size(world, None)
        return
    distributed.check_world_size(world, None)
    with pytest.raises(ConfigError, match=r"engine\.world_size asked for 3"):
        distributed.check_world_size(world, 3)


def test_mpirun_without_mpi4py_needs_master_addr(monkeypatch: pytest.MonkeyPatch) -> None:
    mpi = {"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}
    monkeypatch.setitem(__import__("sys").modules, "mpi4py", None)
    with pytest.raises(ConfigError, match=r"mpi4py cannot be imported.*bellwether\[mpi\]"):
        detect(monkeypatch, **mpi)
    assert detect(monkeypatch, MASTER_ADDR="a", MASTER_PORT="7") == process_info.ProcessInfo(2, 4, 0, "a", 7, "mpirun")


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({**TORCHRUN, "RANK": "one"}, "RANK: 'one': is no number"),
        ({"WORLD_SIZE": "4"}, "RANK: is not set, but others are"),
        ({"RANK": "0"}, "WORLD_SIZE: is not set"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR: is not set"),
    ],
)
def test_incomplete_environment_is_refused(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        detect(monkeypatch, **environment)


def test_host_list_is_expanded_without_scontrol(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert rendezvous.hosts("rack[1-2]n[3-4],x7") == ["rack1n3", "rack1n4", "rack2n3", "rack2n4", "x7"]
    for wrong in ("", "a[1-2", "a]1[", "a[x-y]", "a[2-1]", "a,,b"):
        with pytest.raises(ValueError, match=r"no list of hosts|no range"):
            rendezvous.hosts(wrong)


def test_unknown_interface_is_refused_naming_the_existing_ones() -> None:
    assert rendezvous.address("lo") == "127.0.0.1"
    with pytest.raises(ValueError, match=r"ib9.*interfaces with one: .*lo"):
        rendezvous.address("ib9")


def test_rendezvous_prints_assignments_for_the_batch_script(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "123")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "1")
    assert rendezvous.main() == 0
    first, secret = capsys.readouterr().out.split(" BELLWETHER_SECRET=")
    port = next(port for port in rendezvous.ports(123) if rendezvous.is_free(port, "127.0.0.1"))
    assert first == f"export MASTER_ADDR=127.0.0.1 MASTER_PORT={port}"
    assert len(secret.strip()) == 64
    assert rendezvous.main() == 0
    again, other = capsys.readouterr().out.split(" BELLWETHER_SECRET=")
    assert again == first
    assert other != secret
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert rendezvous.main() == 0
    assert not capsys.readouterr().out.startswith(first)
    # Between machines, an address that they cannot reach is refused before anybody waits for it.
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    monkeypatch.setenv("BELLWETHER_INTERFACE", "lo")
    assert rendezvous.main() == 2
    assert "127.0.0.1 is 127.0.0.1 on " in capsys.readouterr().err
    monkeypatch.setenv("BELLWETHER_INTERFACE", "ib9")
    assert rendezvous.main() == 2
    assert "BELLWETHER_INTERFACE: interface 'ib9'" in capsys.readouterr().err

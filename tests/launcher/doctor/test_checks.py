"""The rows that the doctor derives from facts, and the table."""

from __future__ import annotations

import copy
import importlib.metadata
from collections.abc import Callable
from typing import Any

import pytest

from bellwether.launcher import doctor
from bellwether.launcher.doctor import (
    checks,
    software_checks,
    table,
)
from bellwether.launcher.doctor.result import GREEN, RED, YELLOW, Expected, Row

GB = 10**9


def healthy(rank: int) -> dict[str, Any]:
    """The facts of a healthy node with two GPUs."""
    disk = {"path": "/work", "free": 500 * GB, "inodes": 10**7}
    return {
        "kind": "node", "rank": rank, "host": f"node{rank + 1}", "addresses": [f"10.0.0.{rank + 1}"], "nodelist": None,
        "python": "3.11.7", "executable": "/venv/bin/python",
        "packages": {"torch": "2.13.0+cu130", "deepspeed": "0.19.8", "mpi4py": None},
        "imports": {"torch": 2.5, "deepspeed": 3.5},
        "gpu": {"torch": 2, "cuda": "13.0", "count": 2, "names": ["NVIDIA H100"], "driver": "580.1"},
        "compiler": {"path": "/usr/bin/c++"}, "locks": [], "cores": {"visible": 16, "all": 16, "omp": "8"},
        "disks": {place: dict(disk) for place in ("runs", "cache", "shm", "temp")},
        "ports": {"tried": 20, "free": 20, "ephemeral": 32768}, "time": 0.0,
    }  # fmt: skip


CLUSTER = {
    "kind": "cluster", "size": 2, "rendezvous": "node1:10001", "interface": None, "missing": [], "hosts": ["node1", "node2"],
    "names": {"resolved": 2, "wrong": [], "count": 0}, "shared": {"dir": "/work", "unseen": [], "seconds": 0.1},
    "clocks": [["node1", 0.0, 0.0], ["node2", 0.002, 0.0001]],
    "gloo": {"bytes": 64 * 10**6, "seconds": 0.1, "gb_s": 0.64}, "nccl": {"bytes": 256 * 10**6, "seconds": 0.01, "gb_s": 25.6},
}  # fmt: skip


def test_healthy_nodes_give_green_rows_only() -> None:
    rows = checks.rows([healthy(1), healthy(0)], CLUSTER, [], Expected(2, "slurm", gpus=2, bounds={"torch": "2.6"}))
    assert {row.state for row in rows} == {GREEN}
    assert not any(row.do for row in rows)
    seen = {row.check: row.seen for row in rows}
    assert seen["nodes"] == "node1, node2 answered, all 2"
    assert seen["GPUs"] == "2 a node, NVIDIA H100"
    assert seen["NCCL"].startswith("25.60 GB/s")
    assert "2.13.0+cu130" in seen["packages"]


def set_to(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(facts: dict[str, Any]) -> None:
        *way, last = path.split(".")
        for key in way:
            facts = facts[key]
        facts[last] = value

    return change


LOCK = {"path": "/ext/fused_adam/lock", "age_s": 7200, "builders": 0}


@pytest.mark.parametrize(
    ("path", "value", "check", "state", "words"),
    [  # facts of the second node
        ("python", "3.10.1", "python", RED, ["3.11.7 on node1", "3.10.1 on node2", "same Python"]),
        ("packages.torch", "2.12.0", "torch", RED, ["2.13.0+cu130 on node1", "2.12.0 on node2", "lock.txt"]),
        ("packages.deepspeed", None, "deepspeed", RED, ["not installed on node2", "pip install 'bellwether[train]'"]),
        ("packages.mpi4py", "4.1", "mpi4py", YELLOW, ["not installed on node1", "bellwether[mpi]"]),
        ("imports.torch", "ImportError: libcuda", "imports", RED, ["import torch", "ImportError: libcuda on node2"]),
        ("imports.torch", 40.0, "imports", YELLOW, ["44 s on node2", "container or on local disk"]),
        ("gpu", {"error": "driver mismatch"}, "GPUs", RED, ["driver mismatch on node2", "--exclude"]),
        ("gpu.torch", 0, "GPUs", RED, ["no GPU on node2", "CUDA 13.0", "580.1"]),
        ("gpu", {"torch": 0, "cuda": None, "count": 2}, "GPUs", RED, ["without CUDA", "CUDA build"]),
        ("gpu", {"torch": 1, "count": 1}, "GPUs", RED, ["1 on node2", "2 were expected", "gpus_per_node"]),
        ("gpu.torch", 3, "GPUs", RED, ["2 on node1", "3 on node2"]),
        ("gpu.names", ["NVIDIA A100"], "GPUs", YELLOW, ["NVIDIA A100 on node2", "slowest GPU limits"]),
        ("gpu.driver", "570.9", "driver", YELLOW, ["580.1 on node1", "570.9 on node2"]),
        ("compiler.path", None, "compiler", YELLOW, ["no C++ compiler on node2", "CXX"]),
        ("compiler.error", "no cmath", "compiler", YELLOW, ["/usr/bin/c++", "no cmath on node2"]),
        ("locks", [LOCK], "JIT locks", RED, ["on node2", "2 h old", "rm /ext/fused_adam/lock"]),
        ("locks", [{**LOCK, "age_s": 30}], "JIT locks", YELLOW, ["30 s old", "unless another machine"]),
        ("cores.omp", "64", "cores", YELLOW, ["OMP_NUM_THREADS=64", "16 cores on node2", "unset"]),
        ("disks.runs.free", 9 * GB, "runs", YELLOW, ["9.0 GB free in /work on node2", "--runs"]),
        ("disks.runs.free", GB // 2, "runs", RED, ["500 MB"]),
        ("disks.cache.free", 9 * GB, "cache", YELLOW, ["9.0 GB", "data.cache"]),
        ("disks.cache.inodes", 5_000, "cache", YELLOW, ["5,000 inodes", "node2"]),
        ("disks.cache.inodes", 5, "cache", RED, ["5 inodes"]),
        ("disks.runs.error", "Read-only file system", "runs", RED, ["/work on node2: Read-only"]),
        ("disks.shm.free", 64 * 10**6, "/dev/shm", RED, ["64 MB", "--ipc=host"]),
        ("disks.temp.free", GB // 2, "temp", YELLOW, ["500 MB", "TMPDIR"]),
        ("addresses", [], "host name", RED, ["node2", "own name", "/etc/hosts"]),
        ("addresses", ["127.0.1.1"], "host name", YELLOW, ["node2", "127.0.1.1", "interface"]),
        ("interface", {"name": "ib0", "error": "no ib0"}, "interface", RED, ["node2: no ib0", "BELLWETHER_INTERFACE"]),
        ("ports.free", 0, "ports", RED, ["all 20", "node2", "ss -tlnp"]),
        ("ports.ephemeral", 1024, "ports", YELLOW, ["from 1024 up on node2", "ip_local_port_range"]),
    ],
)  # fmt: skip
def test_problem_of_one_node_is_the_only_row_that_is_not_green(
    path: str, value: Any, check: str, state: str, words: list[str]
) -> None:
    second = healthy(1)
    set_to(path, value)(second)
    gpus = 2 if value == {"torch": 1, "count": 1} else None
    rows = checks.rows([healthy(0), second], CLUSTER, [], Expected(2, "slurm", gpus=gpus))
    assert_row(rows, check, state, words)


def assert_row(rows: list[Row], check: str, state: str, words: list[str]) -> None:
    """Check this row, and that all other rows are green."""
    wrong = [row for row in rows if row.state != GREEN]
    assert [(row.check, row.state) for row in wrong] == [(check, state)]
    assert wrong[0].do
    for word in words:
        assert word in f"{wrong[0].seen} {wrong[0].do}"


@pytest.mark.parametrize(
    ("path", "value", "check", "state", "words"),
    [
        ("missing", [1], "rendezvous", RED, ["node2 did not connect to node1:10001", "ports", "interface"]),
        ("names", {"resolved": 2, "wrong": [["node1", "node2", "127.0.1.1"]], "count": 3}, "names", RED,
         ["on node1, node2", "127.0.1.1", "2 more", "/etc/hosts"]),
        ("shared.unseen", ["node2"], "shared", RED, ["node2 cannot see", "/work", "same path"]),
        ("shared.error", "No space left", "shared", RED, ["No space left", "/work"]),
        ("clocks", [["node1", 0, 0], ["node2", -4.0, 0.001]], "clocks", YELLOW, ["node2 is 4.0 s behind", "chronyd"]),
        ("clocks", [["node1", 0, 0], ["node2", 60.0, 0.001]], "clocks", RED, ["node2 is 60.0 s ahead"]),
        ("gloo.gb_s", 0.02, "gloo", YELLOW, ["0.02 GB/s", "interface"]),
        ("nccl.gb_s", 0.3, "NCCL", YELLOW, ["0.30 GB/s", "NCCL_IB_HCA"]),
        ("nccl", {"error": "unhandled system error"}, "NCCL", RED, ["unhandled system error", "NCCL_DEBUG=INFO"]),
    ],
)  # fmt: skip
def test_problem_between_nodes_is_the_only_row_that_is_not_green(
    path: str, value: Any, check: str, state: str, words: list[str]
) -> None:
    cluster = copy.deepcopy(CLUSTER)
    set_to(path, value)(cluster)
    assert_row(checks.rows([healthy(0), healthy(1)], cluster, [], Expected(2, "ssh")), check, state, words)


def test_clock_skew_within_the_measurement_error_is_green() -> None:
    cluster = {**CLUSTER, "clocks": [["node1", 0, 0], ["node2", 1.5, 0.8]]}
    rows = checks.rows([healthy(0), healthy(1)], cluster, [], Expected(2, "ssh"))
    assert {row.state for row in rows} == {GREEN}


def test_lock_of_a_build_on_another_node_is_not_stale() -> None:
    first, second = healthy(0), healthy(1)
    first["locks"], second["locks"] = [LOCK], [{**LOCK, "builders": 2}]
    (row,) = software_checks.jit_locks([first, second])
    assert row.state == GREEN
    assert "build in progress" in row.seen


def test_packages_older_than_the_minimum_are_red(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = Expected(1, "mpi", bounds={"torch": "2.14", "deepspeed": "0.19.8"})
    only = healthy(0)
    only["packages"]["mpi4py"] = "4.1"
    assert_row(checks.rows([only], None, [], expected), "torch", RED, ["2.13.0+cu130 is older than 2.14", "--upgrade"])
    # The minimum versions of pyproject.toml, from the metadata of the installed package: a bound of an extra is the higher one.
    assert doctor.minimum_versions().keys() >= {"torch", "deepspeed", "mpi4py"}
    declared = [
        "torch>=2.7",
        'deepspeed>=0.19.7; extra == "train"',
        'torch>=2.8; extra == "train"',
        'mpi4py>=4.1; extra == "mpi"',
    ]
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: declared)
    assert doctor.minimum_versions() == {"torch": "2.8", "deepspeed": "0.19.7", "mpi4py": "4.1"}


@pytest.mark.parametrize(
    ("printed", "words"),
    [
        ("status 255: Host key verification failed.", ["node2 (1 of 2)", "ssh HOST"]),
        ("status 255: root@node2: Permission denied (publickey).", ["ssh-copy-id"]),
        ("status 1: srun: error: Unable to allocate resources: Requested nodes are busy", ["--nodes"]),
        ("status 1: srun: error: invalid partition specified: x\nsrun: error: Unable to allocate", ["slurm/site.yaml", "sinfo"]),
        ("status 1: No module named 'bellwether'", ["install bellwether on that node"]),
        ("status 127: bash: /venv/bin/python: No such file or directory", ["venv:"]),
        ("not done in 240 s", ["check that"]),
    ],
)  # fmt: skip
def test_silent_node_is_named_with_its_launchers_error(printed: str, words: list[str]) -> None:
    expected = Expected(2, "ssh", names=["node1", "node2"], launcher_errors=[("node1", "hm"), ("node2", printed)])
    rows = checks.answered([healthy(0)], [], expected)
    assert_row(rows, "nodes", RED, [printed, *words])
    assert "hm" not in rows[0].seen


def test_node_that_fails_after_answering_is_shown_with_the_stage() -> None:
    failure = {"kind": "failure", "rank": 1, "host": "node2", "stage": "connecting through gloo", "error": "refused"}
    rows = checks.rows([healthy(0), healthy(1)], {**CLUSTER, "hosts": []}, [failure], Expected(2, "ssh"))
    assert_row(rows, "measuring", RED, ["node2, connecting through gloo: refused"])
    rows = checks.rows([healthy(0), healthy(1)], None, [failure], Expected(2, "ssh"))
    assert_row(rows, "rendezvous", RED, ["node2, connecting through gloo: refused", "ports"])
    assert_row(
        checks.rows([healthy(0), healthy(1)], None, [], Expected(2, "ssh")), "rendezvous", RED, ["no common result"]
    )


def test_table_fits_80_columns_and_shows_the_fix() -> None:
    rows = [Row("nodes", GREEN, "a " * 100), Row("torch", RED, "b", "repair " * 30), Row("temp", YELLOW, "c", "sweep")]
    text = table.render(rows)
    assert max(map(len, text.splitlines())) <= 80
    assert "-> repair repair" in text
    assert text.endswith("1 green, 1 yellow, 1 red\n")
    assert "\033" not in text
    assert "\033[31mred" in table.render(rows, colour=True)
    assert table.exit_status(rows) == 1
    assert table.exit_status([rows[0], rows[2]]) == 0

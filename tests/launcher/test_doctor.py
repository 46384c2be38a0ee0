"""bellwether doctor: checks on given facts, the commands it builds, and complete runs on healthy and broken machines."""

from __future__ import annotations

import copy
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bellwether.launcher import doctor
from bellwether.launcher.doctor import (
    checks,
    commands,
    gather,
    protocol,
    software_checks,
    software_probe,
    system_probe,
    table,
    timeout,
)
from bellwether.launcher.doctor.result import GREEN, RED, YELLOW, Expected, Row
from bellwether.launcher.hostfile import hosts
from bellwether.launcher.site_config import Site
from bellwether.optimizers.kernels import build
from bellwether.trainer import build_locks
from bellwether.trainer.config import ConfigError
from bellwether.trainer.data.text import TextData

ROOT = Path(__file__).parents[2]
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


def test_packages_older_than_the_minimum_are_red() -> None:
    expected = Expected(1, "mpi", bounds={"torch": "2.14", "deepspeed": "0.19.8"})
    only = healthy(0)
    only["packages"]["mpi4py"] = "4.1"
    assert_row(checks.rows([only], None, [], expected), "torch", RED, ["2.13.0+cu130 is older than 2.14", "--upgrade"])
    # The minimum versions of pyproject.toml, from the metadata of the installed package.
    assert doctor.minimum_versions().items() >= {"torch": "2.6", "deepspeed": "0.19.8", "mpi4py": "4.1"}.items()


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


# The host file


def test_hostfile_in_the_syntax_of_openmpi_and_mpich(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text("# two racks\nnode1 slots=8\n\nnode2:4  # borrowed\nme@10.0.0.7\nnode4 slots = 2 max_slots=4\n")
    assert hosts(file) == [("node1", 8), ("node2", 4), ("me@10.0.0.7", None), ("node4", 2)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("node1\nnode2 slot=4\n", ["hosts:2", "node2 slot=4", "slots=8"]),
        ("node1\n-oProxyCommand=x\n", ["hosts:2"]),
        ("node1 slots=0\n", ["hosts:1", "from 1 up"]),
        ("node1:2\nnode2\nnode1\n", ["hosts:3", "appears twice"]),
        ("# no hosts\n", ["has no hosts"]),
        (None, ["cannot be read", "No such file"]),
    ],
)
def test_invalid_hostfile_is_refused_with_its_line_number(tmp_path: Path, text: str | None, words: list[str]) -> None:
    file = tmp_path / "hosts"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError) as error:
        hosts(file)
    for word in words:
        assert word in str(error.value)


# The commands

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
    assert shlex.split(both[1][-1]) == [
        "cd", "/work/my code", "&&", "exec", "env", "BELLWETHER_INTERFACE=ib0", "PYTHONPATH=/a b", "NCCL_IB_HCA=mlx5",
        "RANK=1", "WORLD_SIZE=2", "LOCAL_RANK=0", "MASTER_ADDR=node1", "MASTER_PORT=10123", sys.executable, *TAIL,
    ]  # fmt: skip
    assert "secret" not in str(both)


# The table


def test_table_fits_80_columns_and_shows_the_fix() -> None:
    rows = [Row("nodes", GREEN, "a " * 100), Row("torch", RED, "b", "mend " * 30), Row("temp", YELLOW, "c", "sweep")]
    text = table.render(rows)
    assert max(map(len, text.splitlines())) <= 80
    assert "-> mend mend" in text
    assert text.endswith("1 green, 1 yellow, 1 red\n")
    assert "\033" not in text
    assert "\033[31mred" in table.render(rows, colour=True)
    assert table.status(rows) == 1
    assert table.status([rows[0], rows[2]]) == 0


# Facts that trainer and doctor determine separately


def test_locks_compiler_and_cache_are_those_that_the_trainer_uses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, root in (("TORCH_EXTENSIONS_DIR", tmp_path), ("XDG_CACHE_HOME", tmp_path / "torch_extensions")):
        with monkeypatch.context() as patch:
            patch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
            patch.setenv(variable, str(tmp_path))
            for folder in ("plain", "py311_cpu/nested"):
                (root / folder).mkdir(parents=True)
                (root / folder / "lock").touch()
                os.utime(root / folder / "lock", (time.time() - 500, time.time() - 500))
            found = software_probe.locks()
            assert {lock["path"] for lock in found} == {str(path) for path in build_locks.locks()}
            assert len(found) == 2
            assert all(500 <= lock["age_s"] < 900 and lock["builders"] == 0 for lock in found)
    for name, value in (("PATH", None), ("CXX", "g++"), ("CXX", "no-such-compiler")):
        with monkeypatch.context() as patch:
            if value is not None:
                patch.setenv(name, value)
            assert software_probe.find_compiler() == build._compiler()
    assert TextData.model_fields["cache"].default == system_probe.CACHE


@pytest.mark.process
def test_hanging_calls_and_commands_are_abandoned() -> None:
    with pytest.raises(TimeoutError, match="no answer in 0 s"):
        timeout.run_with_timeout(0.05, lambda: time.sleep(5))
    with pytest.raises(OSError, match="gone"):
        timeout.run_with_timeout(5, lambda: (_ for _ in ()).throw(OSError("gone")))
    answers = gather.gather({"srun": ["sleep", "60"], "other": ["no-such-command"]}, os.environ, 2, 0.3)
    assert dict(answers.launcher_errors) == {
        "srun": "not done in 0 s",
        "other": "no-such-command: No such file or directory",
    }
    stuck = "import time\nfrom bellwether.launcher.doctor.protocol import Reporter\nReporter(1).begin('thinking', 0.2)\ntime.sleep(60)"
    done = subprocess.run([sys.executable, "-c", stuck], cwd=ROOT, capture_output=True, text=True, timeout=50)
    (failure,) = protocol.parse(done.stdout)
    assert (failure["rank"], failure["stage"], failure["error"]) == (1, "thinking", "not done in 0 s")


@pytest.mark.process
def test_quick_checks_import_nothing_heavy(tmp_path: Path) -> None:
    program = (
        "import json, sys\nfrom dataclasses import asdict\nfrom bellwether.launcher.doctor import quick_checks\n"
        "rows = [asdict(row) for row in quick_checks(sys.argv[1], sys.argv[2])]\n"
        "heavy = {'torch', 'deepspeed', 'numpy', 'transformers', 'pydantic'} & set(sys.modules)\n"
        "assert not heavy, heavy\nprint(json.dumps(rows))"
    )
    (tmp_path / "ext/fused").mkdir(parents=True)
    (tmp_path / "ext/fused/lock").touch()
    os.utime(tmp_path / "ext/fused/lock", (0, 0))

    def states(on: str, runs: str, **environment: str) -> dict[str, str]:
        done = subprocess.run(
            [sys.executable, "-c", program, on, runs], cwd=ROOT, env={**os.environ, **environment}, capture_output=True,
            text=True, timeout=50,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return {row["check"]: row["state"] for row in json.loads(done.stdout)}

    fine = states("local", str(tmp_path / "not" / "yet"))
    assert RED not in fine.values()
    assert {"runs", "cache", "temp", "JIT locks", "compiler", "host name", "ports"} <= set(fine)
    bad = states("slurm", "/proc/runs", PATH=str(tmp_path), TORCH_EXTENSIONS_DIR=str(tmp_path / "ext"))
    assert bad["commands"] == bad["runs"] == RED
    assert "temp" not in bad  # the run does not use the login node's
    assert bad["compiler"] == bad["JIT locks"] == YELLOW


# Complete runs


def run(folder: Path, *arguments: str, **environment: str) -> tuple[int, str, str]:
    path = os.pathsep.join([*filter(None, [environment.pop("PYTHONPATH", "")]), str(ROOT)])
    ended = subprocess.run(
        [sys.executable, "-m", "bellwether", "doctor", *arguments], cwd=folder, capture_output=True, text=True,
        env={**os.environ, **environment, "PYTHONPATH": path}, timeout=200,
    )  # fmt: skip
    return ended.returncode, ended.stdout, ended.stderr


@pytest.mark.process
def test_this_machine_has_no_red_row(tmp_path: Path) -> None:
    status, out, error = run(tmp_path, RANK="3", WORLD_SIZE="4")  # as inside a run: the probes must not inherit them
    assert status == 0, out + error
    assert out.splitlines()[-1].endswith(", 0 red")
    for check in ("nodes", "python", "imports", "compiler", "runs", "cache", "host name", "ports"):
        assert any(line.split()[1:2] == [check.split()[0]] for line in out.splitlines()), out
    assert max(map(len, out.splitlines())) <= 80
    assert error.startswith("bellwether: checking this machine")


BROKEN = """
import sys
class Broken:
    def find_spec(self, name, path=None, target=None):
        if name == "deepspeed":
            raise ImportError("libaio.so.1: cannot open shared object file")
sys.meta_path.insert(0, Broken())
"""


@pytest.mark.process
def test_broken_machine_gives_red_rows_as_json(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(BROKEN)
    (tmp_path / "bin").mkdir()
    status, out, error = run(
        tmp_path, "--json", "--runs", "/proc/runs", PATH=str(tmp_path / "bin"), CXX="", PYTHONPATH=str(tmp_path)
    )
    assert status == 1, out + error
    result = json.loads(out)
    rows = {row["check"]: row for row in result["rows"]}
    assert {check for check, row in rows.items() if row["state"] == RED} == {"imports", "runs"}
    assert "import deepspeed fails: ImportError: libaio.so.1" in rows["imports"]["seen"]
    assert rows["compiler"]["state"] == YELLOW
    assert rows["nodes"]["state"] == GREEN
    # mpirun forwards blocks of 4 KiB, and may interleave those of different nodes.
    assert len(json.dumps(result["nodes"][0])) < 3500


SSH = """#!/bin/sh
while [ "$1" = -o ]; do shift 2; done
if [ "$1" = lost ]; then
    echo "ssh: connect to host lost port 22: No route to host" >&2
    exit 255
fi
exec /bin/sh -c "$2"
"""
# Each process has a host name of its own; the clock of the second is ahead.
ANOTHER = """
import os, socket, time
rank = os.environ.get("RANK")
if rank is not None:
    socket.gethostname = lambda: f"machine-{rank}.invalid"
if rank == "1":
    now = time.time
    time.time = lambda: now() + 100
"""


@pytest.fixture
def ssh(tmp_path: Path) -> dict[str, str]:
    """A replacement for ssh that runs the command on this machine."""
    (tmp_path / "ssh").write_text(SSH)
    (tmp_path / "ssh").chmod(0o755)
    return {"BELLWETHER_SSH": f"{tmp_path}/ssh -o Port=22"}


@pytest.mark.process
def test_two_processes_measure_clocks_names_and_bandwidth(tmp_path: Path, ssh: dict[str, str]) -> None:
    (tmp_path / "sitecustomize.py").write_text(ANOTHER)
    (tmp_path / "hosts").write_text("127.0.0.1 slots=1\nlocalhost slots=1\n")
    before = {path.name for path in tmp_path.iterdir()}
    status, out, error = run(tmp_path, "--on", "ssh", "--hostfile", "hosts", "--json", **ssh, PYTHONPATH=str(tmp_path))
    result = json.loads(out)
    rows = {row["check"]: row for row in result["rows"]}
    assert status == 1, error
    for check in ("nodes", "rendezvous", "shared", "imports"):
        assert rows[check]["state"] == GREEN, rows[check]
    assert rows["clocks"]["state"] == RED
    assert "machine-1.invalid is 100.0 s ahead" in rows["clocks"]["seen"]
    assert rows["names"]["state"] == RED
    assert "on machine-0.invalid, machine-1.invalid does not resolve" in rows["names"]["seen"]
    assert result["cluster"]["gloo"]["gb_s"] > 0
    assert result["cluster"]["shared"]["unseen"] == []
    assert {path.name for path in tmp_path.iterdir()} - before <= {"__pycache__"}


@pytest.mark.process
def test_missing_node_is_named_within_the_timeout(tmp_path: Path, ssh: dict[str, str]) -> None:
    (tmp_path / "hosts").write_text("127.0.0.1\nlost\n")
    status, out, error = run(tmp_path, "--on", "ssh", "--hostfile", "hosts", "--json", "--timeout", "60", **ssh)
    result = json.loads(out)
    rows = {row["check"]: row for row in result["rows"]}
    assert status == 1, error
    assert "no answer from lost (1 of 2)" in rows["nodes"]["seen"]
    assert "No route to host" in rows["nodes"]["seen"]
    assert "lost did not connect to 127.0.0.1" in rows["rendezvous"]["seen"]
    assert result["cluster"]["missing"] == [1]


@pytest.mark.process
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--nodes", "2"], "--nodes: 2"),
        (["--on", "ssh"], "--hostfile"),
        (["--hostfile", "x"], "does not apply to --on local"),
        (["--on", "ssh", "--hostfile", "hosts", "--nodes", "3"], "hosts names 1"),
        (["--on", "slurm", "--site", "no.yaml"], "--site: 'no.yaml'"),
    ],
)
def test_invalid_options_are_refused(tmp_path: Path, arguments: list[str], words: str) -> None:
    (tmp_path / "hosts").write_text("node1\n")
    status, out, error = run(tmp_path, *arguments)
    assert status == 2
    assert out == ""
    assert words in error
    assert len(error.splitlines()) == 1

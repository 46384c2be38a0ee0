"""Complete runs of bellwether doctor on healthy and broken machines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bellwether.launcher.doctor.result import GREEN, RED, YELLOW

ROOT = Path(__file__).parents[3]


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

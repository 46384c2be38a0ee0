"""scripts/gpu_suite: its report, its bundle, its comparisons, and a dry run of its parts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts.gpu_suite import __main__ as suite
from scripts.gpu_suite import bundle, exactness, host_collectives, published, report, switches, unpack, workloads
from scripts.gpu_suite.context import Context, read
from scripts.gpu_suite.parts import NAMES, PARTS, Part

ROOT = Path(__file__).resolve().parents[1]


def _part(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "title": f"Part {name}",
        "seconds": 3.2,
        "result": "passed",
        "entries": [],
        "error": "",
        **changes,
    }


def test_report_says_what_was_seen_after_each_part(tmp_path: Path) -> None:
    about = {"device": "H", "dry": False, "measured": "today", "driver": "1", "versions": {"torch": "2"}}
    seen = [
        {"row": {"run": "a", "ms": 1234.56}},
        {"row": {"run": "b", "ms": None}},
        {"check": {"what": "same", "passed": False, "detail": "no"}},
    ]
    results = {"about": about, "parts": [_part("one", entries=seen, result="timed out")], "waiting": ["two"]}
    report.write(tmp_path, results)
    text = (tmp_path / "results.md").read_text()
    assert "| a | 1,230 |\n| b |  |" in text
    assert "- FAILED: same: no" in text
    assert "| Part one | timed out | 3 |" in text
    assert "Not run yet: two." in text
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert sorted(file.name for file in tmp_path.iterdir()) == ["results.json", "results.md"]


def test_entries_of_a_killed_part_are_kept(tmp_path: Path) -> None:
    context = Context(True, tmp_path, 10, tmp_path / "entries.jsonl")
    context.row(a=1)
    context.check("x", True)
    with context.file.open("a") as stream:
        stream.write('{"row": {"a"')
    assert read(context.file) == [{"row": {"a": 1}}, {"check": {"what": "x", "passed": True, "detail": ""}}]
    assert read(tmp_path / "none") == []


def test_bundle_follows_requirements_and_leaves_out_what_is_there() -> None:
    found = bundle.closure(("datasets", "deepspeed"), bundle.PRESENT, "3.12")
    assert {"datasets", "deepspeed", "pandas", "pydantic", "pydantic-core", "hjson", "xxhash"} <= found
    assert not found & bundle.PRESENT
    pins = bundle.pins(found, (ROOT / "requirements" / "lock.txt").read_text(), "3.12")
    assert len(pins) == len(found)
    assert "deepspeed==0.19.8" in pins


def test_missing_wheels_are_unpacked(tmp_path: Path) -> None:
    for name in ("torch-9.9-py3-none-any.whl", "not_installed-1.0-py3-none-any.whl"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("not_installed/__init__.py", "x = 1")
            archive.writestr(
                "not_installed-1.0.dist-info/METADATA",
                "Requires-Dist: numpy>=99\nRequires-Dist: torch>=2\nRequires-Dist: pytest>=99\n",
            )
            archive.writestr("not_installed-1.0.data/purelib/other.py", "")
            archive.writestr("not_installed-1.0.data/scripts/tool", "")
    with zipfile.ZipFile(tmp_path / "numpy-99.0-py3-none-any.whl", "w") as archive:
        archive.writestr("numpy/__init__.py", "")
    wheels, lacking = unpack.missing(tmp_path)
    # A torch that is there stays, a numpy that is too old does not.
    assert [wheel.name for wheel in wheels] == ["not_installed-1.0-py3-none-any.whl", "numpy-99.0-py3-none-any.whl"]
    assert lacking == [f"not-installed needs pytest>=99, and {pytest.__version__} is installed"]
    unpack.unpack(wheels, tmp_path / "site")
    files = sorted(str(file.relative_to(tmp_path / "site")) for file in (tmp_path / "site").rglob("*.py"))
    assert files == ["not_installed/__init__.py", "numpy/__init__.py", "other.py"]
    assert not (tmp_path / "site" / "tool").exists()


def test_error_is_relative_to_the_distance_gone() -> None:
    zero, one = torch.zeros(4), torch.ones(4)
    assert exactness.error_of({"a": one, "b": one}, {"a": zero, "b": zero}, {"a": one, "b": 1.01 * one}) == (
        pytest.approx(0.01),
        "b",
    )
    assert exactness.error_of({"a": one}, {"a": one}, {"a": one})[0] == 0  # frozen, and still there
    assert exactness.error_of({"a": one}, {"a": one}, {"a": zero})[0] == float("inf")
    assert exactness.error_of({"a": one}, {"a": zero}, {})[0] == float("inf")


def test_collectives_see_copies_that_are_copied_back() -> None:
    seen = []

    def gather(parts: list[torch.Tensor], own: torch.Tensor, group: object = None) -> None:
        seen.append(own.data_ptr())
        for index, part in enumerate(parts):
            part.copy_(own + index)

    parts, own = [torch.zeros(2), torch.zeros(2)], torch.ones(2)
    call = host_collectives.through_host(gather, everything=True)
    assert call(parts, own, group="g", async_op=True).wait()
    assert [part.tolist() for part in parts] == [[1, 1], [2, 2]]
    assert seen != [own.data_ptr()]


def test_result_that_is_a_view_of_an_argument_is_kept() -> None:
    """As DeepSpeed's reduce-scatter under ZeRO-3 has it."""

    def reduce_scatter(output: torch.Tensor, given: torch.Tensor) -> None:
        output.copy_(10 * given[:2])

    given = torch.ones(4)
    host_collectives.through_host(reduce_scatter, everything=True)(given[:2], given)
    assert given.tolist() == [10, 10, 1, 1]


def test_switches_that_this_version_lacks_are_found_out() -> None:
    raw = workloads.bert(True, 128, 4)
    assert switches.has_key(raw, "engine.stage")
    assert not switches.has_key(raw, "engine.no_such_key")
    assert switches.has_key(raw, "scripts.gpu_suite.exactness:UPDATES")
    assert not switches.has_key(raw, "scripts.gpu_suite.exactness:NOTHING")
    assert not switches.has_key(raw, "scripts.gpu_suite.nothing:NOTHING")


def test_published_rates_are_those_of_one_gpu() -> None:
    assert [(one.gpu, one.samples_per_second) for one in published.nvidia("bert", 128)] == [
        ("a100", 580),
        ("v100", 224),
    ]
    assert [round(one.samples_per_second) for one in published.mlperf("bert", ("h200",))] == [999]
    assert [one.gpu for one in published.mlperf("resnet")] == ["h200", "h100", "a100"]


def test_parts_have_functions_and_fit_into_the_time() -> None:
    for part in PARTS:
        assert callable(part.load())
    assert len(set(NAMES)) == len(NAMES)
    # What is worth most has its whole limit within the 9 minutes.
    assert sum(part.seconds for part in PARTS[:6]) < 9 * 60


@pytest.mark.process
def test_part_that_hangs_is_ended_and_the_next_one_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The part machine, whose time is up before it has begun, then with enough."""
    hanging, whole = (
        Part("machine", title, "machine:run", seconds) for title, seconds in (("Short", 0.4), ("Long", 100))
    )
    assert suite.run([hanging, whole], dry=True, minutes=5, out=tmp_path) == 1  # type: ignore[arg-type]
    first, second = json.loads((tmp_path / "results.json").read_text())["parts"]
    assert (first["result"], second["result"]) == ("timed out", "passed")
    assert [entry["row"]["what"].split(",")[0] for entry in second["entries"]] == [
        "copy",
        "256 x 256 x 256",
        "256 x 256 x 256",
    ]
    assert "| Long | passed |" in capsys.readouterr().out


@pytest.mark.full
@pytest.mark.process
def test_dry_run_passes(tmp_path: Path) -> None:
    command = [str(ROOT / "scripts" / "gpu_suite.sh"), "--dry", "--minutes", "60", "--out", str(tmp_path)]
    ended = subprocess.run(command, env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert [part["name"] for part in results["parts"]] == NAMES
    assert results["waiting"] == []

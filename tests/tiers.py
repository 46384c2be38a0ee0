"""Test tiers: ``check`` starts no process, ``test`` runs each feature once, ``all`` runs the full matrix.

``pytest --tier=check|test|all`` selects one; plain ``pytest`` runs everything selected.

- A test that starts Python processes, or uses a process group (`ranks`), carries the marker ``process``. A test without
  the marker that starts one fails (`forbid_processes`), so ``check`` stays quick.
- ``@covering(predicate)`` above a parametrized test names the cases that represent the others: ``test`` runs these, ``all``
  runs every case. The predicate takes the parameters that it needs by name.
"""

from __future__ import annotations

import inspect
import multiprocessing.process
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

TIERS = ("check", "test", "all")

# Tests of a group share expensive fixtures (a cluster, ranks, a wheel), so pytest-xdist gives all of them to one worker. The
# longest groups come first.
GROUPS = ("cluster-2", "cluster-3", "ranks-2", "ranks-4", "ranks-1", "packaging")


def covering(predicate: Callable[..., bool]) -> pytest.MarkDecorator:
    """Of a parametrized test, select the cases for the tier ``test``; the others belong to the full matrix alone."""
    return pytest.mark.covering(predicate)


def arrange(items: list[pytest.Item]) -> None:
    """Add the markers that follow from fixtures and folders, and sort by group."""
    for item in items:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        if "ranks" in params:
            size = params["ranks"]
            item.add_marker("process")
            item.add_marker(pytest.mark.xdist_group(f"ranks-{size}"))
        elif "cluster" in item.path.parts:
            item.add_marker("process")
            item.add_marker(pytest.mark.xdist_group(f"cluster-{3 if 'three' in item.fixturenames else 2}"))
        elif "packaging" in item.path.parts:
            item.add_marker(pytest.mark.xdist_group("packaging"))
        for marker in item.iter_markers("covering"):
            if not _holds(marker.args[0], params):
                item.add_marker("full")
    items.sort(key=_order)


def selected(item: pytest.Item, tier: str) -> bool:
    if tier == "all":
        return True
    full = item.get_closest_marker("full") is not None
    return not full and (tier == "test" or item.get_closest_marker("process") is None)


def check_groups(items: list[pytest.Item]) -> None:
    """In a worker of pytest-xdist: has it put the groups into the test ids, by which the controller schedules?

    Raises:
        pytest.UsageError: if not. Each worker would start ranks and clusters of its own.
    """
    grouped = [item for item in items if item.get_closest_marker("xdist_group") is not None]
    if "PYTEST_XDIST_WORKER" in os.environ and grouped and not grouped[0].nodeid.endswith(_group(grouped[0])):
        raise pytest.UsageError(
            f"pytest-xdist does not group tests under pytest {pytest.__version__}; requirements/ has one that does"
        )


def _group(item: pytest.Item) -> str:
    marker = item.get_closest_marker("xdist_group")
    assert marker is not None
    return str(marker.args[0])


def _order(item: pytest.Item) -> tuple[int, str]:
    """A stable sort key: pytest's own order holds within a file of a group, and outside the groups.

    Within a group pytest's order would follow the place of `ranks` among a test's parameters, and so leave and enter a file several
    times: the fixtures of the file would be set up as often.
    """
    if item.get_closest_marker("xdist_group") is not None:
        return GROUPS.index(_group(item)), str(item.path)
    return len(GROUPS) + (item.get_closest_marker("process") is None), ""


def _holds(predicate: Callable[..., bool], params: dict[str, Any]) -> bool:
    names = inspect.signature(predicate).parameters
    return bool(predicate(**{name: params[name] for name in names}))


def forbid_processes(monkeypatch: pytest.MonkeyPatch, test: str) -> None:
    """Make the start of a Python process fail, with the marker to add in the message."""
    start, popen = multiprocessing.process.BaseProcess.start, subprocess.Popen.__init__

    def refuse(program: object) -> None:
        pytest.fail(f"{test} starts a process ({program}): mark it with @pytest.mark.process", pytrace=False)

    def no_start(self: Any) -> None:
        refuse(self)
        start(self)

    def no_popen(self: Any, args: Any, *rest: Any, **options: Any) -> None:
        words = [args] if isinstance(args, str | bytes | os.PathLike) else list(args)
        program = os.path.basename(os.fspath(words[0]) if words else "")
        if program == os.path.basename(sys.executable) or str(program).startswith("python"):
            refuse(words[:4])
        popen(self, args, *rest, **options)

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", no_start)
    monkeypatch.setattr(subprocess.Popen, "__init__", no_popen)

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests import precision, tiers
from tests.ranks import Ranks

# BELLWETHER_TEST_ABSENT: here, and through the environment in the ranks and in subprocesses.
precision.report_absent()
if precision.absent():
    os.environ["PYTHONPATH"] = precision.subprocess_path(*filter(None, [os.environ.get("PYTHONPATH")]))

# Side by side, tests with a thread pool each would wait for one another. The same holds for the processes that they start, whose
# tensors are small: with two threads, a run of four steps took 20 s of a core instead of 10.
os.environ.setdefault("OMP_NUM_THREADS", "1")
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)

# Triton reads this when it is first imported, by whichever test: without a GPU, its kernels run in its interpreter.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--tier", choices=tiers.TIERS, default="all", help="which tests to run (tests/tiers.py); default: all"
    )


def pytest_make_parametrize_id(val: object) -> str | None:
    """A short id for a long text, and for bytes; None leaves the id to pytest.

    Compressed bytes hold the time, and the workers of pytest-xdist must find tests of the same names.
    """
    if isinstance(val, bytes):
        return f"{len(val)} bytes"
    if isinstance(val, str) and len(val) > 400:
        return f"{val[:40].encode('unicode_escape').decode()}... ({len(val)} characters)"
    return None


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the groups in the same hook
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    tiers.arrange(items)
    tier = config.getoption("--tier")
    config.hook.pytest_deselected(items=[item for item in items if not tiers.selected(item, tier)])
    items[:] = [item for item in items if tiers.selected(item, tier)]


def pytest_collection_finish(session: pytest.Session) -> None:
    tiers.check_groups(session.items)
    gc.freeze()  # what was imported and collected stays: searches for garbage need not look at it


@pytest.fixture(autouse=True)
def _no_process_without_its_marker(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.get_closest_marker("process") is None:
        tiers.forbid_processes(monkeypatch, request.node.nodeid)


@pytest.fixture(scope="session", params=[1, 2, 4])
def ranks(request: pytest.FixtureRequest) -> Iterator[Ranks]:
    """A process group of as many ranks as the parameter says; pytest runs all tests of one size together."""
    group = Ranks(request.param)
    yield group
    group.close()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data beside the repository; tests that need it skip where it is absent."""
    path = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"no real data at {path}")
    return path

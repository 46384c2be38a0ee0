"""The examples in docstrings run as they stand."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import bellwether

ACTS = (
    "bellwether.trainer.data.ignore_signals",
)  # on being imported: a process that does so hears no signals any more

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(bellwether.__path__, "bellwether.")
    if not module.name.endswith("__main__") and module.name not in ACTS
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    if name == "bellwether.optimizers.kernels.triton":
        pytest.importorskip("triton", reason="Triton is for Linux")
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_examples() -> None:
    for name in ("bellwether.optimizers.lamb", "bellwether.optimizers.schedules"):
        assert doctest.testmod(importlib.import_module(name)).attempted > 0

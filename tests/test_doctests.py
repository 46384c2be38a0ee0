"""The examples in docstrings run and print what they show."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import bellwether

# Importing it changes the process: it ignores signals from then on.
SIDE_EFFECTS = ("bellwether.trainer.data.ignore_signals",)

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(bellwether.__path__, "bellwether.")
    if not module.name.endswith("__main__") and module.name not in SIDE_EFFECTS
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    if name == "bellwether.optimizers.kernels.triton":
        pytest.importorskip("triton", reason="Triton is for Linux")
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_examples() -> None:
    for name in ("bellwether.optimizers.lamb", "bellwether.optimizers.schedules"):
        assert doctest.testmod(importlib.import_module(name)).attempted > 0

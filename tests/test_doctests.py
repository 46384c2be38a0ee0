"""The examples in docstrings run as they stand."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import optimizers
import trainer

MODULES = sorted(
    module.name
    for package in (optimizers, trainer)
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if not module.name.endswith("__main__")
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    if name == "optimizers.kernels.triton":
        pytest.importorskip("triton", reason="Triton is for Linux")
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_examples() -> None:
    for name in ("optimizers.lamb", "optimizers.schedules"):
        assert doctest.testmod(importlib.import_module(name)).attempted > 0

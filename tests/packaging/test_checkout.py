"""In a checkout, the top-level folders work under their own names too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.packaging.environment import QUICK, ROOT, steps

pytestmark = pytest.mark.process

# A file may be loaded under two names, as trainer/__init__.py is; its classes and functions must be the same objects.
SAME_OBJECTS = """
import pathlib, types
def check():
    modules = {}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file is None or pathlib.Path(ROOT) not in (path := pathlib.Path(file).resolve()).parents:
            continue
        if pathlib.Path(sys.prefix) in path.parents:  # .venv may lie in the checkout
            continue
        first_name, first = modules.setdefault(path, (name, module))
        for key, value in vars(module).items():
            if isinstance(value, type | types.FunctionType) and "__main__" not in (name, first_name):
                assert vars(first).get(key) is value, (path, first_name, name, key)
    return {name for name, _ in modules.values()}
"""


def run(program: str, *arguments: str, cwd: Path = ROOT) -> None:
    program = f"import sys\nROOT = {str(ROOT)!r}\n{SAME_OBJECTS}\n{program}"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_python_m_trainer_loads_no_class_twice(tmp_path: Path) -> None:
    config = tmp_path / "quick.yaml"
    config.write_text(QUICK.replace("cache: cache", f"cache: {tmp_path}/cache"))
    program = """
import runpy
try:
    runpy.run_module("trainer", run_name="__main__", alter_sys=True)
except SystemExit as done:
    assert not done.code, done.code
assert check() >= {"bellwether.trainer.engine", "bellwether.optimizers.update"}
"""
    run(program, str(config), f"runs={tmp_path}/runs")
    assert steps(tmp_path / "runs" / "quick") == [1, 2]


def test_optimizers_of_the_checkout_are_those_of_the_package() -> None:
    run(
        "import optimizers, bellwether.optimizers as package\n"
        "from optimizers import Lamb\n"
        "assert Lamb is package.Lamb\n"
        "assert all(getattr(optimizers, name) is getattr(package, name) for name in package.__all__)\n"
        "assert check()"
    )

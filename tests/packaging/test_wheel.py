"""The contents of the wheel, and its use in folders with an ``optimizers/`` and a ``trainer.py`` of their own."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import pytest

from tests.packaging.environment import QUICK, ROOT, Environment, steps

pytestmark = pytest.mark.process

STEP = """
import sys
import torch
import bellwether
from bellwether.optimizers import Lamb, WarmupLinear, groups
assert bellwether.__file__.startswith(sys.prefix), bellwether.__file__
model = torch.nn.Linear(4, 2)
before = model.weight.clone()
optimizer = Lamb(groups(model), lr=0.1)
model(torch.ones(3, 4)).sum().backward()
optimizer.step()
assert not torch.equal(before, model.weight)
"""


def test_wheel_holds_one_package_with_its_data_files(wheel: Path) -> None:
    names = [name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")]
    assert {name.partition("/")[0] for name in names} == {"bellwether", wheel.name.split("-py3")[0] + ".dist-info"}
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc") or "/tests/" in name]
    assert "bellwether/slurm/site.yaml" not in names
    for folder in ("configs", "experiments", "launcher", "optimizers", "slurm", "trainer"):
        files = [path.relative_to(ROOT) for path in (ROOT / folder).rglob("*") if path.is_file()]
        own = {f"bellwether/{f}" for f in files if "__pycache__" not in f.parts and f != Path("slurm/site.yaml")}
        assert own == {name for name in names if name.startswith(f"bellwether/{folder}/")}


def test_data_files_are_in_the_wheel(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert names >= {
        "bellwether/configs/bert-tiny.yaml",
        "bellwether/configs/experiments/4-batch-bert.yaml",
        "bellwether/optimizers/kernels/cpu.cpp",
        "bellwether/optimizers/kernels/rounding.hpp",
        "bellwether/slurm/train.sbatch",
        "bellwether/trainer/report/templates/style.css",
        "bellwether/experiments/report/templates/sweep.html",
    }


def test_every_dependency_declares_its_minimum(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
    required = re.findall("^Requires-Dist: (.*)$", archive.read(name).decode(), re.MULTILINE)
    assert "torch>=2.7" in required
    assert not [each for each in required if ">=" not in each and 'extra == "dev"' not in each]


def test_optimizers_work_next_to_a_folder_of_that_name(installed: Environment) -> None:
    installed.run("python", "-c", STEP)


# The processes of the train command are the same program in the same folder.
@pytest.mark.full
def test_trainer_runs_next_to_a_module_of_that_name(installed: Environment) -> None:
    (installed.folder / "quick.yaml").write_text(QUICK)
    installed.run("python", "-m", "bellwether.trainer", "quick.yaml")
    assert steps(installed.folder / "runs" / "quick") == [1, 2]


def test_train_command_finds_a_shipped_recipe(installed: Environment) -> None:
    arguments = ("duration=2 steps", "batch.global=8", "batch.micro=4", "evaluate.limit=8", "data.cache=cache")
    out = installed.run("bellwether", "train", "bert-tiny", "data.sequence_length=32", *arguments)
    assert "held-out loss" in out
    assert steps(installed.folder / "runs" / "bert-tiny")[-1] == 2


def test_unknown_recipe_suggests_the_nearest(installed: Environment) -> None:
    out = installed.run("bellwether", "train", "bert-tny", status=2)
    assert out.startswith("bellwether: CONFIG: 'bert-tny': no such file or shipped recipe")
    assert "bert-tiny" in out


def test_version_of_an_installed_package(installed: Environment) -> None:
    out = installed.run("bellwether", "--version")
    assert out.splitlines()[0].split()[0] == "bellwether"
    assert "(" not in out.splitlines()[0]  # no commit


def test_bare_install_needs_torch_alone(bare: Environment) -> None:
    bare.run("python", "-c", STEP + "assert 'numpy' not in sys.modules and 'deepspeed' not in sys.modules")


@pytest.mark.parametrize("command", [("train", "bert-tiny"), ("launch", "bert-tiny"), ("recipe",)])
def test_bare_install_tells_what_a_command_needs(bare: Environment, command: tuple[str, ...]) -> None:
    out = bare.run("bellwether", *command, status=2)
    last = out.splitlines()[-1]  # before it, torch may warn that there is no numpy
    assert last.startswith("bellwether: "), out
    assert last.endswith(" is not installed; pip install 'bellwether[train]' installs it"), out
    assert "Traceback" not in out


def test_bare_install_has_help_and_version(bare: Environment) -> None:
    assert "COMMAND" in bare.run("bellwether", "--help")
    assert "not installed" in bare.run("bellwether", "--version")

"""What a rank's imports leave out, seen in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.process

# Counts the source files of transformers' models that are opened.
TRANSFORMERS = """
import json, os, sys
opened = set()
sys.addaudithook(lambda event, args: event == "open" and str(args[0]).endswith(".py") and opened.add(str(args[0])))
from bellwether.trainer.libraries import quicken_transformers
if sys.argv[1] == "quick":
    quicken_transformers()
import transformers
from transformers import BertConfig
models = os.path.join(os.path.dirname(transformers.__file__), "models")
print(json.dumps({
    "opened": sum(name.startswith(models) for name in opened),
    "names": sorted(dir(transformers)),
    "models": sorted(dir(transformers.models)),
    "config": BertConfig.__module__,
}))
"""

# The last line imports the module that stands for MLflow.
ABSENT = """
import sys
from bellwether.trainer.libraries import import_deepspeed, quicken_transformers
quicken_transformers()
import_deepspeed()
import bellwether.trainer.run
print("scipy" in sys.modules)
from transformers.models.mask2former.modeling_mask2former import linear_sum_assignment
print(linear_sum_assignment.__module__)
import mlflow
"""

# Page faults of a tensor of 64 MiB in a rank. Its config is refused before it trains.
FAULTS = """
import resource
from bellwether.trainer import __main__ as rank
assert rank.main(["there-is-no-such.yaml"]) == 2
import torch
torch.ones(2**22)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def python(code: str, *arguments: str, **environment: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.full  # it changes with the pinned version of transformers alone
def test_transformers_is_the_same_from_the_list_of_models(tmp_path: Path) -> None:
    def run(how: str) -> Any:
        return json.loads(python(TRANSFORMERS, how, XDG_CACHE_HOME=str(tmp_path)).stdout)

    plain, first = run("plain"), run("quick")
    (file,) = (tmp_path / "bellwether").glob("transformers-models-*.json")
    whole = file.read_text()
    file.write_text("[]")
    damaged = run("quick")
    assert file.read_text() == whole
    last = run("quick")
    opened = [run.pop("opened") for run in (plain, first, damaged, last)]
    assert min(opened[:3]) > 1000
    assert opened[3] < 20
    assert plain == first == damaged == last
    assert plain["config"] == "transformers.models.bert.configuration_bert"


@pytest.mark.full
def test_without_a_place_for_the_list(tmp_path: Path) -> None:
    (tmp_path / "bellwether").write_text("a file where the folder should be")
    assert json.loads(python(TRANSFORMERS, "quick", XDG_CACHE_HOME=str(tmp_path)).stdout)["opened"] > 1000


def test_neither_deepspeed_imports_mlflow_nor_transformers_scipy_before_it_is_used(tmp_path: Path) -> None:
    (tmp_path / "mlflow.py").write_text(
        "import sys\nprint(getattr(sys.modules.get('deepspeed'), '__version__', 'none'))"
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    scipy, assignment, version = python(ABSENT, PYTHONPATH=path).stdout.split()[-3:]
    assert (scipy, assignment.partition(".")[0]) == ("False", "scipy")
    assert version != "none"  # DeepSpeed was there already, complete, when the last line imported it


@pytest.mark.skipif(
    not HUGE_PAGES.exists() or "[never]" in HUGE_PAGES.read_text(), reason="this kernel has no transparent huge pages"
)
def test_large_tensors_of_a_rank_are_in_huge_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    assert int(python(FAULTS).stdout) < 64 * 2**20 / 4096 / 2  # of pages of 4 KiB there are 16,384
    assert int(python(FAULTS, THP_MEM_ALLOC_ENABLE="0").stdout) > 16_000  # who sets it has his way

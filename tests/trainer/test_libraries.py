"""What a rank's imports leave out, seen in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.tiers import covering

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
from transformers import BertForMaskedLM, BertTokenizerFast
models = os.path.join(os.path.dirname(transformers.__file__), "models")
print(json.dumps({
    "opened": sum(name.startswith(models) for name in opened),
    "names": sorted(dir(transformers)),
    "models": sorted(dir(transformers.models)),
    "model": BertForMaskedLM.__module__,
}))
"""

MLFLOW = """
from bellwether.trainer.libraries import import_deepspeed
import_deepspeed()
import mlflow
"""


def python(code: str, *arguments: str, **environment: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    return done


def test_transformers_is_the_same_from_the_list_of_models(tmp_path: Path) -> None:
    plain, first, second = (
        json.loads(python(TRANSFORMERS, how, XDG_CACHE_HOME=str(tmp_path)).stdout)
        for how in ("plain", "quick", "quick")
    )
    assert plain.pop("opened") > 1000
    assert first.pop("opened") > 1000
    assert second.pop("opened") < 20
    assert first == plain
    assert second == plain
    assert plain["model"] == "transformers.models.bert.modeling_bert"


@covering(lambda damage: damage == "[]")
@pytest.mark.parametrize("damage", ["", '{"items": 3}', "[]"])
def test_a_damaged_list_of_models_is_made_again(tmp_path: Path, damage: str) -> None:
    python(TRANSFORMERS, "quick", XDG_CACHE_HOME=str(tmp_path))
    (file,) = (tmp_path / "bellwether").glob("transformers-models-*.json")
    whole = file.read_text()
    file.write_text(damage)
    python(TRANSFORMERS, "quick", XDG_CACHE_HOME=str(tmp_path))
    assert file.read_text() == whole


def test_without_a_place_for_the_list(tmp_path: Path) -> None:
    (tmp_path / "bellwether").write_text("a file where the folder should be")
    assert json.loads(python(TRANSFORMERS, "quick", XDG_CACHE_HOME=str(tmp_path)).stdout)["opened"] > 1000


def test_deepspeed_does_not_import_mlflow(tmp_path: Path) -> None:
    (tmp_path / "mlflow.py").write_text(
        "import sys\nprint('deepspeed' in sys.modules, sys.modules['deepspeed'].__version__)"
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = python(MLFLOW, PYTHONPATH=path)
    assert done.stdout.split()[0] == "True"  # imported once DeepSpeed was, by the test's own line
    assert done.stdout.split()[1]

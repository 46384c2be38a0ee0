from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageClassification, AutoModelForMaskedLM

from bellwether.trainer.models.auto_classes import QrnnConfig, QrnnForCausalLM
from bellwether.trainer.models.tasks import Task

OWN: list[dict[str, Any]] = [
    {"kind": "cifar-resnet", "depth": 8, "channels": 1},
    {"kind": "wide-resnet", "depth": 10, "width": 1, "zero_init_last": True},
]


@pytest.mark.parametrize("keys", [*OWN, {"kind": "resnet", "depth": 18}])
def test_exported_classifier_loads_unchanged(make: Callable[..., Task], keys: dict[str, Any], tmp_path: Path) -> None:
    task = make(**keys)
    x = torch.randn(4, keys.get("channels", 3), 16, 16)
    task.model(x)  # moves the running statistics
    task.eval().model.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(x).logits, task.model(x).logits)
    assert loaded.config.id2label[9] == "class 9"
    assert loaded.config.label2id["class 9"] == 9
    assert torch.isfinite(loaded(x, labels=torch.tensor([0, 1, 2, 3])).loss)


def test_exported_bert_loads_unchanged(make: Callable[..., Task], tmp_path: Path) -> None:
    task = make("bert", size="tiny").eval()
    task.model.save_pretrained(tmp_path)
    ids = torch.randint(100, (2, 16))
    assert torch.equal(AutoModelForMaskedLM.from_pretrained(tmp_path).eval()(ids).logits, task.model(ids).logits)


SCRIPT = """
import sys
sys.modules["bellwether"] = None  # an import of it fails
import torch
import transformers
for folder in sys.argv[1:]:
    auto = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True).auto_map
    auto_class = getattr(transformers, next(name for name in auto if name != "AutoConfig"))
    model = auto_class.from_pretrained(folder, trust_remote_code=True).eval()
    torch.save(model(torch.load(folder + "/x.pt")).logits.detach(), folder + "/y.pt")
"""


@pytest.mark.process
def test_exports_load_where_bellwether_is_not_installed(make: Callable[..., Task], tmp_path: Path) -> None:
    expected = {}
    for keys in OWN:
        task = make(**keys)
        x = torch.randn(4, keys.get("channels", 3), 16, 16)
        task.model(x)
        folder = tmp_path / keys["kind"]
        task.eval().model.save_pretrained(folder)
        torch.save(x, folder / "x.pt")
        expected[str(folder)] = task.model(x).logits.detach()
    model = QrnnForCausalLM(QrnnConfig(vocab_size=20, embedding_size=4, hidden_size=6)).eval()
    model.save_pretrained(tmp_path / "qrnn")
    torch.save(torch.randint(20, (2, 5)), tmp_path / "qrnn" / "x.pt")
    expected[str(tmp_path / "qrnn")] = model(torch.load(tmp_path / "qrnn" / "x.pt")).logits.detach()
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run(
        [sys.executable, "-c", SCRIPT, *expected], cwd=tmp_path, check=True, timeout=60,
        env={**clean, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    for name, logits in expected.items():
        assert torch.equal(torch.load(Path(name) / "y.pt"), logits)

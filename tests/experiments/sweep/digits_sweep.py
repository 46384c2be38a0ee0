"""A sweep of four settings of two optimizers on digits, for the tests of this folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[3]

SWEEP: dict[str, Any] = {
    "name": "digits",
    "config": str(ROOT / "configs/resnet-digits.yaml"),
    "set": {
        "model.depth": 8, "data.size": 8, "duration": "8 steps", "evaluate.every": "2 steps", "evaluate.limit": 64,
        "batch.micro": 64, "data.workers": 0, "checkpoint.every": "1 steps", "log.every": "1 steps",
    },
    "batches": [32],
    "optimizers": {"lamb": {"set": {"optimizer.name": "lamb"}}, "sgd": {"set": {"optimizer.name": "sgd"}}},
    "space": {"optimizer.lr": [0.02, 0.05]},
    "search": {"kind": "grid"},
    "seeds": 2,
}  # fmt: skip


def write(folder: Path, **changes: Any) -> Path:
    file = folder / "SWEEP.yaml"
    cache = {"data.cache": str(folder / "cache")}
    raw = {**SWEEP, "runs": str(folder / "runs"), **changes}
    raw["set"] = {**SWEEP["set"], **cache, **changes.get("set", {})}
    file.write_text(yaml.safe_dump(raw))
    return file

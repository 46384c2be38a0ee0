"""Whether the data of a config are prepared, as far as can be told without reading them: by a mark in the cache.

`bellwether launch` looks for the mark, on a machine where nothing may be installed but the launcher.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from bellwether.trainer.config.schema.data import DataConfig
from bellwether.trainer.data.cache import digest, local_path

# Keys that change nothing about what is prepared.
_OTHER = {
    "cache", "workers", "retry", "max_unknown", "max_overlap", "allow_empty_classes", "on_error", "sequence_length", "mask_share",
    "flip", "mean", "std", "randaugment", "randaugment_ops", "randaugment_std", "randaugment_share", "erase", "mixup", "cutmix",
    "mix_share", "test_size", "test_crop",
}  # fmt: skip


def mark(config: DataConfig, entries: Sequence[Path]) -> None:
    """Remember that the data of a config are prepared, in these entries of the cache."""
    file = file_of(config, "ready")
    text = json.dumps([entry.name for entry in entries]) + "\n"
    try:
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")
    except OSError:
        return  # a cache that others have filled, and may not be written to


def is_warm(config: DataConfig) -> bool:
    """Whether the data were prepared, and have not been removed since."""
    file = file_of(config, "ready")
    try:
        return all((file.parent / name / "key.json").exists() for name in json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return False


def file_of(config: DataConfig, kind: str) -> Path:
    """The file of a kind in the cache that belongs to what is prepared for a config."""
    keys = {key: value for key, value in config.model_dump(mode="json").items() if key not in _OTHER}
    if not keys["source"].startswith("~") and (path := Path(keys["source"])).exists():
        keys["source"] = str(path.absolute())
    return local_path("data.cache", config.cache) / f"{kind}-{digest(keys)}.json"

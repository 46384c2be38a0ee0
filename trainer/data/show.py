"""``bellwether data``: prepares the data of a config and prints their summary."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bellwether.trainer import data, log
from bellwether.trainer.config import ConfigError, load, phases
from bellwether.trainer.data import contents, summary
from bellwether.trainer.data.cache import watching_files
from bellwether.trainer.data.images import ImageData
from bellwether.trainer.data.summary import DataSummary
from bellwether.trainer.data.summary_lines import lines
from bellwether.trainer.data.transient import retrying


def prepare(path: str, overrides: Sequence[str]) -> int:
    """Prepare the data of each phase, print their summary, and what a run would refuse; returns the exit status."""
    began = time.monotonic()
    files: list[Path] = []
    with watching_files(files.extend):
        status = show(path, overrides, False)
    if not status:
        configs = [phase.data for phase in phases(load(path, overrides, quiet=True))]
        retrying(max(config.retry for config in configs), lambda: contents.store(configs, contents.unique(files)))
        for cache in sorted({config.cache for config in configs}):
            print(f"prepared in {time.monotonic() - began:.0f} s; runs find the data in {cache}")
    return status


def pack(path: str, overrides: Sequence[str], short_side: int | None, quality: int, output: str | None) -> int:
    """Write a smaller copy of the images of a config, and print how to train on it; returns the exit status.

    Raises:
        ConfigError: if an option is missing or wrong, or the data are not images.
    """
    if short_side is None or output is None:
        key = "--short-side" if short_side is None else "--output"
        raise ConfigError(key, None, "is needed for a copy of images", "write --short-side 256 --output DIR")
    if quality > 100:
        raise ConfigError("--quality", quality, "is above 100", "write 95")
    log.setup()
    config = load(path, overrides).data
    if not isinstance(config, ImageData):
        raise ConfigError("--short-side", short_side, f"is for images, and data.kind is {config.kind}", "leave it out")
    from bellwether.trainer.data import image_packing

    packed = image_packing.pack(config, short_side, quality, Path(output), os.cpu_count() or 1)
    print("\n".join(image_packing.describe(packed, Path(output), short_side, quality)))
    return 0


def show(path: str, overrides: Sequence[str], as_json: bool) -> int:
    """Print the summary of each phase's data, and what a run would refuse; returns the exit status."""
    log.setup()
    found: list[DataSummary] = []
    errors: list[str] = []
    for phase in phases(load(path, overrides)):
        prepared = DataSummary.from_json(data.prepare_unchecked(phase.data)["summary"])
        if prepared not in found:
            found.append(prepared)
            errors += [str(error) for error in summary.refusals(prepared, phase.data)]
    if as_json:
        first = {**found[0].to_json(), "refused": errors}
        more = {"phases": [each.to_json() for each in found]} if len(found) > 1 else {}
        print(json.dumps({**first, **more}, indent=1))
    else:
        print("\n".join(line for each in found for line in lines(each)))
    for error in errors:
        print(f"bellwether: {error}", file=sys.stderr)
    return 2 if errors else 0

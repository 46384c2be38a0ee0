"""``bellwether data``: prepares the data of a config and prints their summary."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence

from bellwether.trainer import data, log
from bellwether.trainer.config import load, phases
from bellwether.trainer.data import summary
from bellwether.trainer.data.summary import DataSummary


def prepare(path: str, overrides: Sequence[str]) -> int:
    """Prepare the data of each phase, print their summary, and what a run would refuse; returns the exit status."""
    began = time.monotonic()
    status = show(path, overrides, False)
    if not status:
        for cache in sorted({phase.data.cache for phase in phases(load(path, overrides, quiet=True))}):
            print(f"prepared in {time.monotonic() - began:.0f} s; runs find the data in {cache}")
    return status


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
        print("\n".join(line for each in found for line in summary.lines(each)))
    for error in errors:
        print(f"bellwether: {error}", file=sys.stderr)
    return 2 if errors else 0

"""The part of a checkpoint that is the state of streams of data."""

from __future__ import annotations

import logging
from pathlib import Path

from torch import Tensor

from bellwether.trainer.checkpoint.format import Manifest
from bellwether.trainer.engine import Engine

log = logging.getLogger(__name__)


def carried_slices(
    engine: Engine, manifest: Manifest, path: Path, new_phase: bool, data: str | None
) -> list[tuple[str, int, Tensor]]:
    """Name, offset and elements of each slice to read from a checkpoint.

    None are read in a new phase, whose streams begin at the start of the text, and where the checkpoint has the state of other streams,
    as those of another batch, of other text, or of windows that lie elsewhere in it: it belongs to other places.

    Args:
        data: fingerprint of the phase's data; None: that of the checkpoint.
    """
    state = engine.carried
    if state is None or not state.tensors:
        return []
    if new_phase:
        log.info("%s streams begin at the start of the text, from an empty state", f"{state.total:,}")
        return []
    if manifest.carried != state.shapes():
        saved = next(iter(manifest.carried.values()), [0])[0]
        log.warning(
            "%s has the state of %s streams, not of %s like these: they go on from an empty state",
            path.name, f"{saved:,}", f"{state.total:,}",
        )  # fmt: skip
        return []
    if data is not None and data != manifest.data[manifest.position.phase]:
        log.warning("%s has the state of streams of other text: these go on from an empty state", path.name)
        return []
    if None not in (manifest.first_token, state.first_token) and manifest.first_token != state.first_token:
        log.warning(
            "%s has the state of streams after %s tokens, where windows of this length and seed begin at %s: these go on from an "
            "empty state", path.name, f"{manifest.first_token:,}", f"{state.first_token:,}",
        )  # fmt: skip
        return []
    return list(state.slices())

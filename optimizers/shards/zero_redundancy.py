"""torch's ZeroRedundancyOptimizer: each rank updates some of the parameters, whole, and broadcasts them."""

from __future__ import annotations

from typing import Any

from optimizers.sharded import Attachment


def attachment(engine: Any) -> Attachment:
    """What a `ZeroRedundancyOptimizer` has made of its parameters, on this rank.

    No parameter is cut, so that trust ratios need nothing. But a sum over all parameters goes over all ranks.
    """
    return Attachment(engine.optim.shards, spread_over=engine.process_group, publish=engine._sync_params)

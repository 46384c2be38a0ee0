"""What the ranks of `tests.ranks` import before they are forked. Nothing here may start a thread or look for a GPU."""

import gc
import os

from tests import precision


def _import() -> None:
    os.environ["DS_ACCELERATOR"] = "cpu"
    precision.report_absent()
    from bellwether.trainer import libraries

    libraries.quicken_transformers()
    libraries.import_deepspeed()
    import torch.distributed.fsdp  # noqa: F401

    import bellwether.trainer.models.bert
    import bellwether.trainer.models.residual
    import bellwether.trainer.run  # noqa: F401


_import()

# Each run ends with a search for garbage, and what was imported is none: half of the CPU time of a run of a few steps.
gc.freeze()

"""What the ranks of `tests.ranks` import before they are forked. Nothing here may start a thread or look for a GPU."""

import os

os.environ["DS_ACCELERATOR"] = "cpu"

from tests import precision

precision.report_absent()

from bellwether.trainer import libraries

libraries.quicken_transformers()
libraries.import_deepspeed()

import bellwether.trainer.models.bert
import bellwether.trainer.models.residual
import bellwether.trainer.run  # noqa: F401

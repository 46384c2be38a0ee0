"""Python executes this at the start of each process of an example, see `tests.optimizers.test_examples`.

On a CPU, DeepSpeed compiles its shared-memory all-reduce for two minutes, and it imports MLflow if that is installed. Neither
has to do with what the examples show; `bellwether.trainer.libraries` leaves both out for training.
"""

import sys

from bellwether.trainer.libraries import skip_shared_memory

sys.modules["mlflow"] = None
skip_shared_memory()

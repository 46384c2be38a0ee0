"""What the server imports before it forks the processes of the contestants. Nothing here may start a thread."""

import os


def _import() -> None:
    os.environ["DS_ACCELERATOR"] = "cpu"
    from bellwether.trainer import libraries

    libraries.quicken_transformers()
    libraries.import_deepspeed()
    import accelerate  # noqa: F401
    import transformers.trainer  # noqa: F401

    import bellwether.trainer.models.bert
    import bellwether.trainer.models.residual
    import bellwether.trainer.models.resnet
    import bellwether.trainer.run  # noqa: F401


_import()

"""Large-batch training of BERT and ResNet on DeepSpeed ZeRO.

`bellwether.optimizers` needs torch alone. `bellwether.trainer`, `bellwether.launcher` and `bellwether.experiments` need the
dependencies of ``pip install 'bellwether[train]'``. In a checkout, these four packages are symbolic links to the top-level
folders of the same names.
"""

__version__ = "0.1.0"

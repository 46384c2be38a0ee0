"""Large-batch training of BERT and ResNet on DeepSpeed ZeRO: the installed package, and its command line.

`bellwether.optimizers` needs torch alone; `bellwether.trainer`, `bellwether.launcher` and `bellwether.experiments` need
what ``pip install bellwether[train]`` brings. In a checkout these are links to the top-level folders of the same names.
"""

__version__ = "0.1.0"

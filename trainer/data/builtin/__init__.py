"""Built-in datasets, for runs without a network. Each is one module that registers itself under its ``data.source`` name."""

from __future__ import annotations

import importlib

from bellwether.trainer.data.builtin.registry import Builtin, builtin, find

__all__ = ["Builtin", "builtin", "find"]

# The modules that define a built-in dataset.
_MODULES = ("digits", "python_docs")

for _module in _MODULES:
    importlib.import_module(f"{__name__}.{_module}")

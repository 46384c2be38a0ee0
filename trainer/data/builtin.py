"""The built-in data sets, for runs without a network: Python's own documentation, and scikit-learn's digits."""

from __future__ import annotations

import ast
import io
import os
import re
import sys
import sysconfig
import warnings
from pathlib import Path
from typing import Any

from bellwether.trainer.config.errors import ConfigError
from bellwether.trainer.data.cache import digest

# Not documentation: tests, what is not of the standard library, programs, and generated tables.
_SKIPPED = {"test", "tests", "site-packages", "dist-packages", "__pycache__", "idlelib", "turtledemo", "encodings"}
_UNDERLINE = re.compile(r"^[ \t]*([*=~^\-])\1{2,}[ \t]*\n", re.MULTILINE)  # of a heading: dozens of equal tokens


def python_docs_fingerprint() -> dict[str, Any]:
    """The text differs between versions of Python and how they are packaged; this tells which one it is."""
    sizes = [[path.as_posix(), (_library() / path).stat().st_size] for path in _modules()]
    return {"source": "python-docs", "python": sys.version, "modules": digest(sizes)}


def python_docs() -> list[str]:
    """The topics of ``help()`` and all docstrings of the standard library, one a row, in a fixed order.

    Modules are read as text, not imported. A docstring that occurs twice is taken once.

    Raises:
        ConfigError: if this Python comes without the sources of its library.
    """
    from pydoc_data.topics import topics

    modules = _modules()
    if not modules:
        raise ConfigError(
            "data.source",
            "python-docs",
            f"no sources of the standard library in {_library()}",
            "name a file of your own",
        )
    rows = [topics[name].strip() for name in sorted(topics)]
    for path in modules:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of old escapes in string literals
                tree = ast.parse((_library() / path).read_bytes())
        except SyntaxError:
            continue  # a template, or a file that is broken on purpose
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                rows.append((ast.get_docstring(node) or "").strip())
    rows = [_UNDERLINE.sub("", row) for row in rows]
    return [row for row in dict.fromkeys(rows) if row]


def _library() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _modules() -> list[Path]:
    """Source files, relative to the library. site-packages, which may lie inside and be large, is not entered."""
    found = []
    for directory, inner, files in os.walk(_library()):
        inner[:] = sorted(set(inner) - _SKIPPED)
        found += [(Path(directory) / file).relative_to(_library()) for file in files if file.endswith(".py")]
    return sorted(found)


def digits_fingerprint() -> dict[str, Any]:
    return {"source": "digits"}


def digits() -> tuple[list[bytes], list[int], list[str]]:
    """1,797 handwritten digits, 8 x 8 pixels in 17 shades of grey: PNG images, labels, names of the classes."""
    from PIL import Image
    from sklearn.datasets import load_digits

    found = load_digits()
    images = []
    for pixels in found.images:
        file = io.BytesIO()
        Image.fromarray((pixels * 255 / 16).round().astype("uint8")).save(file, "PNG")
        images.append(file.getvalue())
    return images, [int(label) for label in found.target], [str(name) for name in found.target_names]

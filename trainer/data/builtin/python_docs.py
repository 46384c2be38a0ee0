"""Python's own documentation: the topics of ``help()`` and all docstrings of the standard library, also by package."""

from __future__ import annotations

import ast
import os
import re
import sys
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bellwether.trainer.config.errors import ConfigError
from bellwether.trainer.data.builtin.registry import builtin
from bellwether.trainer.data.cache import digest

# Folders without documentation: tests, third-party packages, programs, generated tables.
_SKIPPED = {"test", "tests", "site-packages", "dist-packages", "__pycache__", "idlelib", "turtledemo", "encodings"}
_FEWEST = 100  # docstrings of a package, in the labelled data
_UNDERLINE = re.compile(r"^[ \t]*([*=~^\-])\1{2,}[ \t]*\n", re.MULTILINE)  # of a heading: dozens of equal tokens


def _facts() -> dict[str, Any]:
    """The text differs between versions of Python and between packagings of one version."""
    sizes = [[path.as_posix(), (_library() / path).stat().st_size] for path in _modules()]
    return {"python": sys.version, "modules": digest(sizes)}


@builtin("python-docs", kind="token-stream", facts=_facts)
@builtin("python-docs", kind="text", facts=_facts)
def python_docs() -> Any:
    """One topic or docstring per row, in a fixed order. Modules are read as text, not imported; duplicates are removed.

    Raises:
        ConfigError: if this Python was installed without the source files of its library.
    """
    from datasets import Dataset

    return Dataset.from_dict({"text": _texts()})


@builtin("python-docs", kind="labelled-text", facts=_facts)
def python_docs_by_package() -> Any:
    """Docstrings with the package or module that they are from, of those that have at least 100. A small task to learn.

    Raises:
        ConfigError: if this Python was installed without the source files of its library.
    """
    from datasets import ClassLabel, Dataset, Features, Value

    first: dict[str, str] = {}  # docstrings that several packages have say nothing about any of them
    several = set()
    for path, text in _docstrings():
        if first.setdefault(text, path.parts[0].removesuffix(".py")) != path.parts[0].removesuffix(".py"):
            several.add(text)
    rows = [(text, package) for text, package in first.items() if text not in several]
    counts = Counter(package for _, package in rows)
    names = sorted(package for package, count in counts.items() if count >= _FEWEST)
    rows = [(text, package) for text, package in rows if package in names]
    features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    return Dataset.from_dict({"text": [t for t, _ in rows], "label": [names.index(p) for _, p in rows]}, features)


def _texts() -> list[str]:
    from pydoc_data.topics import topics

    rows = [_clean(topics[name]) for name in sorted(topics)] + [text for _, text in _docstrings()]
    return [row for row in dict.fromkeys(rows) if row]


def _docstrings() -> Iterator[tuple[Path, str]]:
    """The docstrings of the library, with the file of each, in a fixed order."""
    modules = _modules()
    if not modules:
        problem = f"no sources of the standard library in {_library()}"
        raise ConfigError("data.source", "python-docs", problem, "name a file of your own")
    for path in modules:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # deprecated escapes in string literals
                tree = ast.parse((_library() / path).read_bytes())
        except SyntaxError:
            continue  # a template, or a file with deliberate errors
        for node in ast.walk(tree):
            if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if text := _clean(ast.get_docstring(node) or ""):
                yield path, text


def _clean(text: str) -> str:
    return _UNDERLINE.sub("", text.strip())


def _library() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _modules() -> list[Path]:
    """Source files, relative to the library. Skipped folders such as site-packages, which may be large, are not entered."""
    modules = []
    for directory, inner, files in os.walk(_library()):
        inner[:] = sorted(set(inner) - _SKIPPED)
        modules += [(Path(directory) / file).relative_to(_library()) for file in files if file.endswith(".py")]
    return sorted(modules)

"""Imports go one way: bellwether -> experiments -> launcher -> trainer -> optimizers, without circles."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("experiments", "launcher", "trainer", "optimizers")  # each package may import the later ones
LEAVES = ("bellwether", "bellwether.version")  # all may import these; they import none


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "bellwether" else ("bellwether", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {
    _module(path): path for folder in ("bellwether/commands", *PACKAGES) for path in (ROOT / folder).rglob("*.py")
} | {_module(path): path for path in (ROOT / "bellwether").glob("*.py")}


# save_pretrained copies their relative imports too, and no others.
SAVED_WITH_WEIGHTS = {"bellwether.trainer.models.modeling_recurrent"}


def _statements(node: ast.AST, deferred: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """The import statements of a module; without `deferred`, only those that run when the module is imported."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            pass
        elif deferred or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _statements(child, deferred)


def _imports(module: str, deferred: bool) -> set[str]:
    found = set()
    for statement in _statements(ast.parse(FILES[module].read_text(encoding="utf-8")), deferred):
        if isinstance(statement, ast.Import):
            found |= {alias.name for alias in statement.names}
        else:
            name = statement.module or ""
            if module in SAVED_WITH_WEIGHTS and statement.level == 1:
                name = f"{module.rpartition('.')[0]}.{name}"
            else:
                assert statement.level == 0, f"{module}: relative import"
            submodules = {f"{name}.{alias.name}" for alias in statement.names} & FILES.keys()
            found |= submodules
            if len(submodules) < len(statement.names):
                found.add(name)
    return found


def _package(module: str) -> str:
    """The package that a module of bellwether belongs to; the command line's own modules are "bellwether"."""
    second = (*module.split("."), "")[1]
    return second if second in PACKAGES else "bellwether"


@pytest.mark.parametrize("package", ("bellwether", *PACKAGES))
def test_imports_go_one_way(package: str) -> None:
    order = ("bellwether", *PACKAGES)
    allowed = order[order.index(package) :]
    for module in FILES:
        if _package(module) == package:
            for name in _imports(module, deferred=True):
                assert name.partition(".")[0] not in ("commands", "configs", *PACKAGES), f"{module} imports {name}"
                if name.partition(".")[0] == "bellwether" and name not in LEAVES:
                    assert _package(name) in allowed, f"{module} imports {name}"


def test_leaves_import_nothing_of_bellwether() -> None:
    for module in LEAVES:
        assert not {n for n in _imports(module, deferred=True) if n.startswith("bellwether.")}, module


def test_optimizers_import_torch_alone() -> None:
    for module in FILES:
        if _package(module) == "optimizers":
            others = {name.partition(".")[0] for name in _imports(module, deferred=False)} - sys.stdlib_module_names
            allowed = {"torch", "bellwether"} | (
                {"triton"} if module == "bellwether.optimizers.kernels.triton" else set()
            )
            assert others <= allowed, f"{module} imports {others - allowed}"


@pytest.mark.parametrize("package", ("bellwether", *PACKAGES))
def test_modules_of_a_package_import_one_another_without_circles(package: str) -> None:
    """Imports inside functions count as well: they would only hide a circle."""
    graph = {
        module: {name for name in _imports(module, deferred=True) if name in FILES and _package(name) == package}
        for module in FILES
        if _package(module) == package
    }
    assert _circles(graph) == []


def _circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one module (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for other in sorted(graph[module]):
            if other not in index:
                visit(other)
            if other in stack:
                low[module] = min(low[module], low[other])
        if low[module] == index[module]:
            component = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(component) > 1 or module in graph[module]:
                found.append(sorted(component))

    for module in sorted(graph):
        if module not in index:
            visit(module)
    return found


def test_circles_are_found() -> None:
    assert _circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]

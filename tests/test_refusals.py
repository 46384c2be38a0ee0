"""docs/refused.md lists, in one table, every case that an optimizer, `attach` or the config of an optimizer refuses."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "refused.md"
SCHEMA = [
    ROOT / "trainer" / "config" / "schema" / f"{name}.py" for name in ("__init__", "engine", "optimization", "section")
]
SOURCES = [
    *sorted((ROOT / "optimizers").rglob("*.py")),
    *SCHEMA,
    *(ROOT / "trainer" / f"{name}.py" for name in ("engine", "optimization", "param_groups")),
]
ERRORS = ("ValueError", "RuntimeError", "NotImplementedError", "TypeError", "ConfigError")
SHORTEST = 9  # characters of a fragment of a message: shorter ones would match by accident


def raised(source: str) -> Iterator[tuple[int, str]]:
    """(line, message) of each exception that a source creates. What a message inserts is replaced by an ellipsis."""
    tree = ast.parse(source)
    functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    seen: set[ast.AST] = set()
    for scope in [*reversed(list(functions.values())), tree]:  # inner functions before those around them
        local: dict[str, ast.expr] = {}
        for n in ast.walk(scope):
            target = n.targets[0] if isinstance(n, ast.Assign) else n.target if isinstance(n, ast.NamedExpr) else None
            if isinstance(target, ast.Name):
                local[target.id] = n.value  # type: ignore[attr-defined]
        for node in ast.walk(scope):
            is_error = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ERRORS
            if not is_error or node in seen:
                continue
            assert isinstance(node, ast.Call)
            seen.add(node)
            yield node.lineno, " ".join(filter(None, (_message(part, local, functions) for part in node.args)))


def _message(node: ast.AST, local: dict[str, ast.expr], functions: dict[str, ast.FunctionDef]) -> str:
    if isinstance(node, ast.Name) and node.id in local:
        return _message(local[node.id], {}, functions)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in functions:
        return _text(functions[node.func.id])  # the message is made there
    return _text(node)


def _text(node: ast.AST) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return "…"
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    return " ".join(filter(None, map(_text, ast.iter_child_nodes(node))))


def documented() -> dict[str, str]:
    """The fragments of messages in the table, each with the case of its row."""
    rows = [
        line.strip("| ").split(" | ") for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|")
    ]
    assert [cell.strip() for cell in rows[0]] == ["refused", "message", "because", "instead"]
    return {fragment: row[0] for row in rows[2:] for fragment in re.findall(r"`([^`]+)`", row[1])}


MESSAGES = {
    f"{source.relative_to(ROOT)}:{line}": text
    for source in SOURCES
    for line, text in raised(source.read_text(encoding="utf-8"))
}


def test_table_is_the_only_one_and_its_rows_are_complete() -> None:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    table = [index for index, line in enumerate(lines) if line.startswith("|")]
    assert table == list(range(table[0], table[-1] + 1))
    for row in (lines[index].strip("|").split(" | ") for index in table if index != table[1]):
        assert [bool(cell.strip()) for cell in row] == [True] * 4, row


@pytest.mark.parametrize("where", MESSAGES)
def test_every_refusal_is_in_the_table(where: str) -> None:
    assert any(fragment in MESSAGES[where] for fragment in documented()), MESSAGES[where]


@pytest.mark.parametrize("fragment", documented())
def test_every_row_is_a_message_of_the_code(fragment: str) -> None:
    assert len(fragment) >= SHORTEST
    assert any(fragment in text for text in MESSAGES.values()), documented()[fragment]


def test_messages_are_found_where_they_are_made() -> None:
    source = """
def outer(value):
    def inner():
        problem = f"is {value} there"
        raise ConfigError("key", value, problem, "write less")
    if value:
        raise ValueError(_explained(value))
    if reason := _explained(1):
        raise ValueError(reason)
    raise TypeError("plain, " "in two parts" if value else f"or {value}")
    raise NotImplementedError
def _explained(value):
    return f"because {value}"
"""
    assert [text for _, text in sorted(raised(source))] == [
        "key is … there write less", "because …", "because …", "plain, in two parts or …",
    ]  # fmt: skip

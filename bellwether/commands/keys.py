"""``bellwether keys``: every config key with its type, unit, default and meaning."""

from __future__ import annotations

import argparse
import itertools
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from bellwether.commands.arguments import Commands, complete_key

if TYPE_CHECKING:
    from bellwether.trainer.config.reference import KeyInfo

_WIDTH = 100

_MARKDOWN_HEAD = """\
# Config keys

Every key of a config. `bellwether keys` prints the same, `bellwether keys optimizer` one section of it. On the command line
a key is set by its path: `bellwether train bert-tiny optimizer.lr=1e-3`.

This page is generated: `bellwether keys --markdown > docs/config.md` writes it, and a test compares it with the code.
"""


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "keys",
        help="config keys: type, unit, default and meaning",
        description="Print the keys of a config, each with its type, unit, default and meaning.",
    )
    prefix = parser.add_argument(
        "prefix", metavar="PREFIX", nargs="?", default="", help="such as optimizer or log.every; default: all keys"
    )
    prefix.completer = complete_key  # type: ignore[attr-defined]
    parser.add_argument("--markdown", action="store_true", help="print Markdown tables, as in docs/config.md")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from bellwether.trainer.config import ConfigError
    from bellwether.trainer.config.error_messages import nearest
    from bellwether.trainer.config.reference import keys

    matching_keys = keys(arguments.prefix)
    if not matching_keys:
        advice = nearest(arguments.prefix, [key.path for key in keys()])
        raise ConfigError("PREFIX", arguments.prefix, "no config key begins with this", advice)
    print("\n".join(markdown(matching_keys) if arguments.markdown else plain(matching_keys)))
    return 0


def plain(keys: Sequence[KeyInfo]) -> Iterator[str]:
    """Lines for a terminal: a heading for each section, then its keys, each with an indented description."""
    for first, (heading, members) in enumerate(_sections(keys)):
        if heading is not None:
            yield from ([] if first == 0 else [""]) + _wrapped(_title(heading), heading.description)
        for key in members:
            unit = f"; unit: {key.unit}" if key.unit else ""
            default = "required" if key.default == "required" else f"default: {key.default}"
            yield f"  {key.path}: {key.type}{unit}; {default}"
            yield from textwrap.wrap(key.description, _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)


def markdown(keys: Sequence[KeyInfo]) -> Iterator[str]:
    """Lines of Markdown: a table for each section."""
    yield from _MARKDOWN_HEAD.splitlines()
    for heading, members in _sections(keys):
        yield from ("", f"## {'The run' if heading is None else _title(heading, '`')}")
        if heading is not None and heading.description:
            yield from ("", heading.description)
        if members:
            yield from ("", "| key | type | unit | default | meaning |", "|---|---|---|---|---|")
        for key in members:
            default = key.default if key.default in ("required", "") else f"`{key.default}`"
            cells = (f"`{key.path}`", key.type, key.unit, default, key.description)
            yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _sections(keys: Sequence[KeyInfo]) -> Iterator[tuple[KeyInfo | None, list[KeyInfo]]]:
    """Each section with the keys that follow it; keys before the first section come with None."""
    heading: KeyInfo | None = None
    for is_section, group in itertools.groupby(keys, key=lambda key: key.is_section):
        members = list(group)
        if not is_section:
            yield heading, members
            heading = None
            continue
        for empty in members[:-1]:
            yield empty, []
        heading = members[-1]
    if heading is not None:
        yield heading, []


def _title(section: KeyInfo, quote: str = "") -> str:
    condition = f" with {quote}{section.condition}{quote}" if section.condition else ""
    return f"{quote}{section.path}{quote}{condition}"


def _wrapped(title: str, description: str) -> list[str]:
    return textwrap.wrap(f"{title}: {description}" if description else title, _WIDTH, subsequent_indent="    ")

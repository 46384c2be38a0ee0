"""README, CONTRIBUTING and docs/ agree with the code: links, paths, commands, make targets and config keys exist."""

from __future__ import annotations

import functools
import importlib
import re
import shlex
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import yaml

from bellwether import cli
from bellwether.experiments.sweep import renamed_keys
from bellwether.experiments.sweep.spec import Sweep
from bellwether.trainer.config import renamed
from bellwether.trainer.config.schema import Config

ROOT = Path(__file__).parents[1]
PAGES = [
    page
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
    if page.is_file()
]
TOP_LEVEL = [path.name for path in ROOT.iterdir() if path.is_dir() and path.name not in ("build", "runs")]
MAPPINGS = (
    "model.config.",
    "optimizer.lr_scale",
    "engine.deepspeed",
)  # keys whose values have keys that are not the schema's
USERS_OWN = {"slurm/site.yaml"}  # files that a user writes

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def fenced_blocks(text: str, language: str = "") -> list[str]:
    """The contents of the code blocks that are marked with this language."""
    return [body for name, body in re.findall(r"^```(\w*)\n(.*?)^```", text, re.M | re.S) if name == language]


def inline_code(text: str) -> list[str]:
    """The contents of single backticks outside of code blocks."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub forms them."""
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    titles = re.findall(r"^#+ (.*)$", prose, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@every_page
def test_relative_links_and_anchors_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


@every_page
def test_repository_paths_exist(page: Path) -> None:
    text = page.read_text()
    created = re.findall(r"^```(?:python|yaml)\n# (\S+)$", text, re.M)  # by the code blocks of docs/extending.md
    in_blocks = [word for block in fenced_blocks(text) for word in re.findall(r"[\w./-]+\.(?:yaml|sbatch|py)\b", block)]
    for code in inline_code(text) + in_blocks:
        if not re.fullmatch(r"[\w./*-]+", code) or "/" not in code or code in [*USERS_OWN, *created]:
            continue
        if code.split("/")[0] in TOP_LEVEL:
            assert list(ROOT.glob(code.rstrip("/"))), code


def command_lines(text: str) -> Iterator[list[str]]:
    """The complete `bellwether` commands in the code blocks of a page."""
    for block in fenced_blocks(text):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("bellwether "):
                yield shlex.split(line, comments=True)[1:]


@every_page
def test_commands_parse(page: Path) -> None:
    for words in command_lines(page.read_text()):
        cli._parse(cli.build_parser(), words)


@every_page
def test_imports_in_code_blocks_exist(page: Path) -> None:
    text = page.read_text()
    for block in fenced_blocks(text, "python") + [code for code in inline_code(text) if code.startswith("from ")]:
        for module, names in re.findall(r"^from (bellwether[\w.]*) import ([\w, ]+)$", block, re.M):
            for name in names.split(","):
                assert hasattr(importlib.import_module(module), name.strip()), f"{module}.{name.strip()}"


@every_page
def test_subcommands_and_options_in_prose_exist(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for code in inline_code(page.read_text()):
        words = code.split()
        if words[0] != "bellwether" or len(words) == 1 or not re.fullmatch(r"[a-z-]+", words[1]):
            continue
        with pytest.raises(SystemExit) as ended:
            cli.build_parser().parse_args([*takewhile(re.compile(r"[a-z][a-z-]*$").match, words[1:]), "--help"])
        assert ended.value.code == 0, code
        usage = capsys.readouterr().out
        for option in (word for word in words[2:] if word.startswith("-")):
            assert re.search(rf"(?<!\S)\[?{re.escape(option)}\b", usage), code


def test_quoted_messages_exist() -> None:
    """The symptoms in docs/slurm.md are messages of the launcher or the trainer."""
    code = "".join(file.read_text() for folder in ("launcher", "trainer") for file in ROOT.glob(f"{folder}/**/*.py"))
    ours = ("rank", "furthest behind", "failed twice", "an extension", "SLURM_JOB_GPUS")
    symptoms = re.findall(r"^\| `([^`]+)`", (ROOT / "docs/slurm.md").read_text(), re.M)
    messages = [symptom for symptom in symptoms if symptom.startswith(ours)]
    assert len(messages) >= 6
    for message in messages:
        for part in re.split(r"\b[A-Z][A-Z_]*\b|\.\.\.|[:,]", message):
            assert len(part.strip()) < 6 or part.strip() in code, f"{message}: {part.strip()}"


def test_changelog_lists_every_renamed_key() -> None:
    rows = re.findall(r"^\| `([\w.]+)`[^|]*\| `([\w.]+)`", (ROOT / "CHANGELOG.md").read_text(), re.M)
    for old, new in {**renamed.RENAMED, **renamed_keys.RENAMED}.items():
        assert (old, new) in rows


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for page in PAGES:
        text = page.read_text()
        for code in inline_code(text) + [line for block in fenced_blocks(text) for line in block.splitlines()]:
            if named := re.match(r"make ([a-z-]+)", code):
                assert named[1] in targets, f"{page.name}: {code}"


@functools.cache
def config_keys(model: type) -> frozenset[str]:
    """Every key path of a pydantic model, of all variants of a section."""
    schema = model.model_json_schema()  # type: ignore[attr-defined]

    def walk(node: dict[str, Any], path: str) -> Iterator[str]:
        if "$ref" in node:
            node = schema["$defs"][node["$ref"].rpartition("/")[2]]
        for variant in [*node.get("anyOf", []), *node.get("oneOf", [])]:
            yield from walk(variant, path)
        for key, inner in node.get("properties", {}).items():
            yield f"{path}{key}"
            yield from walk(inner, f"{path}{key}.")

    return frozenset(walk(schema, ""))


@every_page
def test_config_keys_in_prose_exist(page: Path) -> None:
    known = config_keys(Config) | config_keys(Sweep)
    sections = {key.split(".")[0] for key in known if "." in key}
    for code in inline_code(page.read_text()):
        name = re.split(r"[:=\s]", code)[0]
        if re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", name) and name.split(".")[0] in sections:
            if name.startswith(MAPPINGS) or name.rpartition(".")[2] in ("py", "yaml", "md", "json"):
                continue
            assert name in known, code


def leaf_keys(value: Any, path: str = "") -> Iterator[str]:
    """The key paths of a parsed YAML text."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield f"{path}{key}"
            if f"{path}{key}" not in MAPPINGS:
                yield from leaf_keys(inner, f"{path}{key}.")


@every_page
def test_config_keys_in_yaml_blocks_exist(page: Path) -> None:
    for block in fenced_blocks(page.read_text(), "yaml"):
        raw = yaml.safe_load(block)
        model = Sweep if "batches" in raw else Config
        free = ("set", "space", "optimizers", "phases", "extends")  # their keys are not those of the schema
        for key in leaf_keys(raw):
            if key.split(".")[0] not in free:
                assert key in config_keys(model), key
        for phase in raw.get("phases", []):
            assert set(leaf_keys(phase)) <= config_keys(Config)

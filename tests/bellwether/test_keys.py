"""``bellwether keys`` and docs/config.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from bellwether import cli
from bellwether.trainer.config.reference import keys

PAGE = Path(__file__).parents[2] / "docs" / "config.md"


def output(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(["keys", *words]) == 0
    return capsys.readouterr().out


def test_every_key_is_printed_with_type_unit_default_and_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    lines = output(capsys).splitlines()
    for key in keys():
        if not key.is_section:
            unit = f"; unit: {key.unit}" if key.unit else ""
            default = "required" if key.default == "required" else f"default: {key.default}"
            assert f"  {key.path}: {key.type}{unit}; {default}" in lines
            assert key.description, key.path


def test_prefix_selects_a_section_or_a_key(capsys: pytest.CaptureFixture[str]) -> None:
    out = output(capsys, "optimizer")
    assert "  optimizer.lr: " in out
    assert "  batch.global: " not in out
    assert output(capsys, "batch.micro").startswith("  batch.micro: integer > 0; unit: samples; default: 32\n")


def test_unknown_prefix_suggests_the_nearest_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["keys", "optimiser.lr"]) == 2
    error = capsys.readouterr().err
    assert "PREFIX: 'optimiser.lr': no config key begins with this" in error
    assert "optimizer.lr" in error


def test_docs_page_agrees_with_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert PAGE.read_text(encoding="utf-8") == output(capsys, "--markdown"), (
        "regenerate it: bellwether keys --markdown > docs/config.md"
    )

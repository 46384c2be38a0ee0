"""Any content of any text file: read, with everything that is left out counted, or refused in a sentence; never a traceback."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from bellwether.trainer.config.errors import ConfigError
from bellwether.trainer.data import corpus, formats, tokenizer
from bellwether.trainer.data.formats import Options, Unreadable
from bellwether.trainer.data.summary import SourceSummary
from bellwether.trainer.data.text import TextData

fuzz = settings(deadline=None, max_examples=30, suppress_health_check=list(HealthCheck))
NAMES = [f"a{suffix}" for form in formats.FORMATS for suffix in form.suffixes]
LEFT_OUT = ("unreadable rows", "rows without text", "rows of white space", "rows without the column 'text'")

texts = st.lists(st.text(max_size=40), max_size=12)
any_text = st.text(st.characters(), max_size=60)  # with halves of surrogate pairs
pieces = st.sampled_from([
    b"\n", b"\r\n", b"\r", b"\n\n", b",", b"\t", b'"', b"text", b'{"text": "a"}', b"{", b"[", b"]", b"}", b":", b"null", b"\0",
    b"\xff\xfe", b"\xef\xbb\xbf", b"\x1f\x8b", b"\xe9", b"PAR1", b"\\u", b"\\ud800", b"1e999", b"NaN", b" ", b"\xc2\x85", b"-",
])  # fmt: skip
contents = st.one_of(
    st.binary(max_size=300), st.lists(st.one_of(pieces, st.binary(max_size=6)), max_size=30).map(b"".join)
)


def read(name: str, content: bytes, **options: Any) -> tuple[list[str], SourceSummary]:
    """The texts of a file, and what is said about them."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, name)
        file.write_bytes(content)
        (Path(folder) / "out").mkdir()
        form = formats.of(file)
        assert form is not None
        facts = corpus._read_files(([(str(file), form.name)], Options(**options)), Path(folder) / "out")
        found = [text for part in facts["parts"] for text in corpus.read_part(Path(folder, "out", part))]
        return found, SourceSummary.from_json(facts["summary"])


def check_accounts(found: list[str], summary: SourceSummary) -> None:
    assert len(found) == summary.documents
    left_out = sum(finding.count for finding in summary.findings if finding.what in LEFT_OUT)
    assert summary.rows - summary.documents <= left_out, "what is left out is counted"


@pytest.mark.parametrize("name", [*NAMES, "a.txt.gz", "a.jsonl.zst", "a.csv.xz", "a.json.bz2"])
@fuzz
@given(
    content=contents, encoding=st.sampled_from(["auto", "auto", "auto", "latin-1", "utf-16", "utf-16-le", "shift_jis"])
)
def test_any_bytes(name: str, content: bytes, encoding: str) -> None:
    refused = None
    try:
        found, summary = read(name, content, encoding=encoding)
    except Unreadable as error:
        refused = error
    if refused is not None:
        assert str(refused.file).endswith(name)
        assert refused.problem
        return
    check_accounts(found, summary)
    for text in found:
        text.encode()


def cleaned(values: list[str]) -> list[str]:
    found = (corpus.clean(value, "", SourceSummary()) for value in values)
    return [text for text in found if text is not None]


@fuzz
@given(values=st.lists(st.one_of(any_text, st.none()), max_size=10), ascii_only=st.booleans())
def test_what_json_lines_hold_is_read(values: list[str | None], ascii_only: bool) -> None:
    lines = [json.dumps({"text": value}, ensure_ascii=ascii_only) + "\n" for value in values]
    found, summary = read("a.jsonl", "".join(lines).encode("utf-8", "surrogatepass" if ascii_only else "replace"))
    plain = [
        None if value is None else value if ascii_only else value.encode("utf-8", "replace").decode()
        for value in values
    ]
    assert found == cleaned([value for value in plain if value is not None])
    check_accounts(found, summary)


@fuzz
@given(values=st.lists(any_text, max_size=10), indent=st.sampled_from([None, 2]))
def test_what_a_json_list_holds_is_read(values: list[str], indent: int | None) -> None:
    found, _ = read("a.json", json.dumps([{"text": value} for value in values], indent=indent).encode())
    assert found == cleaned(values)


@fuzz
@given(values=texts)
def test_what_a_table_holds_is_read(values: list[str]) -> None:
    # The csv module reads CR at the end of a quoted value back as LF.
    values = [value.replace("\r", "") for value in values]
    file = io.StringIO(newline="")
    csv.writer(file).writerows([["id", "text"], *([i, value] for i, value in enumerate(values))])
    found, summary = read("a.csv", file.getvalue().encode())
    assert found == cleaned(values)
    check_accounts(found, summary)


@fuzz
@given(values=st.lists(st.text(st.characters(exclude_characters="\t\n\r", exclude_categories=["Cs"])), max_size=10))
def test_what_a_table_between_tabs_holds_is_read(values: list[str]) -> None:
    lines = ["id\ttext", *(f"{i}\t{value}" for i, value in enumerate(values))]
    found, _ = read("a.tsv", ("\n".join(lines) + "\n").encode())
    quoted = [value for value in values if value[:1] == value[-1:] == '"']
    if not quoted:
        assert found == cleaned(values)


@fuzz
@given(values=st.lists(st.one_of(st.text(max_size=20), st.none()), max_size=10), size=st.integers(1, 4))
def test_what_parquet_holds_is_read(values: list[str | None], size: int) -> None:
    file = io.BytesIO()
    parquet.write_table(pyarrow.table({"text": pyarrow.array(values, pyarrow.string())}), file, row_group_size=size)
    found, summary = read("a.parquet", file.getvalue())
    assert found == cleaned([value for value in values if value is not None])
    check_accounts(found, summary)


@fuzz
@given(data=st.data())
def test_damaged_parquet_is_refused_or_read(data: st.DataObject) -> None:
    file = io.BytesIO()
    parquet.write_table(pyarrow.table({"text": [f"text {i}" for i in range(50)]}), file, row_group_size=20)
    content = bytearray(file.getvalue())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=8)):
        content[place] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(Unreadable):
        check_accounts(*read("a.parquet", bytes(content)))


@fuzz
@given(
    lines=st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r\0"), max_size=20), max_size=30
    )
)
def test_no_line_of_a_text_file_is_lost(lines: list[str]) -> None:
    content = ("\n".join(lines) + "\n").encode()
    if content[:2] in (b"PK", b"BZ"):
        return
    found, _ = read("a.txt", content)
    for mode in ("auto", "lines", "paragraphs", "files"):
        found, _ = read("a.txt", content, documents=mode)
        said = [line for text in found for line in text.split("\n")]
        assert cleaned(said) == cleaned(lines)


@fuzz
@given(content=contents, specials=st.booleans())
def test_any_vocabulary(content: bytes, specials: bool, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    file.write_bytes(("\n".join(tokenizer.SPECIAL) + "\n").encode() * specials + content)
    try:
        words = tokenizer.given(TextData(kind="text", tokenizer=str(file)))
    except ConfigError:
        return
    ids = words("a b [UNK] c\u0e2a")["input_ids"]
    assert max(ids) < len(words)

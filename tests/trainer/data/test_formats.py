"""What is read from small files, of the kinds that people report to be misread, and what is said about it."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from bellwether.trainer.config.errors import ConfigError
from bellwether.trainer.data import corpus, text_sources
from bellwether.trainer.data.text import TextData

LINES = [f"line {i} of a file" for i in range(400)]


def text(lines: list[str]) -> bytes:
    return ("\n".join(lines) + "\n").encode()


def rows(*values: Any, column: str = "text") -> bytes:
    return text([json.dumps({column: value, "id": i}) for i, value in enumerate(values)])


def tar(**members: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name.replace("_", ".", 1))
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def table(**columns: Any) -> bytes:
    file = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), file)
    return file.getvalue()


def zstd(content: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return bytes(sink.getvalue())


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., corpus.Corpus]:
    def read(files: dict[str, bytes], **keys: Any) -> corpus.Corpus:
        for name, content in files.items():
            (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "data" / name).write_bytes(content)
        source = str(tmp_path / "data" / next(iter(files)) if len(files) == 1 else tmp_path / "data")
        config = TextData(kind="text", cache=str(tmp_path / "cache"), **{"source": source, **keys})
        return corpus.load(config, text_sources.locate(config, "data.source", config.source))

    return read


# name, content, other keys, the texts that are right, what is said
READ: list[tuple[str, bytes, dict[str, Any], list[str], list[tuple[str, int]]]] = [
    # Lines and paragraphs.
    ("blank_at_end.txt", text([*LINES, "", ""]), {}, LINES, [("text files of lines", 1), ("blank lines", 2)]),
    ("blank_within.txt", text([*LINES[:200], "", *LINES[200:]]), {}, LINES, [("text files of lines", 1), ("blank lines", 1)]),
    ("blank_first.txt", text(["", *LINES]), {}, LINES, [("text files of lines", 1), ("blank lines", 1)]),
    ("paragraphs.txt", b"a b\nc d\n\ne f\n", {}, ["a b\nc d", "e f"], [("text files of paragraphs", 1)]),
    ("crlf.txt", b"a b\r\nc d\r\n\r\ne f\r\n", {}, ["a b\nc d", "e f"], [("text files of paragraphs", 1)]),
    ("spaces.txt", b"a b\nc d\n  \t\ne f\n", {}, ["a b\nc d", "e f"], [("text files of paragraphs", 1)]),
    ("sentences.txt", text([*(["one sentence"] * 40 + [""]) * 12]), {}, ["\n".join(["one sentence"] * 40)] * 12,
     [("text files of paragraphs", 1)]),
    ("stated.txt", b"a b\nc d\n\ne f\n", {"documents": "lines"}, ["a b", "c d", "e f"],
     [("text files of lines", 1), ("blank lines", 1)]),
    ("stated.txt", text([*LINES, "", "end"]), {"documents": "paragraphs"}, ["\n".join(LINES), "end"],
     [("text files of paragraphs", 1)]),
    ("stated.txt", b"a b\n\nc d\n", {"documents": "files"}, ["a b\n\nc d"], [("text files", 1)]),
    ("no_end.txt", b"a b\nc d", {}, ["a b", "c d"], [("text files of lines", 1)]),
    # str.splitlines would split here.
    ("separators.txt", "a\u2028b\nc\x0bd\x0ce\x85f\x1cg\n".encode(), {}, ["a\u2028b", "c\x0bd\x0ce\x85f\x1cg"],
     [("text files of lines", 1)]),
    ("cr_within.txt", b"10 %\r20 %\r30 %\nend\n", {}, ["10 %\r20 %\r30 %", "end"], [("text files of lines", 1)]),
    ("cr_only.txt", b"a b\rc d\r", {}, ["a b", "c d"], [("text files of lines", 1), ("files whose lines end with CR", 1)]),
    ("huge.txt", b"word " * 1_000_000 + b"\nshort\n", {}, ["word " * 1_000_000, "short"], [("text files of lines", 1)]),
    # Encodings.
    ("mark.txt", b"\xef\xbb\xbfa b\nc \xc3\xa9\n", {}, ["a b", "c é"], [("text files of lines", 1)]),
    ("utf16.txt", "a é\nc d\n".encode("utf-16"), {}, ["a é", "c d"], [("text files of lines", 1), ("files in UTF-16", 1)]),
    ("utf32.txt", "a é\nc d\n".encode("utf-32"), {}, ["a é", "c d"], [("text files of lines", 1), ("files in UTF-32", 1)]),
    ("latin.txt", "café\nthé\n".encode("latin-1"), {"encoding": "latin-1"}, ["café", "thé"], [("text files of lines", 1)]),
    ("wide.txt", "a é\nc d\n".encode("utf-16-le"), {"encoding": "utf-16-le"}, ["a é", "c d"], [("text files of lines", 1)]),
    ("some_latin.txt", "one\ncafé\ntwo\n".encode("latin-1"), {}, ["one", "two"],
     [("text files of lines", 1), ("unreadable rows", 1)]),
    ("nul.txt", b"a\0b\nc\n\0\n", {}, ["ab", "c"], [("text files of lines", 1), ("texts with NUL characters", 2), ("rows of white space", 1)]),
    ("replaced.txt", "a \ufffd b\nc\n".encode(), {}, ["a \ufffd b", "c"],
     [("text files of lines", 1), ("texts with U+FFFD, as after a wrong encoding", 1)]),
    ("base64.txt", b"a " + b"x" * 500 + b"\nb\n", {}, ["a " + "x" * 200, "b"],
     [("text files of lines", 1), ("words of more than 200 letters", 1)]),
    # Compression.
    ("a.txt.gz", gzip.compress(b"a b\n") + gzip.compress(b"c d\n"), {}, ["a b", "c d"], [("text files of lines", 1)]),
    ("a.txt.zst", zstd(b"a b\n") + zstd(b"c d\n"), {}, ["a b", "c d"], [("text files of lines", 1)]),
    ("a.txt.bz2", bz2.compress(b"a b\nc d\n"), {}, ["a b", "c d"], [("text files of lines", 1)]),
    ("A.TXT.XZ", lzma.compress(b"a b\nc d\n"), {}, ["a b", "c d"], [("text files of lines", 1)]),
    ("a.jsonl.zst", zstd(rows("a", "b")), {}, ["a", "b"], []),
    ("a.csv.gz", gzip.compress(b"text,id\na,1\nb,2\n"), {}, ["a", "b"], []),
    # JSON lines.
    ("a.jsonl", rows("a\nb", "c"), {}, ["a\nb", "c"], []),
    ("mark.jsonl", b"\xef\xbb\xbf" + rows("a", "b"), {}, ["a", "b"], []),
    ("a.ndjson", rows("a", "b", column="content"), {"column": "content"}, ["a", "b"], []),
    ("nested.jsonl", rows({"body": "a"}, {"body": "b"}, column="page"), {"column": "page.body"}, ["a", "b"], []),
    ("dotted.jsonl", rows("a", column="page.body"), {"column": "page.body"}, ["a"], []),
    ("null.jsonl", rows("a", None, "", "  ", "b"), {}, ["a", "b"], [("rows without text", 1), ("rows of white space", 2)]),
    ("numbers.jsonl", rows("a", 7, True, 0.5), {}, ["a", "7", "true", "0.5"], [("numbers in the text column", 3)]),
    ("lists.jsonl", rows("a", ["b", "c"], {"d": 1}), {}, ["a"], [("unreadable rows", 2)]),
    ("missing.jsonl", rows("a") + b'{"id": 3}\n' + rows("b"), {}, ["a", "b"], [("rows without the column 'text'", 1)]),
    ("late.jsonl", b'{"id": 3}\n' * 50 + rows("b"), {}, ["b"], [("rows without the column 'text'", 50)]),
    ("cut.jsonl", rows("a", "b")[:-12], {}, ["a"], [("unreadable rows", 1)]),
    ("two_a_line.jsonl", b'{"text": "a"}{"text": "b"}\n{"text": "c"}\n', {}, ["c"], [("unreadable rows", 1)]),
    ("blank.jsonl", b'{"text": "a"}\n\n\n{"text": "b"}\n', {}, ["a", "b"], [("blank lines", 2)]),
    ("twice.jsonl", b'{"text": "a", "text": "b"}\n{"text": "\\"text\\""}\n', {}, ["b", '"text"'],
     [("objects that have 'text' twice", 1)]),
    ("surrogate.jsonl", b'{"text": "a \\ud800 b"}\n', {}, ["a \ufffd b"],
     [("texts with halves of surrogate pairs", 1), ("texts with U+FFFD, as after a wrong encoding", 1)]),
    ("deep.jsonl", b'{"text": ' + b"[" * 100_000 + b"\n" + rows("a"), {}, ["a"], [("unreadable rows", 1)]),
    ("numbers_only.jsonl", b'{"text": "a"}\n' + b"1" * 5000 + b"\n", {}, ["a"], [("unreadable rows", 1)]),
    ("types.jsonl", b'{"text": "a", "x": 1}\n{"text": "b", "x": "one"}\n{"text": "c", "x": {"y": []}}\n', {}, ["a", "b", "c"], []),
    # Other layouts of JSON.
    ("list.json", b'[{"text": "a"},\n {"text": "b"}]', {}, ["a", "b"], []),
    ("data.json", b'{"version": 1, "data": [{"text": "a"}, {"text": "b"}]}', {}, ["a", "b"],
     [("JSON files with rows in the field 'data'", 1)]),
    ("columns.json", b'{"text": ["a", "b"], "id": [1, 2]}', {}, ["a", "b"], [("JSON files of columns", 1)]),
    ("one.json", b'{"text": "a"}\n', {}, ["a"], []),
    ("lines.json", b'{"text": "a"}\n{"text": "b"}\n', {}, ["a", "b"], []),
    ("pretty.json", b'{\n "text": "a"\n}\n{\n "text": "b"\n}\n', {}, ["a", "b"], []),
    ("big.json", json.dumps([{"text": "x " * 300_000}, {"text": "b"}] * 2).encode(), {}, ["x " * 300_000, "b"] * 2, []),
    # Tables.
    ("a.csv", b'id,text\n1,"a, ""b""\nc"\n2,d\n', {}, ['a, "b"\nc', "d"], []),
    ("mark.csv", b"\xef\xbb\xbftext,id\na,1\n", {}, ["a"], []),
    ("words.csv", b"text\nNA\nnull\nNone\n007\n1e5\n", {}, ["NA", "null", "None", "007", "1e5"], []),
    ("semicolons.csv", b"id;text\n1;a, b\n2;c\n", {}, ["a, b", "c"], [("files with semicolons between their values", 1)]),
    ("ragged.csv", b"id,text\n1,a\n2,b,c\n3\n4,d\n", {}, ["a", "d"], [("unreadable rows", 2)]),
    ("empty_values.csv", b"id,text\n1,\n2,b\n", {}, ["b"], [("rows of white space", 1)]),
    ("blank.csv", b"id,text\n1,a\n\n2,b\n", {}, ["a", "b"], []),
    ("quote.csv", b'id,text\n1,a "b" c\n2,"d" e\n3,f\n', {}, ['a "b" c', "f"], [("unreadable rows", 1)]),
    ("long.csv", b"id,text\n1," + b"x y " * 50_000 + b"\n", {}, ["x y " * 50_000], []),
    ("a.tsv", b"id\ttext\n1\ta, b\n2\tc\n", {}, ["a, b", "c"], []),
    ("lone_quote.tsv", b'id\ttext\n1\t"a\n2\tb\n3\tc "d"\n', {}, ['"a', "b", 'c "d"'], []),
    ("quoted.tsv", b'id\ttext\n1\t"a ""b"""\n2\tc\n', {}, ['a "b"', "c"], []),
    ("multi.tsv", b'id\ttext\n1\t"a\nb"\n2\tc\n', {}, ["a\nb", "c"], []),
    # Parquet.
    ("a.parquet", table(text=["a", None, "b"], id=[1, 2, 3]), {}, ["a", "b"], [("rows without text", 1)]),
    ("dictionary.parquet", table(text=pyarrow.array(["a", "b", "a"]).dictionary_encode()), {}, ["a", "b", "a"], []),
    ("bytes.parquet", table(text=[b"a", b"\xff"]), {}, ["a"], [("unreadable rows", 1)]),
    ("nested.parquet", table(page=[{"body": "a"}, {"body": "b"}]), {"column": "page.body"}, ["a", "b"], []),
    # Tar shards.
    ("a.tar", tar(a_txt=b"one\ntwo\n", b_txt=b"three"), {}, ["one\ntwo\n", "three"], []),
    ("json.tar", tar(a_json=b'{"text": "a"}', b_jsonl=rows("b", "c")), {}, ["a", "b", "c"], []),
    ("both.tar", tar(a_txt=b"a", a_json=b'{"id": 1}', a_jpg=b"..."), {}, ["a"], []),
    ("a.tar.gz", gzip.compress(tar(a_txt=b"a")), {}, ["a"], []),
]  # fmt: skip


@pytest.mark.parametrize("name, content, keys, texts, said", READ, ids=[row[0] for row in READ])
def test_texts_of_a_file(
    read: Callable[..., corpus.Corpus],
    name: str,
    content: bytes,
    keys: dict[str, Any],
    texts: list[str],
    said: list[tuple[str, int]],
) -> None:
    found = read({name: content}, **keys)
    assert list(found.texts()) == texts
    assert [(finding.what, finding.count) for finding in found.summary.findings] == said
    assert found.summary.documents == len(texts) == len(found)


REFUSED: list[tuple[str, bytes, dict[str, Any], str]] = [
    ("wide.txt", "a b\nc d\n".encode("utf-16-le"), {}, "looks like UTF-16-LE without.*; write data.encoding=utf-16-le"),
    ("wide.txt", "a b\nc d\n".encode("utf-16-be"), {}, "looks like UTF-16-BE without"),
    ("zip.txt", b"PK\x03\x04....", {}, "zip.txt cannot be read: is a zip file by its content"),
    ("gz.txt", gzip.compress(b"a\n"), {}, "is a gzip file by its content; correct its name"),
    ("cut.txt.gz", gzip.compress(bytes(range(97, 122)) * 999)[:-9], {}, r"cut.txt.gz cannot be read: is no complete .gz file"),
    ("cut.txt.zst", zstd(bytes(range(97, 122)) * 999)[:-9], {}, r"cut.txt.zst cannot be read: is no complete .zst file"),
    ("no.txt.gz", b"a b\n", {}, "is no complete .gz file"),
    ("a.jsonl", rows("a", column="content"), {}, r"data.column: 'text': .*a.jsonl has no such column; it has: content, id"),
    ("a.csv", b"content,id\na,1\n", {}, r"data.column: 'text': .*a.csv has no such column; it has: content, id"),
    ("twice.csv", b"text,id,text\na,1,b\n", {}, r"data.column: 'text': .* has 2 columns of this name; it has: text, id, text"),
    ("cr.csv", b"text\r,id\rtext\nb,1\n", {}, "its first row is no row of a table"),
    ("no_header.csv", b"a b,1\nc d,2\n", {}, r"has no such column; it has: a b, 1"),
    ("a.json", b'[{"text": "a"}, {"te', {}, "a.json cannot be read: is not JSON"),
    ("a.json", b'[{"text": "a"}] x', {}, "is not JSON: something follows its list"),
    ("a.json", b'{"data": {"text": "a"}}', {}, "has no such column; it has: data"),
    ("a.jsonl", b"not json\n", {}, "has no rows with text; 1 unreadable rows: .*a.jsonl, line 1: is not JSON"),
    ("strings.jsonl", b'"a"\n"b"\n', {}, "line 1: holds str, not an object"),
    ("cut.parquet", table(text=["a"])[:-20], {}, "cut.parquet cannot be read: is no complete parquet file"),
    ("a.parquet", table(text=[["a"]]), {}, "data.column: 'text': .* holds list<.*> there, not text; it has: text"),
    ("ints.parquet", table(text=[1, 2]), {}, "data.column: 'text': .* holds int64 there, not text; it has: text"),
    ("cut.tar", tar(a_txt=b"a" * 5000)[:2000], {}, "cut.tar cannot be read: is no complete tar file"),
    ("a.tar", tar(a_jpg=b"..."), {}, "has no rows with text"),
    ("a.txt", b" \n\n \n", {}, "has no rows with text; 3 blank lines: left out"),
    ("a.docx", b"PK", {}, "what is a .docx file.; set data.format, or name files that end in .txt"),
    ("a.png", b"\x89PNG", {}, "is imagefolder, but data.kind is text"),
]  # fmt: skip


@pytest.mark.parametrize("name, content, keys, message", REFUSED)
def test_file_that_cannot_be_read_is_refused(
    read: Callable[..., corpus.Corpus], name: str, content: bytes, keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        read({name: content}, **keys)


def test_damaged_row_group_of_parquet_is_named(tmp_path: Path, read: Callable[..., corpus.Corpus]) -> None:
    file = io.BytesIO()
    words = [f"text number {i * i}" for i in range(3000)]
    parquet.write_table(
        pyarrow.table({"text": words}), file, row_group_size=1000, compression="zstd", use_dictionary=False
    )
    content = bytearray(file.getvalue())
    start = parquet.read_metadata(io.BytesIO(content)).row_group(1).column(0).data_page_offset
    content[start + 30 : start + 200] = bytes(170)
    with pytest.raises(ConfigError, match=r"a.parquet cannot be read: row group 1, after row 1000: "):
        read({"a.parquet": bytes(content)})


def test_files_of_all_formats_in_a_folder_are_read(read: Callable[..., corpus.Corpus]) -> None:
    found = read({
        "a.txt": b"one\ntwo\n", "b.jsonl": rows("three"), "c/d.csv": b"text\nfour\n", "e.parquet": table(text=["five"]),
        "f.txt.gz": gzip.compress(b"six\n"), "README.md": b"no", "g.tar": tar(a_txt=b"seven"), "empty.txt": b"",
    })  # fmt: skip
    assert sorted(found.texts()) == ["five", "four", "one", "seven", "six", "three", "two"]
    assert ("empty files", 1) in [(f.what, f.count) for f in found.summary.findings]


def test_stated_format_reads_files_of_any_name(read: Callable[..., corpus.Corpus]) -> None:
    assert list(read({"corpus.en": b"a\nb\n"}, format="text").texts()) == ["a", "b"]
    assert list(read({"dump": rows("c")}, format="json").texts()) == ["c"]


def test_damaged_column_in_one_of_many_files_is_named(read: Callable[..., corpus.Corpus]) -> None:
    with pytest.raises(ConfigError, match=r"data.column: 'text': .*meta.json has no such column; it has: license"):
        read({"a.txt": b"a\n", "meta.json": b'{"license": "MIT"}'})

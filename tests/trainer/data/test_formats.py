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


def tar_of(*members: tuple[str, Any]) -> bytes:
    """A tar archive of files, and of links where the content is the type of the link and its target."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, tuple):
                info.type, info.linkname = content
                archive.addfile(info)
            else:
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
    # What else people have. pandas: NaN for a missing value, joined tables, Excel; huggingface/datasets, webdataset: archives.
    ("nan.jsonl", b'{"text": NaN}\n{"text": "a", "x": NaN}\n{"text": Infinity}\n', {}, ["a", "inf"],
     [("rows without text", 1), ("numbers in the text column", 1)]),
    ("quotes.jsonl", b"{'text': 'a'}\n" + rows("b"), {}, ["b"], [("unreadable rows", 1)]),
    ("tab.jsonl", b'{"text": "a\tb"}\n' + rows("b"), {}, ["b"], [("unreadable rows", 1)]),
    ("separator.jsonl", '{"text": "a\u2028b"}\n'.encode(), {}, ["a\u2028b"], []),
    ("nul.jsonl", b'{"text": "a\\u0000b"}\n', {}, ["ab"], [("texts with NUL characters", 1)]),
    ("crlf.jsonl", b'{"text": "a"}\r\n{"text": "b"}\r\n', {}, ["a", "b"], []),
    ("cr.jsonl", b'{"text": "a"}\r{"text": "b"}\r', {}, ["a", "b"], [("files whose lines end with CR", 1)]),
    ("utf16.jsonl", '{"text": "a é"}\n'.encode("utf-16"), {}, ["a é"], [("files in UTF-16", 1)]),
    ("case.jsonl", b'{"Text": "a"}\n' + rows("b"), {}, ["b"], [("rows without the column 'text'", 1)]),
    ("mark.json", b'\xef\xbb\xbf[{"text": "a"}]', {}, ["a"], []),
    ("joined.csv", b"id,text\n1,a\nid,text\n2,text\n", {}, ["a", "text"], [("rows that repeat the header", 1)]),
    ("joined.tsv", b"id\ttext\n1\ta\nid\ttext\n2\tb\n", {}, ["a", "b"], [("rows that repeat the header", 1)]),
    ("index.csv", b",text\n0,a\n1,b\n", {}, ["a", "b"], []),
    ("trailing.csv", b"id,text,\n1,a,\n2,b,\n", {}, ["a", "b"], []),
    ("twins.csv", b"id,id,text\n1,1,a\n", {}, ["a"], []),
    ("mark_quoted.csv", b'\xef\xbb\xbf"text","id"\na,1\n', {}, ["a"], []),
    ("utf16.csv", "text,id\nécole,1\n".encode("utf-16"), {}, ["école"], [("files in UTF-16", 1)]),
    ("cp1252.csv", "text\n“q”\n".encode("cp1252"), {"encoding": "cp1252"}, ["“q”"], []),
    ("latin.csv", "text\ncafé\nok\n".encode("latin-1"), {}, ["ok"], [("unreadable rows", 1)]),
    ("crlf.csv", b'id,text\r\n1,"a\r\nb"\r\n2,c\r\n', {}, ["a\nb", "c"], []),
    ("escapes.csv", b'id,text\n1,"a \\"b\\" c"\n2,d\n', {}, ["d"], [("unreadable rows", 1)]),
    ("tabs.csv", b"id\ttext\n1\ta\n", {}, ["a"], [("files with tabs between their values", 1)]),
    ("commas.tsv", b"id,text\n1,a\n", {}, ["a"], [("files with commas between their values", 1)]),
    ("trailing.tsv", b"id\ttext\n1\ta\t\n2\tb\n", {}, ["b"], [("unreadable rows", 1)]),
    ("zeros.txt.gz", gzip.compress(b"a b\n") + bytes(512), {}, ["a b"], [("text files of lines", 1)]),
    ("skippable.txt.zst", zstd(b"a b\n") + b"\x50\x2a\x4d\x18\x04\0\0\0xxxx" + zstd(b"c d\n"), {}, ["a b", "c d"],
     [("text files of lines", 1)]),
    ("several.txt.bz2", bz2.compress(b"a b\n") + bz2.compress(b"c d\n"), {}, ["a b", "c d"], [("text files of lines", 1)]),
    ("invisible.txt", "\u200b\n\ufeff \u2060\nb\n\x1a".encode(), {}, ["b"], [("text files of lines", 1), ("rows of white space", 3)]),
    ("joined.txt", b"a\n\xef\xbb\xbfb\nc \xe2\x80\x8bd\n", {}, ["a", "b", "c \u200bd"],
     [("text files of lines", 1), ("texts with byte order marks", 1)]),
    ("bidi.txt", "a\u202eb\n\u05d0\u05d1\n".encode(), {}, ["a\u202eb", "\u05d0\u05d1"], [("text files of lines", 1)]),
    ("wtf8.txt", b"a \xed\xa0\x80 b\n\xc0\x80\nok\n", {}, ["ok"], [("text files of lines", 1), ("unreadable rows", 2)]),
    ("large.parquet", table(text=pyarrow.array(["a", None], pyarrow.large_string())), {}, ["a"], [("rows without text", 1)]),
    ("dotted.parquet", table(**{"page.body": ["a"]}), {"column": "page.body"}, ["a"], []),
    ("null.parquet", table(page=[{"body": "a"}, None, {"body": None}]), {"column": "page.body"}, ["a"],
     [("rows without the column 'page.body'", 1), ("rows without text", 1)]),
    ("links.tar", tar_of(("a.txt", b"a"), ("b.txt", (tarfile.LNKTYPE, "a.txt")), ("c.txt", (tarfile.SYMTYPE, "a.txt"))), {}, ["a"],
     [("links in tar shards", 2)]),
    ("outside.tar", tar_of(("/abs/a.txt", b"a"), ("../b.txt", b"b")), {}, ["a", "b"], []),
    ("names.tar", tar_of(("é" * 150 + ".TXT", b"a")), {}, ["a"], []),
    ("again.tar", tar_of(("a.txt", b"old"), ("a.txt", b"new")), {}, ["new"],
     [("members of a tar shard with the name of a later one", 1)]),
    ("hidden.tar", tar_of(("._a.txt", b"x"), ("__MACOSX/a.txt", b"x"), (".git/a.txt", b"x"), ("./b.txt", b"b")), {}, ["b"], []),
    ("marks.tar", tar_of(("a.txt", "é".encode("utf-16")), ("b.txt", b"\xef\xbb\xbfb")), {}, ["é", "b"], []),
    ("latin.tar", tar_of(("a.txt", b"caf\xe9"), ("b.txt", b"b")), {}, ["b"], [("unreadable rows", 1)]),
    ("list.tar", tar_of(("a.json", b'[{"text": "a"}]'), ("b.txt", b"b")), {}, ["b"], [("unreadable rows", 1)]),
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


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123\n"
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
    *((f"lfs.{suffix}", LFS, {}, "is a Git LFS pointer instead of the file; run git lfs pull")
      for suffix in ("txt", "txt.gz", "jsonl", "json", "csv", "tsv", "parquet", "tar")),
    ("gz.jsonl", gzip.compress(rows("a")), {}, "is a gzip file by its content; correct its name"),
    ("twice.txt.gz", gzip.compress(gzip.compress(b"a\n")), {}, "is a gzip file by its content"),
    ("garbage.txt.gz", gzip.compress(b"a b\n") + b"garbage", {}, "is no complete .gz file"),
    ("sum.txt.gz", gzip.compress(b"a b\n" * 100)[:-8] + bytes(8), {}, "is no complete .gz file: CRC check failed"),
    ("second.txt.zst", zstd(b"a b\n") + zstd(b"c d\n" * 1000)[:-5], {}, "is no complete .zst file"),
    ("cut.txt.bz2", bz2.compress(b"a b\n" * 1000)[:-9], {}, "is no complete .bz2 file"),
    ("a.zip", b"PK\x03\x04", {}, "what is a .zip file"),
    ("spaces.csv", b'"id", "text"\n1,"a"\n', {}, 'has no such column; it has: id, "text"'),
    ("excel.csv", b"sep=;\nid;text\n1;a\n", {}, "has no such column; it has: sep=;"),
    ("comment.csv", b"# exported\nid,text\n1,a\n", {}, "has no such column; it has: # exported"),
    ("unclosed.csv", b'id,text\n1,"a\n2,b\n', {}, "line 2 to 3: unexpected end of data"),
    ("header.csv", b"id,text\n", {}, "has no rows with text"),
    ("commas.jsonl", b'{"text": "a"},\n{"text": "b"},\n', {}, "2 unreadable rows: left out .*line 1: is not JSON: Extra data"),
    ("list.jsonl", b'[{"text": "a"},\n{"text": "b"}]\n', {}, "line 1: is not JSON"),
    ("pretty.jsonl", b'{\n "text": "a"\n}\n', {}, "3 unreadable rows"),
    ("digits.jsonl", b'{"text": "a", "n": ' + b"9" * 5000 + b"}\n", {}, "Exceeds the limit"),
    ("comma.json", b'[{"text": "a"},]', {}, "is not JSON"),
    ("null.json", b"null", {}, "holds NoneType, not an object"),
    ("pandas.json", b'{"text": {"0": "a", "1": "b"}}', {}, "holds an object, not text"),
    ("splits.json", b'{"train": [{"text": "a"}], "test": [{"text": "b"}]}', {}, "has no such column; it has: train, test"),
    ("struct.parquet", table(text=[{"a": "b"}]), {}, "holds struct<a: string> there, not text"),
    ("list.parquet", table(page=[[{"body": "a"}]]), {"column": "page.body"}, "has no rows with text; 1 rows without the column"),
    ("a.parquet", b"text\na\n", {}, "is no complete parquet file"),
    ("table.txt", table(text=["a"]), {}, "is a parquet file by its content"),
    ("gz.tar", gzip.compress(tar(a_txt=b"a")), {}, "is no complete tar file"),
    ("zeros.tar", bytes(10240), {}, "has no rows with text"),
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


def test_parquet_file_without_rows_is_named(read: Callable[..., corpus.Corpus]) -> None:
    files = {"a.parquet": table(text=pyarrow.array([], pyarrow.string())), "b.parquet": table(text=["b"], more=[1])}
    found = read(files)
    assert list(found.texts()) == ["b"]
    assert [(finding.what, finding.count) for finding in found.summary.findings] == [("files without rows", 1)]

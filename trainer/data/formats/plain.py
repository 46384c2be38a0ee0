"""Text files: each line is a document, or each paragraph, or each file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bellwether.trainer.data.formats.opening import Options, text_lines
from bellwether.trainer.data.summary import SourceSummary

# Blank lines separate paragraphs where these are short, or many. A few blank lines among many others are an accident: taken
# for separators, one of them would join hundreds of documents.
_SHORT, _LONG, _MANY = 8, 200, 10  # lines of a paragraph; paragraphs
_LOOK = 1 << 26  # characters by which it is decided

_MODES = {
    "lines": ("text files of lines", "each line is a document"),
    "paragraphs": ("text files of paragraphs", "a blank line separates documents"),
    "files": ("text files", "each file is a document"),
}


def read(file: Path, options: Options, summary: SourceSummary) -> Iterator[str]:
    mode = options.documents if options.documents != "auto" else _mode(file, options)
    summary.note(*_MODES[mode], str(file))
    lines = text_lines(file, options, summary)
    if mode == "lines":
        for _, line in lines:
            if line.strip():
                yield line
            else:
                summary.note("blank lines", "left out", str(file))
        return
    if mode == "files":
        yield "\n".join(line for _, line in lines)
        return
    paragraph: list[str] = []
    for _, line in lines:
        if line.strip():
            paragraph.append(line)
        elif paragraph:
            yield "\n".join(paragraph)
            paragraph = []
    if paragraph:
        yield "\n".join(paragraph)


def _mode(file: Path, options: Options) -> str:
    """Whether the file is made of paragraphs or of lines."""
    lines, paragraphs, inside, seen = 0, 0, False, 0
    for _, line in text_lines(file, options, SourceSummary()):
        is_blank = not line.strip()
        lines += not is_blank
        paragraphs += not is_blank and not inside
        inside = not is_blank
        seen += len(line)
        if seen > _LOOK:
            break
    length = lines / max(1, paragraphs)
    is_made_of = paragraphs > 1 and (length <= _SHORT or (paragraphs >= _MANY and length <= _LONG))
    return "paragraphs" if is_made_of else "lines"

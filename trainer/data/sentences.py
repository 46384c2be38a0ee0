"""Where the sentences of a document end: at the ends of lines, or by punctuation."""

from __future__ import annotations

import re
from collections.abc import Iterator

REVISION = 1

# Behind . ! ? and what closes a quotation or a bracket, where white space and then no lower-case letter follows; not behind the initial
# of a name. Behind a full stop of Chinese or Japanese. At a blank line.
_BY_PUNCTUATION = re.compile(
    r"""(?<=[.!?\u2026])(?<!\b[A-Za-z]\.)["'\u201d\u2019\u00bb)\]]*(?=\s+["'\u201c\u2018\u00ab(\[]*[^\W_a-z])|(?<=[\u3002\uff01\uff1f])|(?=\n[^\S\n]*\n)"""
)
_LINES = re.compile(r"(?=\n)")

RULES = {"lines": _LINES, "punctuation": _BY_PUNCTUATION}


def split(text: str, rule: str) -> Iterator[str]:
    """The sentences of a text. Joined they are the text: white space between two sentences begins the second.

    >>> list(split('He left. "Why?" I asked J. Smith. 3 days on.', "punctuation"))
    ['He left.', ' "Why?"', ' I asked J. Smith.', ' 3 days on.']
    """
    begin = 0
    for found in RULES[rule].finditer(text):
        if text[begin : found.end()].strip():
            yield text[begin : found.end()]
            begin = found.end()
    if begin < len(text):
        yield text[begin:]

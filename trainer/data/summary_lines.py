"""The summary of what was read, as text: for the log, the terminal and the report."""

from __future__ import annotations

from collections.abc import Iterator

from bellwether.trainer.data.summary import DataSummary, SourceSummary, readable, some_names

_SHOWN_CLASSES = 12  # names in a line


def lines(summary: DataSummary) -> list[str]:
    """The summary as text, for the log and the terminal."""
    return [f"  {label:<13} {value}" for label, value in rows(summary)]


def rows(summary: DataSummary) -> Iterator[tuple[str, str]]:
    """Label and value of each line of the summary."""
    return ((label, readable(value)) for label, value in _all_rows(summary))


def _all_rows(summary: DataSummary) -> Iterator[tuple[str, str]]:
    yield "data", f"{summary.name} ({summary.kind})"
    for key, part in summary.parts():
        yield from _rows(key.removeprefix("data."), part)
    held_out = ", ".join(f"{count:,} ({name})" for name, count in summary.rows_held_out.items())
    yield "rows", f"{summary.rows_train:,} to train on; held out: {held_out or 'none'}"
    if summary.duplicates_train or summary.duplicates_held_out:
        of_held_out = f"{summary.duplicates_held_out:,} held-out rows are training rows"
        yield "duplicates", f"{summary.duplicates_train:,} training rows repeat another; {of_held_out}"
    for _, part in summary.parts():
        for found in part.findings:
            yield "note", str(found)


def _rows(label: str, part: SourceSummary) -> Iterator[tuple[str, str]]:
    """Label and value of each line about one source, without its findings."""
    files = f"{part.files_read:,} files, " if part.files_read else ""
    yield label, f"{files}{part.rows:,} rows" + (f", {part.documents:,} documents" if part.documents else "")
    if part.files_ignored:
        found = [
            f"{n:,} {suffix} (such as {part.ignored_examples[suffix]})" for suffix, n in part.files_ignored.items()
        ]
        yield "ignored", "; ".join(found)
    if part.tokens:
        lengths = f"documents of {part.shortest:,} to {part.longest:,} characters"
        yield "tokens", f"{part.tokens:,}, {part.unknown_share:.2%} of them [UNK]; {lengths}"
    if part.classes:
        shown = ", ".join(f"{name} {n:,}" for name, n in list(part.classes.items())[:_SHOWN_CLASSES])
        more = len(part.classes) - _SHOWN_CLASSES
        yield "classes", f"{len(part.classes):,}: {shown}" + (f" and {more:,} more" if more > 0 else "")
        if part.classes_empty:
            yield "empty classes", f"{len(part.classes_empty):,}: {some_names(part.classes_empty)}"
    for name, counts in (("modes", part.modes), ("sizes", part.sizes)):
        if counts:
            most = sorted(counts.items(), key=lambda item: -item[1])
            others = f" and {len(most) - 5:,} more" if len(most) > 5 else ""
            yield name, ", ".join(f"{value} {n:,}" for value, n in most[:5]) + others
    if part.rotated or part.transparent or part.undecodable:
        yield "images", f"{part.rotated:,} rotated, {part.transparent:,} transparent, {part.undecodable:,} undecodable"

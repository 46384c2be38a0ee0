"""What was read: counts and findings about the training and the held-out data, made when they are prepared.

A summary is stored with the prepared data as ``summary.json``, so that each run that finds them prepared can show it before
its first step. Whatever is skipped, converted, merged, defaulted or suspicious is a `Finding`. Code that prepares data never
refuses because of a count: it records it, and `refusals` compares the counts with the limits of the config, so that runs with
other limits share the prepared data.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bellwether.trainer.config.errors import ConfigError, ConfigErrors

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from bellwether.trainer.config.schema.data import DataConfig

    Hashes = npt.NDArray[np.uint64]

FILE = "summary.json"
UNDECODABLE = "undecodable images"  # a kind of `Finding`
UNREADABLE = "unreadable rows"  # a kind of `Finding`
_SURROGATES = re.compile("[\udc80-\udcff]")
_EXAMPLES = 3  # of each finding


@dataclass
class Finding:
    """One kind of thing that was found, and what was done about it.

    Attributes:
        what: such as ``empty rows``.
        done: such as ``left out``.
        count: how many.
        examples: the first few, such as ``a.jsonl, line 17``.
    """

    what: str
    done: str
    count: int = 0
    examples: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        shown = "; ".join(self.examples) + ("; ..." if self.count > len(self.examples) else "")
        return f"{self.count:,} {self.what}: {self.done}" + (f" ({shown})" if self.examples else "")


@dataclass
class SourceSummary:
    """What ``data.source``, or one set of held-out data, holds. Counts are of all of it, before rows are held out.

    Attributes:
        files_read, files_ignored: number of files; of those ignored by suffix, with one example of each in `ignored_examples`.
        rows: as stored; `documents`: rows with text.
        tokens, unknown_tokens: of the text; unknown ones are ``[UNK]``.
        longest, shortest: document, in characters.
        histogram: of `histogram_of`, such as documents by length: label -> count.
        classes: number of images or labels by the name of their class; `classes_empty`: classes without any.
        modes, sizes: number of images by Pillow's mode, and by ``width x height``.
        rotated: images that their EXIF orientation turns; `transparent`: with an alpha channel; `undecodable`: images or rows that cannot be
            read.
        findings: everything else that was noticed.
    """

    files_read: int = 0
    files_ignored: dict[str, int] = field(default_factory=dict)
    ignored_examples: dict[str, str] = field(default_factory=dict)
    rows: int = 0
    documents: int = 0
    tokens: int = 0
    unknown_tokens: int = 0
    longest: int = 0
    shortest: int = 0
    histogram_of: str = ""
    histogram: dict[str, int] = field(default_factory=dict)
    classes: dict[str, int] = field(default_factory=dict)
    classes_empty: list[str] = field(default_factory=list)
    modes: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    rotated: int = 0
    transparent: int = 0
    undecodable: int = 0
    findings: list[Finding] = field(default_factory=list)

    @property
    def unknown_share(self) -> float:
        return self.unknown_tokens / self.tokens if self.tokens else 0.0

    def note(self, what: str, done: str, example: str = "", count: int = 1) -> None:
        """Count something that was found, with an example of it if there are few so far."""
        found = next((f for f in self.findings if (f.what, f.done) == (what, done)), None)
        if found is None:
            found = Finding(what, done)
            self.findings.append(found)
        found.count += count
        if example and len(found.examples) < _EXAMPLES:
            found.examples.append(example)

    def unreadable(self, example: str) -> None:
        """Count a row that cannot be read, and is left out: refused unless `data.on_error` allows it."""
        self.rows += 1
        self.undecodable += 1
        self.note(UNREADABLE, "left out", example)

    def first_left_out(self, otherwise: str) -> str:
        """What was left out first, as the advice where nothing is left; ``otherwise`` if nothing was left out."""
        return next((str(finding) for finding in self.findings if finding.done == "left out"), otherwise)

    def count_classes(self, names: Sequence[str], labels: npt.NDArray[Any]) -> dict[str, int]:
        """Add the labels of a split, as numbers of classes; returns how many each class has in it."""
        import numpy as np  # not at the top: a config is read without it

        found = dict(zip(names, np.bincount(labels, minlength=len(names)).tolist(), strict=True))
        self.classes = {name: self.classes.get(name, 0) + count for name, count in found.items()}
        return found

    def find_empty_classes(self, trained: Mapping[str, int]) -> None:
        """Name the classes that have no rows, and those of which no row is left to train on.

        Args:
            trained: the rows of each class to train on.
        """
        self.classes_empty = [name for name in trained if not self.classes[name]]
        for name, count in trained.items():
            if self.classes[name] and not count:
                self.note("classes whose rows are all held out", "not trained on", name)

    def find_alike_classes(self) -> None:
        """Note classes whose names differ in case, white space or the form of their characters alone."""
        import unicodedata

        first: dict[str, str] = {}
        for name in self.classes:
            other = first.setdefault(
                " ".join(unicodedata.normalize("NFKC", name).casefold().replace("_", " ").split()), name
            )
            if other != name:
                self.note("classes of nearly the same name", "kept apart", f"{other!a} and {name!a}")

    def ignore(self, file: Path) -> None:
        """Count a file that is not read."""
        suffix = file.suffix.lower() or file.name
        self.files_ignored[suffix] = self.files_ignored.get(suffix, 0) + 1
        self.ignored_examples.setdefault(suffix, str(file))

    def add(self, other: SourceSummary) -> None:
        """Add the counts and findings of another part of the same source."""
        for name, value in vars(other).items():
            own = getattr(self, name)
            if name == "findings":
                for f in value:
                    self.note(f.what, f.done, count=f.count)
                    mine = next(m for m in self.findings if (m.what, m.done) == (f.what, f.done))
                    mine.examples = [*mine.examples, *f.examples][:_EXAMPLES]
            elif name == "ignored_examples":
                self.ignored_examples = {**value, **own}
            elif name == "longest":
                self.longest = max(own, value)
            elif name == "shortest":
                self.shortest = min(filter(None, (own, value)), default=0)
            elif isinstance(own, dict):
                setattr(self, name, {key: own.get(key, 0) + value.get(key, 0) for key in {**own, **value}})
            elif isinstance(own, list):
                setattr(self, name, [*own, *value])
            else:
                setattr(self, name, own or value if isinstance(own, str) else own + value)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "unknown_share": round(self.unknown_share, 6)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> SourceSummary:
        known = {name: value[name] for name in cls.__dataclass_fields__ if name in value}
        return cls(**{**known, "findings": [Finding(**each) for each in known.get("findings", [])]})


@dataclass
class DataSummary:
    """What a run trains and evaluates on.

    Attributes:
        kind, name: ``data.kind`` and ``data.source``.
        source: what ``data.source`` holds.
        held_out: what each set of held-out data holds that ``data.validation`` names.
        rows_train: rows to train on; `rows_held_out`: by the name of the set.
        duplicates_train: training rows whose content an earlier one has.
        duplicates_held_out: held-out rows whose content a training row has; `overlap`: by the name of the set.
    """

    kind: str
    name: str
    source: SourceSummary = field(default_factory=SourceSummary)
    held_out: dict[str, SourceSummary] = field(default_factory=dict)
    rows_train: int = 0
    rows_held_out: dict[str, int] = field(default_factory=dict)
    duplicates_train: int = 0
    overlap: dict[str, int] = field(default_factory=dict)

    @property
    def duplicates_held_out(self) -> int:
        return sum(self.overlap.values())

    def count_rows(self, train: Hashes, held_out: Mapping[str, Hashes]) -> None:
        """Count the rows of each split, and those whose content an earlier or a training row has.

        Args:
            train: a hash of the content of each training row.
            held_out: those of each set of held-out rows.
        """
        import numpy as np  # not at the top: a config is read without it

        unique = np.unique(train)
        self.rows_train, self.duplicates_train = len(train), len(train) - len(unique)
        self.rows_held_out = {name: len(hashes) for name, hashes in held_out.items()}
        self.overlap = {name: int(np.isin(hashes, unique).sum()) for name, hashes in held_out.items()}

    def parts(self) -> Iterator[tuple[str, SourceSummary]]:
        """``data.source`` and the sets of held-out data, each with the key that names it."""
        yield "data.source", self.source
        for name, part in self.held_out.items():
            yield "data.validation" if name == "validation" else f"data.validation.{name}", part

    def to_json(self) -> dict[str, Any]:
        """The object that ``bellwether data --json`` prints: the counts of ``data.source``, and everything else by name."""
        return {
            "kind": self.kind, "name": self.name, **self.source.to_json(),
            "rows_train": self.rows_train, "rows_held_out": self.rows_held_out,
            "duplicates_train": self.duplicates_train, "duplicates_held_out": self.duplicates_held_out,
            "overlap": self.overlap, "held_out": {name: part.to_json() for name, part in self.held_out.items()},
        }  # fmt: skip

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> DataSummary:
        return cls(
            value["kind"], value["name"], SourceSummary.from_json(value),
            {name: SourceSummary.from_json(part) for name, part in value["held_out"].items()},
            value["rows_train"], value["rows_held_out"], value["duplicates_train"], value["overlap"],
        )  # fmt: skip

    def write(self, folder: Path) -> None:
        """Store the summary with the prepared data in ``folder``."""
        (folder / FILE).write_text(json.dumps(self.to_json(), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> DataSummary:
        return cls.from_json(json.loads((folder / FILE).read_text(encoding="utf-8")))


def refusals(summary: DataSummary, config: DataConfig) -> list[ConfigError]:
    """The counts that exceed a limit of the config, each with the key that sets the limit."""
    errors = []
    named = {"data.source": summary.name, **{key: value for _, key, value in config.held_out_keys()}}
    for key, part in summary.parts():
        if part.undecodable and config.on_error == "refuse":
            errors.append(undecodable_error(part, key))
        if part.unknown_share > config.max_unknown:
            problem = f"{part.unknown_share:.1%} of the tokens are [UNK]: the tokenizer does not know this text"
            advice = f"{config.unknown_advice}, or allow it by data.max_unknown; it is {config.max_unknown:g}"
            errors.append(ConfigError(key, named.get(key), problem, advice))
    if (empty := summary.source.classes_empty) and not config.allow_empty_classes:
        what = "images" if summary.kind == "images" else "rows"
        problem = f"{len(empty)} of {len(summary.source.classes)} classes have no {what}: {some_names(empty)}"
        advice = f"add {what}, or write data.allow_empty_classes: true"
        errors.append(ConfigError("data.source", summary.name, problem, advice))
    for name, count in summary.overlap.items():
        rows = summary.rows_held_out.get(name, 0)
        if rows and count / rows > config.max_overlap:
            problem = (
                f"{count:,} of {rows:,} held-out rows ({count / rows:.1%}) are training rows too, by their content"
            )
            advice = f"hold out other data, or allow it by data.max_overlap; it is {config.max_overlap:g}"
            key = "data.validation" if name == "validation" else f"data.validation.{name}"
            errors.append(ConfigError(key, None, problem, advice))
    return errors


def undecodable_error(part: SourceSummary, key: str) -> ConfigError:
    """Refuses images or rows that cannot be read: names the first, and where all are listed or how many there are."""
    found = next(finding for finding in part.findings if finding.what in (UNDECODABLE, UNREADABLE))
    if found.what == UNREADABLE:
        of_all = f", the first of {found.count:,}" if found.count > 1 else ""
        advice = "repair or remove it, or leave such rows out by data.on_error: skip"
        return ConfigError(key, None, f"{found.examples[0]}{of_all}", advice)
    name, _, reason = found.examples[0].partition(": ")
    others = f" (the first of {found.count:,}, which are {found.done})" if found.count > 1 else ""
    advice = "repair or remove it, or leave such images out by data.on_error: skip"
    return ConfigError(key, name, f"cannot be decoded: {reason}{others}", advice)


def check(summary: DataSummary, config: DataConfig) -> None:
    """Refuse data that exceed a limit of the config.

    Raises:
        ConfigErrors: with the key of each limit.
    """
    if errors := refusals(summary, config):
        raise ConfigErrors(errors)


def some_names(names: list[str]) -> str:
    """The first few of some names, and how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")


def readable(text: str) -> str:
    """A name of a file that can be printed: bytes that are not UTF-8 as in ``caf\\xe9``."""
    return os.fsencode(text).decode("utf-8", "backslashreplace") if _SURROGATES.search(text) else text

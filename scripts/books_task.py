"""Makes the data of docs/results/pretraining-pays.md: which of twelve novels is a sentence from?

    python -m scripts.books_task BOOKS FOLDER

BOOKS is a folder with `train.parquet` and `validation.parquet`, columns `title` and `text`, as the books of Project Gutenberg are
published on the hub; headings are lines that begin with `#`. FOLDER receives

- `pretraining.parquet`: the books of train.parquet without the twelve, no sentence of which a pretrained model has seen;
- `pretraining-validation.parquet`: those of validation.parquet, none of which is one of the twelve;
- `train.csv`, `validation.csv` and `test.csv`: sentences with the name of their book. Each book is cut at the chapters that begin
  nearest to 60 % and 75 % of its length: training sentences are from the first part, validation ones from the second, test ones from
  the third.

The sentences are drawn without replacement with a fixed seed. A sentence has 12 to 20 words, ends at `.`, `!` or `?`, and occurs once.
"""

from __future__ import annotations

import argparse
import csv
import random
import re
from pathlib import Path

import pyarrow
import pyarrow.parquet

#: The label of each book, and the end of its title.
BOOKS = {
    "doctor-thorne": "Doctor Thorne",
    "hard-times": "Hard Times",
    "villette": "Villette",
    "wives-and-daughters": "Wives and Daughters",
    "silas-marner": "Silas Marner",
    "tess": "Tess of the d'Urbervilles",
    "moonstone": "The Moonstone",
    "waverley": "Waverley",
    "voyage-out": "The Voyage Out",
    "lord-jim": "Lord Jim",
    "scarlet-letter": "The Scarlet Letter",
    "martin-eden": "Martin Eden",
}
#: Where the parts of a book end, as shares of its characters, and how many sentences of each book are drawn from the part.
PARTS = {"train": (0.60, 170), "validation": (0.75, 40), "test": (1.00, 90)}
WORDS = range(12, 21)
SEED = 1

HEADING = re.compile(r"^#+ .*$", re.MULTILINE)
SENTENCE_END = re.compile(r"(?<=[.!?])[\"'”’]*\s+(?=[\"'“‘]*[A-Z])")


def chapters(text: str) -> list[str]:
    """The text between headings, in order, without the headings."""
    found = [part.strip() for part in HEADING.split(text)]
    return [part for part in found if len(part) > 1000]  # not title pages


def cut(parts: list[str], shares: list[float]) -> list[list[str]]:
    """Distribute chapters over the parts of a book: a chapter belongs where its middle lies."""
    total = sum(map(len, parts))
    cuts: list[list[str]] = [[] for _ in shares]
    position = 0
    for part in parts:
        middle = (position + len(part) / 2) / total
        cuts[next(index for index, share in enumerate(shares) if middle <= share)].append(part)
        position += len(part)
    return cuts


def sentences(text: str) -> list[str]:
    """The sentences of a chapter that the task uses, without quotes at their ends."""
    found = []
    for paragraph in re.split(r"\n\s*\n", text):
        for sentence in SENTENCE_END.split(" ".join(paragraph.split())):
            sentence = sentence.strip(" \"'“”‘’")
            if len(sentence.split()) in WORDS and sentence[-1] in ".!?" and sentence[0].isupper():
                found.append(sentence)
    return found


def draw(name: str, text: str) -> dict[str, list[str]]:
    """Training, validation and test sentences of a book."""
    seen: set[str] = set()
    drawn = {}
    for part, chapter_texts in zip(PARTS, cut(chapters(text), [share for share, _ in PARTS.values()]), strict=True):
        found = [each for each in dict.fromkeys(s for t in chapter_texts for s in sentences(t)) if each not in seen]
        seen.update(found)
        drawn[part] = random.Random(f"{SEED} {name} {part}").sample(found, PARTS[part][1])
    return drawn


def main(books: Path, folder: Path) -> None:
    table = pyarrow.parquet.read_table(books / "train.parquet", columns=["title", "text"])
    rows = table.to_pylist()
    task = {name: _book(rows, title) for name, title in BOOKS.items()}
    held_out = {row["title"] for row in task.values()}
    folder.mkdir(parents=True, exist_ok=True)
    kept = [row["title"] not in held_out for row in rows]
    pyarrow.parquet.write_table(table.filter(pyarrow.array(kept)), folder / "pretraining.parquet")
    validation = pyarrow.parquet.read_table(books / "validation.parquet", columns=["title", "text"])
    if held_out & set(validation.column("title").to_pylist()):
        raise SystemExit("validation.parquet has one of the twelve books")
    pyarrow.parquet.write_table(validation, folder / "pretraining-validation.parquet")
    drawn = {name: draw(name, row["text"]) for name, row in task.items()}
    for part in PARTS:
        lines = [(sentence, name) for name in BOOKS for sentence in drawn[name][part]]
        random.Random(SEED).shuffle(lines)
        with (folder / f"{part}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *lines])
        print(f"{part}.csv: {len(lines):,} sentences of {len(BOOKS)} books")
    characters = sum(len(row["text"]) for row, keep in zip(rows, kept, strict=True) if keep)
    print(f"pretraining.parquet: {sum(kept)} books, {characters:,} characters")


def _book(rows: list[dict], title: str) -> dict:
    found = [row for row in rows if row["title"].endswith(f" - {title}")]
    if len(found) != 1:
        raise SystemExit(f"train.parquet has {len(found)} books of the title {title}")
    return found[0]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("books", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    main(arguments.books, arguments.folder)

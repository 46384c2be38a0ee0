"""A small tokenizer, a small pretrained BERT and labelled texts, for the tests of fine-tuning."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

WORDS = [f"w{index}" for index in range(60)]
TOPICS = ("sport", "news", "art")


def save_tokenizer(folder: Path) -> Any:
    from transformers import BertTokenizerFast

    vocabulary = {token: index for index, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    tokenizer = BertTokenizerFast(vocab=vocabulary)
    tokenizer.save_pretrained(folder)
    return tokenizer


def save_pretrained(folder: Path) -> Path:
    """A BERT for masked language modelling, as transformers saves it, with its tokenizer."""
    import torch
    from transformers import BertConfig, BertForMaskedLM

    size = len(save_tokenizer(folder))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=size, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, max_position_embeddings=64,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(folder)
    return folder


def topics(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Texts of 3 to 29 words, half of which belong to the topic; ``score`` is a number that follows it."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        topic = rng.randrange(3)
        own = WORDS[20 * topic : 20 * topic + 20]
        text = " ".join(rng.choice(own if rng.random() < 0.5 else WORDS) for _ in range(rng.randrange(3, 30)))
        rows.append({"text": text, "label": TOPICS[topic], "score": topic + rng.random() / 10})
    return rows


def write(file: Path, rows: list[dict[str, Any]], features: Any = None) -> str:
    table = pa.Table.from_pylist(rows)
    if features is not None:
        from datasets import Dataset

        Dataset.from_list(rows, features=features).to_parquet(str(file))
    else:
        parquet.write_table(table, file)
    return str(file)


def entities(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Sentences in which each of the first 20 words of `WORDS` has a tag of its own: B-PER, I-PER, B-LOC or I-LOC for five of them."""
    rng = random.Random(seed)
    tags = dict(zip(WORDS, [tag for tag in ("B-PER", "I-PER", "B-LOC", "I-LOC") for _ in range(5)], strict=False))
    rows = []
    for _ in range(count):
        words = [rng.choice(WORDS[:40]) for _ in range(rng.randrange(3, 20))]
        rows.append({"tokens": words, "ner_tags": [tags.get(word, "O") for word in words]})
    return rows


def squad(count: int, seed: int = 0, without: float = 0.0) -> dict[str, Any]:
    """Questions whose answer is the only one or two of the last 20 words of `WORDS` in the text, in SQuAD's nested form.

    Args:
        without: share of the questions whose text has no answer.
    """
    rng = random.Random(seed)
    paragraphs = []
    for number in range(count):
        words = [rng.choice(WORDS[:40]) for _ in range(rng.randrange(20, 50))]
        answers = []
        if rng.random() >= without:
            at = rng.randrange(1, len(words) - 2)
            words[at : at + 1 + number % 2] = [rng.choice(WORDS[40:]) for _ in range(1 + number % 2)]
            text = " ".join(words[at : at + 1 + number % 2])
            answers = [{"text": text, "answer_start": len(" ".join(words[:at])) + 1}]
        question = {"id": str(number), "question": "w0 w1", "answers": answers, "is_impossible": not answers}
        paragraphs.append({"context": " ".join(words), "qas": [question]})
    return {"version": "v2.0", "data": [{"title": "t", "paragraphs": paragraphs}]}

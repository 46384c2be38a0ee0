"""Data for training: from ``data.source`` to batches of tensors, prepared once and cached on disk.

Importing this package imports neither torch nor numpy, because configs are validated with it.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from bellwether.trainer.config.errors import ConfigErrors
from bellwether.trainer.config.schema.data import DataConfig
from bellwether.trainer.data.summary import DataSummary, check
from bellwether.trainer.data.summary_lines import lines
from bellwether.trainer.data.transient import retrying

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    Scorer = Callable[[npt.NDArray[Any], npt.NDArray[np.int64]], dict[str, float]]

__all__ = ["Dataset", "Samples", "arranged", "load", "peek"]

log = logging.getLogger(__name__)

# The modules that define a kind of data, in the order in which messages list them.
_KINDS = ("text", "token_stream", "images", "labelled_text", "labelled_tokens", "question_answering")


class Samples(Protocol):
    """The rows of one split, and how they are made into batches. Picklable, so that worker processes can do it.

    Where a part of the work is better done in the training process, on its device, samples also have ``worker_batch``, with the
    arguments of `batch`, and ``finish``: `batch` is then ``finish(worker_batch(indices, keys))``.
    ``unit`` is that of `DataConfig`; B is then a multiple of it.
    Where the rows are in no random order, samples have ``arranged(global_batch, seed)``, see `arranged`.
    ``parallel`` of held-out samples: the rows i, i + parallel, i + 2 parallel ... follow one another, and one rank evaluates them in
    this order; ``weights(rows)``: the weight of each in the means.
    ``worker_imports`` names modules that the fork server of the workers imports once for all of them.
    """

    def __len__(self) -> int: ...

    def batch(
        self, indices: Sequence[int] | npt.NDArray[np.int64], keys: Sequence[int] | npt.NDArray[np.int64]
    ) -> dict[str, Tensor]:
        """B samples.

        Args:
            indices: B row numbers.
            keys: B random numbers of 63 bits. All random choices of a sample (masking, augmentation) are a function of
                its key. Held-out samples have no random choices and ignore the keys.

        Returns:
            Text: ``input_ids`` int64 [B, L], masked already; ``masked_positions`` int64 [B, k], ascending; ``labels``
            int64 [B, k], the original tokens at these positions; what `TextSamples` and `SentenceSamples` add. Images: ``pixel_values``
            float32 [B, C, S, S], normalized; ``labels`` int64 [B]; of training images ``sample_keys`` int64 [B], the keys, and of mixed ones ``other_labels``
            int64 [B] and ``label_share`` float32 [B], the share of ``labels``. Labelled text: see `bellwether.trainer.data.labelled_samples`.
            Streams of tokens: see `bellwether.trainer.data.stream_samples`.
        """
        ...


def arranged(samples: Samples, global_batch: int, seed: int = 0) -> Samples:
    """The samples as a phase with this global batch and seed takes them: an epoch is as many as these.

    Samples that have a method ``arranged(global_batch, seed)`` have their own order: those that it returns have ``rows_at(positions)``, the
    rows at positions 0, 1, 2, ... of the phase. Rows of all others are taken in a random order
    (`bellwether.trainer.data.sampling.SampleOrder`). Where also ``lr_factor(step)`` is defined, it is a factor of the learning rate.

    Raises:
        ConfigError: if they do not fill one step.
    """
    arrange = getattr(samples, "arranged", None)
    return samples if arrange is None else arrange(global_batch, seed)


@dataclass(frozen=True)
class Dataset:
    """The splits that a run trains and evaluates on, and what a model has to know about them.

    Attributes:
        train, validation: the samples of the two splits.
        held_out: all sets of held-out data by name, where there are several; `validation` is the first.
        vocabulary_size: size of the tokenizer's vocabulary, for text.
        next_sentence: whether text comes in pairs of segments, for next-sentence prediction.
        classes, channels, labels: number and names of the classes, and channels of the images, for images.
        tokenizer: a fast tokenizer of transformers, for text.
        score: scores by name from predictions [N, ...] for N held-out rows and the numbers of these rows; None: loss and accuracy
            say all. `set_scores`: those of each set in `held_out`.
        fingerprint: identifies the prepared content. Datasets with different samples have different fingerprints.
        summary: what was read; None if the data were not read.
    """

    train: Samples
    validation: Samples
    vocabulary_size: int | None = None
    classes: int | None = None
    channels: int | None = None
    labels: list[str] | None = None
    tokenizer: Any = None
    next_sentence: bool = False
    score: Scorer | None = None
    fingerprint: str = ""
    summary: DataSummary | None = None
    held_out: Mapping[str, Samples] = field(default_factory=dict)
    set_scores: Mapping[str, Scorer] = field(default_factory=dict)


def load(config: DataConfig) -> Dataset:
    """Prepares the dataset, or finds it prepared. Any number of processes may call it at once; one of them prepares it.

    The prepared data do not depend on the seed of the run. Runs that differ only in their seed hold out the same rows and
    share vocabulary, evaluation masks and cache, so their losses can be compared.

    Args:
        config: the section `data` of a config.

    Raises:
        ConfigError: if the source cannot be read as the config says, or is too small to hold out a part of it.
        OSError: if it cannot be read for ``data.retry`` seconds, see `bellwether.trainer.data.transient`.
        ConfigErrors: if what was read exceeds a limit of the config, see `bellwether.trainer.data.summary`.

    See `prepare` for files that have changed.
    """
    return config.open(prepare(config))


def prepare(config: DataConfig) -> dict[str, Any]:
    """The part of `load` that needs the source: locates, reads and prepares it, and refuses it. One process a machine does it.

    Files that were changed, added or removed since ``bellwether prepare`` read them are refused, see `bellwether.trainer.data.contents`.

    Returns:
        what ``config.open`` makes the dataset from, in any process of the machine.
    """
    from bellwether.trainer.data import contents

    known = retrying(config.retry, lambda: contents.check(config))
    with contents.refusing_others(config, known):
        facts = prepare_unchecked(config)
    found = DataSummary.from_json(facts["summary"])
    try:
        check(found, config)
    except ConfigErrors:
        log.info("%s", "\n".join(lines(found)))  # what a run shows before its first step
        raise
    return facts


def prepare_unchecked(config: DataConfig) -> dict[str, Any]:
    """As `prepare`, also where what was read exceeds a limit of the config."""
    from bellwether.trainer.data import cache, warm

    with cache.recording() as entries:
        facts = retrying(config.retry, config.prepare)
    warm.mark(config, entries)
    return facts


def peek(config: DataConfig) -> Dataset | None:
    """Like `load` if the dataset is already prepared; None if it would have to be prepared, or read from a hub."""
    from bellwether.trainer.config import ConfigError
    from bellwether.trainer.data import cache

    if not config.is_local():
        return None
    try:
        with cache.found_only():
            return config.load()
    except (cache.NotPrepared, ConfigError):
        return None


for _kind in _KINDS:
    importlib.import_module(f"{__name__}.{_kind}")

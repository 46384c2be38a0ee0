"""Text as B parallel streams of tokens: the windows of each stream follow one another from step to step (Merity et al. 2017).

The text of a split is one stream of tokens, with an end-of-text token behind each document. A global batch of B samples cuts it into B
streams of equal length: in step s, stream b sees the tokens [s T, (s + 1) T) of its part, and predicts each one's successor. Row
``t B + b`` is window t of stream b, and the row at position p of a run is p modulo the number of rows: which tokens a step sees
depends on its position and on B alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bellwether.trainer.config.errors import ConfigError
from bellwether.trainer.data import Dataset, tokenizer, tokens
from bellwether.trainer.data.packing import Stream
from bellwether.trainer.data.sampling import Integers
from bellwether.trainer.data.summary import DataSummary
from bellwether.trainer.data.window_lengths import WindowLengths, mean_length

if TYPE_CHECKING:
    from bellwether.trainer.data.token_stream import TokenStreamData


@dataclass
class StreamSamples:
    """Windows of parallel streams. See `bellwether.trainer.data.Samples`.

    Attributes:
        stream: the tokens of a split.
        length: T, the tokens of a window.
        parallel: the number of streams: 1 until `arranged`.
        seed: of windows of varying length (`bellwether.trainer.data.window_lengths`); None until `arranged`, and for those of one length.
        varies: whether windows vary in length. The row at position p is then p, as each step of a run has a length of its own.
        ragged: whether the last window of each stream may be shorter, so that no more than ``parallel`` tokens are left over. For
            held-out text.
    """

    stream: Stream
    length: int
    parallel: int = 1
    ragged: bool = False
    varies: bool = False
    seed: int | None = None
    _windows: WindowLengths | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return self.windows * self.parallel

    @property
    def predicted(self) -> int:
        """The tokens of each stream that are predicted: none is that has no successor."""
        return max(0, len(self.stream) - 1) // self.parallel

    @property
    def windows(self) -> int:
        """The windows of each stream; of those of varying length the expected number."""
        if self.varies:
            return max(1, round(self.predicted / mean_length(self.length))) if self.predicted else 0
        return -(-self.predicted // self.length) if self.ragged else self.predicted // self.length

    @property
    def left_over(self) -> int:
        """The tokens that no window predicts, because they fill none."""
        used = self.predicted if self.ragged or self.varies else self.windows * self.length
        return len(self.stream) - 1 - self.parallel * used

    def arranged(self, parallel: int, seed: int) -> StreamSamples:
        """The text as so many streams, for a phase of this seed: these samples where they are that already.

        Raises:
            ConfigError: if it does not fill a window of each.
        """
        if (parallel, seed) == (self.parallel, self.seed):
            return self
        found = replace(self, parallel=parallel, seed=seed, _windows=None)
        if not len(found):
            problem = f"the text has {len(self.stream):,} tokens, which do not fill a window of {self.length} of each of so many streams"
            raise ConfigError("batch.global", parallel, problem, f"write at most {len(self):,}, or shorten data.length")
        return found

    def rows_at(self, positions: Integers) -> Integers:
        """The rows at some positions of a phase."""
        return positions if self.varies else positions % len(self)

    def lr_factor(self, step: int) -> float:
        """By what the learning rate of a step of a phase is multiplied: the share of the length that its windows have."""
        return self._window(step)[1] / self.length if self.varies else 1.0

    def first_token(self, step: int) -> int:
        """Where in each stream the windows of a step of a phase begin."""
        return self._window(step if self.varies else step % self.windows)[0]

    def batch(
        self, indices: Sequence[int] | npt.NDArray[np.int64], keys: Sequence[int] | npt.NDArray[np.int64]
    ) -> dict[str, Tensor]:
        """Windows of one length T' <= T, of which only the last one of a `ragged` stream is shorter.

        Returns:
            ``input_ids`` int64 [B, T'], ``labels`` int64 [B, T'], the token after each; ``streams`` int64 [B], the number of each
            sample's stream; ``starts`` bool [B], whether its stream begins here, without a state from before.
        """
        window, stream = np.divmod(np.asarray(indices, dtype=np.int64), self.parallel)
        begins, lengths = np.array([self._window(each) for each in window.tolist()], dtype=np.int64).T
        (length,) = set(lengths.tolist())
        first = stream * self.predicted + begins
        found = self.stream.read(first[:, None] + np.arange(length + 1))
        return {
            "input_ids": torch.from_numpy(found[:, :-1]), "labels": torch.from_numpy(found[:, 1:]),
            "streams": torch.from_numpy(stream), "starts": torch.from_numpy(begins == 0),
        }  # fmt: skip

    def _window(self, window: int) -> tuple[int, int]:
        """First token and length of a window in each stream."""
        if not self.varies:
            begin = window * self.length
            return begin, min(self.length, self.predicted - begin)
        if self._windows is None:
            self._windows = WindowLengths(self.seed or 0, self.length, self.predicted)
        return self._windows[window]

    def weights(self, rows: Integers) -> npt.NDArray[np.float32]:
        """The share of a whole window that each row is, by which held-out means over tokens are exact."""
        lengths = [self._window(each)[1] for each in (rows // self.parallel).tolist()]
        return np.array(lengths, dtype=np.float32) / np.float32(self.length)


def open_prepared(config: TokenStreamData, facts: dict[str, Any]) -> Dataset:
    """The text that `bellwether.trainer.data.text_samples.prepare` has prepared.

    Raises:
        ConfigError: if a part of it does not fill one window, or the tokenizer has no token that ends a text.
    """
    words, size = tokenizer.open_prepared(facts["tokenizer"]), facts["vocabulary_size"]
    end = words.eos_token_id if words.eos_token_id is not None else words.sep_token_id
    if end is None:
        problem = "has no token that ends a text (eos or sep)"
        raise ConfigError("data.tokenizer", config.tokenizer, problem, "write words, or name another one")
    train = StreamSamples(
        Stream(Path(facts["train"]), tokens.dtype(size), end), config.length, varies=config.varying_length
    )
    if not len(train):
        problem = "the text does not fill one window"
        raise ConfigError("data.length", config.length, problem, "use shorter windows, or more text")
    parts = {name: _held_out(config, Path(file), size, end) for name, file in facts["held_out"].items()}
    summary = DataSummary.from_json(facts["summary"]) if "summary" in facts else None
    return Dataset(
        train, next(iter(parts.values())), vocabulary_size=size, tokenizer=words, fingerprint=facts["fingerprint"],
        summary=summary, held_out=parts if len(parts) > 1 else {},
    )  # fmt: skip


def _held_out(config: TokenStreamData, file: Path, size: int, end: int) -> StreamSamples:
    part = StreamSamples(Stream(file, tokens.dtype(size), end), config.length, config.validation_streams, ragged=True)
    if not len(part):
        problem = f"the held-out text has {len(part.stream):,} tokens, which do not give each stream one to predict"
        advice = "hold out more, by data.validation_share or data.validation, or use fewer streams"
        raise ConfigError("data.validation_streams", config.validation_streams, problem, advice)
    return part

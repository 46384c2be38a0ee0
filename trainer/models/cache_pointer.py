"""The continuous cache of Grave, Joulin and Usunier 2016 (1612.04426): words that followed similar hidden states become more probable.

With h_t the hidden state from which the model predicts the word x_{t+1}, and the ``window`` pairs (h_i, x_{i+1}) before it,

    p_cache(w) ∝ sum over i of [w = x_{i+1}] exp(theta h_t · h_i)          equation 3
    p(w) = (1 - share) p_model(w) + share p_cache(w)                       linear interpolation

Merity et al. 2017 (1708.02182, section 6) set it on top of AWD-LSTM as the continuous cache pointer. It has no weights, and is used in
evaluation alone. Values of theirs, from their code: theta 1, share 0.1, window 500 for the Penn Treebank; 0.662, 0.1279 and 3785
for WikiText-2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Cache:
    """The last W pairs of each of B streams, from the oldest to the newest.

    Attributes:
        hidden: [B, W, E].
        words: the word after each, int64 [B, W]; -1 where the stream is shorter yet.
    """

    hidden: Tensor
    words: Tensor

    def cleared(self, starts: Tensor) -> Cache:
        """Without the pairs of the streams in which a text begins: bool [B]."""
        return Cache(self.hidden, self.words.masked_fill(starts.unsqueeze(1), -1))


@dataclass(frozen=True)
class CachePointer:
    """The continuous cache with its three parameters.

    Attributes:
        window: number of pairs W that the cache holds, at least 1.
        theta: factor of the products of hidden states, at least 0; the larger, the more the most similar ones count.
        share: probability of the cache in the interpolation, lambda in the paper: at least 0 and below 1.
    """

    window: int
    theta: float
    share: float

    def empty(self, hidden: Tensor) -> Cache:
        """The cache before the first words of the streams of ``hidden`` [B, ..., E]."""
        streams, size = hidden.shape[0], hidden.shape[-1]
        words = torch.full((streams, self.window), -1, dtype=torch.int64, device=hidden.device)
        return Cache(hidden.new_zeros(streams, self.window, size), words)

    def losses(self, losses: Tensor, hidden: Tensor, targets: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        """The cross-entropy of T words of each stream with the cache, and the cache after them.

        A word sees only pairs before it, those of this call among them, so that the split of a text into calls changes nothing. While
        a stream has no pair, its loss is that of the model.

        Args:
            losses: cross-entropy of the targets by the model, -log p_model, [B, T].
            hidden: the hidden states from which it was computed, [B, T, E].
            targets: the words to predict, int64 [B, T].
            cache: `empty`, or what the call for the words before these returned.

        Returns:
            float32 [B, T], and a cache. Takes memory for B x T x (W + T) numbers, a few times.
        """
        states, words = (
            torch.cat([cache.hidden, hidden.to(cache.hidden.dtype)], 1),
            torch.cat([cache.words, targets], 1),
        )
        length = targets.shape[1]
        # Pair j of all W + T is before word t if j < W + t, and one of the last W if j >= t.
        positions = torch.arange(words.shape[1], device=words.device)
        first = positions[:length, None]
        is_seen = (positions >= first) & (positions < first + self.window) & (words >= 0).unsqueeze(1)
        scores = self.theta * torch.bmm(hidden.float(), states.float().transpose(1, 2))  # [B, T, W + T]
        scores = scores.masked_fill(~is_seen, -math.inf)
        is_target = words.unsqueeze(1) == targets.unsqueeze(2)
        log_p = scores.masked_fill(~is_target, -math.inf).logsumexp(2) - scores.logsumexp(2)
        share = torch.tensor(self.share, device=log_p.device)
        mixed = torch.logaddexp((-share).log1p() - losses.float(), share.log() + log_p)
        found = torch.where(is_seen.any(2), -mixed, losses.float())
        return found, Cache(states[:, length:], words[:, length:])

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bellwether.trainer.models.cache_pointer import CachePointer

WORDS, STREAMS, LENGTH, SIZE = 7, 3, 20, 4


def text() -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of a model over all words [B, T, V], its hidden states [B, T, E] and the words that follow [B, T]."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(STREAMS, LENGTH, WORDS, generator=generator)
    hidden = torch.randn(STREAMS, LENGTH, SIZE, generator=generator)
    return logits.log_softmax(2), hidden, torch.randint(WORDS, (STREAMS, LENGTH), generator=generator)


def loop(log_p: Tensor, hidden: Tensor, targets: Tensor, pointer: CachePointer) -> list[float]:
    """The losses of one stream, word by word from the equations, with the whole distribution of the cache."""
    states, found = hidden.double().tolist(), []
    for t, target in enumerate(targets.tolist()):
        p_model = [math.exp(value) for value in log_p[t].double().tolist()]
        pairs = range(max(0, t - pointer.window), t)
        of_cache = [0.0] * WORDS
        for i in pairs:
            of_cache[targets[i]] += math.exp(
                pointer.theta * sum(a * b for a, b in zip(states[t], states[i], strict=True))
            )
        share = pointer.share if len(pairs) else 0.0
        total = sum(of_cache) or 1.0
        p = [(1 - share) * a + share * b / total for a, b in zip(p_model, of_cache, strict=True)]
        assert sum(p) == pytest.approx(1)
        found.append(-math.log(p[target]))
    return found


@pytest.mark.parametrize("parts", [[20], [1, 3, 9, 7], [1] * 20], ids=str)
@pytest.mark.parametrize("window, theta, share", [(1, 1.0, 0.1), (5, 0.7, 0.3), (50, 0.0, 0.9), (8, 2.0, 0.0)])
def test_losses_match_a_loop_over_words(window: int, theta: float, share: float, parts: list[int]) -> None:
    pointer, (log_p, hidden, targets) = CachePointer(window, theta, share), text()
    losses = -log_p.gather(2, targets.unsqueeze(2)).squeeze(2)
    wanted = [loop(log_p[b], hidden[b], targets[b], pointer) for b in range(STREAMS)]
    cache, found = pointer.empty(hidden), []
    for of_model, states, words in zip(
        losses.split(parts, 1), hidden.split(parts, 1), targets.split(parts, 1), strict=True
    ):
        part, cache = pointer.losses(of_model, states, words, cache)
        found.append(part)
        assert cache.hidden.shape == (STREAMS, window, SIZE)
    torch.testing.assert_close(torch.cat(found, 1), torch.tensor(wanted), rtol=1e-5, atol=1e-5)


def test_a_new_text_does_not_see_the_one_before() -> None:
    pointer, (log_p, hidden, targets) = CachePointer(9, 1.0, 0.5), text()
    losses = -log_p.gather(2, targets.unsqueeze(2)).squeeze(2)
    _, cache = pointer.losses(losses, hidden, targets, pointer.empty(hidden))
    starts = torch.tensor([True, False, False])
    found, _ = pointer.losses(losses, hidden, targets, cache.cleared(starts))
    fresh, _ = pointer.losses(losses, hidden, targets, pointer.empty(hidden))
    continued, _ = pointer.losses(losses, hidden, targets, cache)
    assert torch.equal(found[0], fresh[0])
    assert torch.equal(found[1:], continued[1:])
    assert (continued != fresh).any(dim=1).all()


def test_16_bit_states_of_a_model_are_taken() -> None:
    pointer, (log_p, hidden, targets) = CachePointer(9, 1.0, 0.5), text()
    losses = -log_p.gather(2, targets.unsqueeze(2)).squeeze(2)
    wanted, _ = pointer.losses(losses, hidden, targets, pointer.empty(hidden))
    narrow = hidden.bfloat16()
    found, cache = pointer.losses(losses, narrow, targets, pointer.empty(narrow))
    assert cache.hidden.dtype == torch.bfloat16
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=0.05, atol=0.05)  # 2^-8 of products of up to about 10

"""A step with ``capturable=True`` in a CUDA graph."""

from __future__ import annotations

import pytest
import torch

from bellwether.optimizers import SGD, AdamW, Lamb, Lars, Muon, RAdam

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]


@pytest.mark.parametrize("kind", [AdamW, Lamb, Lars, RAdam, SGD, Muon])
def test_replayed_steps_count_and_follow_the_rate(kind: type) -> None:
    options = {"ns_dtype": "fp32"} if kind is Muon else {"momentum": 0.9} if kind is SGD else {}
    weights = [torch.nn.Parameter(torch.randn(33, 17, device="cuda")) for _ in range(2)]
    weights[1].data.copy_(weights[0])
    gradient = torch.randn_like(weights[0])
    for w in weights:
        w.grad = gradient.clone()
    captured = kind(weights[:1], lr=0.01, capturable=True, **options)
    eager = kind(weights[1:], lr=0.01, kernel="reference", **options)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        captured.step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured.step()  # captured, not run
    eager.step()
    for lr in (0.01, 0.02, 0.005, 0.005, 0.005, 0.005):
        captured.param_groups[0]["lr"].fill_(lr)
        eager.param_groups[0]["lr"] = lr
        graph.replay()
        eager.step()
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-5, atol=1e-6)


def test_other_steps_are_refused_in_a_capture() -> None:
    weight = torch.nn.Parameter(torch.ones(2, 2, device="cuda"))
    weight.grad = torch.ones_like(weight)
    optimizer = AdamW([weight])
    optimizer.step()
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(RuntimeError, match="write capturable=True"), torch.cuda.graph(graph):
        optimizer.step()

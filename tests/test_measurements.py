"""scripts/measurements.py and what the two benchmarks conclude from it, with known values."""

from __future__ import annotations

import pytest
import torch

from scripts.bench_train import tables
from scripts.bench_train.contestants import CONTESTANTS, REFERENCE
from scripts.bench_train.rounds import Budget, Result
from scripts.measurements import Spread, bert_flops, idle_share, largest_difference, mfu


def test_flops_of_bert_large_are_those_that_torch_counts() -> None:
    from bellwether.trainer.config import validate
    from bellwether.trainer.memory import activations
    from scripts.gpu_suite import steps, workloads

    raw = workloads.bert(False, 128, 2, model={"size": "mini"}, data={"vocabulary_size": 30522})
    config = validate({"name": "x", "duration": "1 steps", **raw})
    counted = activations.measure(config, steps.dataset(config)).flops
    masked = config.data.masked_tokens  # type: ignore[attr-defined]
    # Attention's backward pass computes its scores again, which is 1 of 4 products of a layer's attention more than the formula has.
    assert counted == pytest.approx(bert_flops(4, 256, 128, masked, 30522), rel=0.02)
    # BERT-large: 334 M weights in matrices, times 6 FLOPs, times 128 positions, and attention.
    assert bert_flops(24, 1024, 128, 20, 30522) == pytest.approx(
        6 * 302e6 * 128 + 24 * 12 * 1024 * 128**2 + 3.9e9, rel=0.001
    )


def test_mfu_of_a_published_rate() -> None:
    """NVIDIA's A100 trains 580 sequences of 128 tokens a second: 43 % of 312 TFLOP/s."""
    assert mfu(bert_flops(24, 1024, 128, 20, 30522), 580, 312e12) == pytest.approx(0.447, abs=0.01)


def test_idle_share_counts_gaps_alone() -> None:
    assert idle_share([(0, 10)]) == 0
    assert idle_share([(5, 10), (0, 1)]) == pytest.approx(0.4)
    assert idle_share([(0, 4), (1, 2), (2, 6)]) == 0  # streams overlap
    assert idle_share([]) == 1


def test_no_ratio_where_ranges_overlap() -> None:
    slow = Spread.of([9.0, 10.0, 11.0, 10.0, 10.5])
    assert slow == Spread(10.0, 9.0, 11.0)
    assert Spread.of([20.0, 21.0, 22.0]).ratio(slow) == pytest.approx(2.1)
    assert Spread.of([10.9, 21.0, 22.0]).ratio(slow) is None
    assert Spread.of([11.0, 21.0, 22.0]).ratio(slow) is None  # they touch
    assert Spread.of([5.0]).ratio(slow) == 0.5


def test_losses_that_are_not_numbers_differ() -> None:
    assert largest_difference([2.0, float("nan")], [2.0, 1.0]) == float("inf")
    assert largest_difference([2.0, 1.0], [2.0, 0.5]) == 1
    with pytest.raises(ValueError, match="2 losses"):
        largest_difference([1.0, 2.0], [1.0])


def _result(name: str, rates: list[float], losses: list[float]) -> Result:
    return Result(name, "BERT", "sequences", False, losses=losses, wall=rates, cpu=rates, operations=10, waits=1)


def test_faster_contestant_with_other_losses_is_no_peer() -> None:
    reference = _result(REFERENCE, [9.0, 10.0, 11.0], [7.0, 6.9])
    off = 1 + 1.01 * tables.TOLERANCE
    cases = {
        "": _result("a", [20.0, 20.0, 20.0], []),
        "2.00": _result("b", [20.0, 20.0, 20.0], [7.0, 6.9 * (1 + 0.9 * tables.TOLERANCE)]),
        "other losses": _result("c", [20.0, 20.0, 20.0], [7.0, 6.9 * off]),
        "ranges overlap": _result("d", [10.0, 12.0, 12.0], [7.0, 6.9]),
    }
    assert tables.ratio(reference, reference) == "1"
    assert not tables.is_peer(cases[""], reference)
    for text, result in cases.items():
        assert tables.ratio(result, reference) == (text or "other losses")


def test_page_has_each_contestant_and_why_others_are_missing() -> None:
    about = {
        "measured": "2026-11-30, commit x", "machine": "M.", "versions": {}, "rounds": 2, "losses": 2, "quick": True, "tokens": {"BERT": 100.0},
        "starts": {"a command": 3.0}, "load": "1.0 and 2.0",
    }  # fmt: skip
    results = [
        _result(REFERENCE, [9.0, 11.0], [7.0, 6.9]),
        Result("Composer", "BERT", "sequences", False, problem="`import composer` fails"),
    ]
    text = tables.page(results, about)
    assert "| BERT | torch DDP | 10 (9 to 11) | 10 (9 to 11) | 1,000 | 1 | 0.0e+00 |" in text
    assert "Not run: Composer: `import composer` fails" in text
    assert f"- {REFERENCE}: {CONTESTANTS[0].defaults}" in text
    assert "| a command | 3.0 |" in text


def test_turns_share_the_time_that_is_left() -> None:
    import time

    now = time.monotonic()
    assert Budget(now + 100, 50, 0.1, 10).seconds() == pytest.approx(2, abs=0.1)
    assert Budget(now + 1000, 50, 0.1, 10).seconds() == 10
    assert Budget(now - 5, 50, 0.1, 10).seconds() == 0.1


def test_gate_counts_updates_operations_and_reads() -> None:
    from scripts.bench_train.gate import Gate, Stop, uncounted

    class Connection:
        def __init__(self) -> None:
            self.sent: list[tuple[str, object]] = []
            self.commands = iter([("losses", 2), ("count", 1), ("save",), ("steps", 3), ("stop",)])

        def send(self, message: tuple[str, object]) -> None:
            self.sent.append(message)

        def recv(self) -> tuple[object, ...]:
            return next(self.commands)

    connection, saved = Connection(), []
    batches = uncounted(torch.ones(3) + step for step in range(10))
    gate = Gate(connection)
    gate.save = lambda: saved.append(1)
    gate.open()
    with pytest.raises(Stop):
        for step in range(10):
            assert (next(batches).sum() - 3 * step).item() == 3
            gate.after_step(torch.tensor(float(step)))
    kinds = [kind for kind, _ in connection.sent]
    assert kinds == ["ready", "losses", "count", "save", "steps"]
    answers = dict(connection.sent)
    assert answers["losses"] == [0.0, 1.0]
    operations, waits = answers["count"]  # type: ignore[misc]
    assert operations == 4  # sum, subtract, read, the loss; and not those that make the batch
    assert waits == 1
    assert saved == [1]

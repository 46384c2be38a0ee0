"""scripts/measurements.py and what the two benchmarks conclude from it, with known values."""

from __future__ import annotations

from typing import Any

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


MOVED = [1e-3, -1e-3, 5e-4]
ABOUT = {"rounded_otherwise": {"BERT": [[7.0, 6.9 * 1.001], [7.0, 6.9 * 0.9995]]}}


def _result(name: str, rates: list[float], losses: list[float], moved: list[float] = MOVED) -> Result:
    return Result(
        name, "BERT", "sequences", False, losses=losses, moved=moved, wall=rates, cpu=rates, operations=10, waits=1
    )


def test_faster_contestant_that_trains_otherwise_gets_no_ratio() -> None:
    reference = _result(REFERENCE, [9.0, 10.0, 11.0], [7.0, 6.9])
    fast, same = [20.0, 20.0, 20.0], [7.0, 6.9]
    amplified = tables.LOSS_FACTOR * 1e-3  # what rounding does to the reference's own losses
    cases = [
        ("other losses", _result("none", fast, [])),
        ("2.00", _result("amplified rounding", fast, [7.0, 6.9 * (1 + 0.99 * amplified)])),
        ("other losses", _result("more", fast, [7.0, 6.9 * (1 + 1.01 * amplified)])),
        ("other update", _result("rate of 1 % more", fast, same, [1.01 * m for m in MOVED])),
        ("2.00", _result("rounding", fast, same, [(1 + 1e-5) * m for m in MOVED])),
        ("other update", _result("not a number", fast, same, [float("nan"), *MOVED[1:]])),
        ("other update", _result("cannot be asked", fast, same, [])),
        ("ranges overlap", _result("slower", [10.0, 12.0, 12.0], same)),
    ]
    assert tables.ratio(reference, reference, ABOUT) == "1"
    for text, result in cases:
        assert tables.ratio(result, reference, ABOUT) == text, result.contestant
    # Where rounding does nothing to the reference, its losses have to be met.
    steady = {"rounded_otherwise": {"BERT": [[7.0, 6.9]]}}
    assert tables.ratio(cases[1][1], reference, steady) == "other losses"


def test_page_has_each_contestant_and_why_others_are_missing() -> None:
    about = {
        "measured": "2026-11-30, commit x", "machine": "M.", "versions": {}, "rounds": 2, "losses": 2, "quick": True, "tokens": {"BERT": 100.0}, **ABOUT,
        "starts": {"a command": 3.0}, "load": "1.0 and 2.0",
    }  # fmt: skip
    results = [
        _result(REFERENCE, [9.0, 11.0], [7.0, 6.9]),
        Result("Composer", "BERT", "sequences", False, problem="`import composer` fails"),
    ]
    text = tables.page(results, about)
    assert "| BERT | torch DDP | 10 (9 to 11) | 10 (9 to 11) | 1,000 | 1 | 0.0e+00 | 0.0e+00 |" in text
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
    weights = [torch.zeros(2), torch.zeros(2 * 64)]
    gate.parameters = lambda: weights
    gate.open()
    with pytest.raises(Stop):
        for step in range(10):
            assert (next(batches).sum() - 3 * step).item() == 3
            if step < 2:  # the updates whose losses are asked for
                weights[0][0] += 0.5
                weights[1][2::2] -= 0.25
            gate.after_step(torch.tensor(float(step)))
    kinds = [kind for kind, _ in connection.sent]
    assert kinds == ["ready", "losses", "count", "save", "steps"]
    answers: dict[str, Any] = dict(connection.sent)
    # Of each tensor 64 elements at most, and of the first update alone.
    assert answers["losses"] == ([0.0, 1.0], [0.5, 0.0, 0.0, *[-0.25] * 63])
    operations, waits = answers["count"]
    assert operations == 4  # sum, subtract, read, the loss; and not those that make the batch
    assert waits == 1
    assert saved == [1]

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from torch import Tensor

from bellwether.trainer.config.errors import ConfigError
from bellwether.trainer.data import Samples, load, loader
from bellwether.trainer.data.loader import WorkerError, evaluation_batches, train_batches
from bellwether.trainer.data.text import TextData
from tests.tiers import covering
from tests.trainer.data.helpers import Plain

ROOT = Path(__file__).resolve().parents[3]
GLOBAL = 16


def global_batches(
    samples: Samples, world_size: int, micro: int, *, steps: int = 3, start: int = 0, workers: int = 0, seed: int = 7
) -> list[dict[str, Tensor]]:
    """The global batches of some steps, assembled from those of all ranks in the order of positions."""
    accumulation = GLOBAL // (world_size * micro)
    ranks = [
        train_batches(
            samples, seed=seed, start=start, steps=steps, global_batch=GLOBAL, micro=micro,
            accumulation=accumulation, rank=rank, world_size=world_size, workers=workers,
        )
        for rank in range(world_size)
    ]  # fmt: skip
    found = []
    for _ in range(steps):
        parts = [next(ranks[rank]) for _ in range(accumulation) for rank in range(world_size)]
        found.append({name: torch.cat([part[name] for part in parts]) for name in parts[0]})
    assert all(next(rank, None) is None for rank in ranks)
    return found


def same(a: list[dict[str, Tensor]], b: list[dict[str, Tensor]]) -> bool:
    return len(a) == len(b) and all(
        x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x) for x, y in zip(a, b, strict=True)
    )


SPLITS = [(1, 16), (1, 4), (1, 1), (2, 8), (2, 2), (4, 4), (4, 1), (8, 2)]


@pytest.mark.parametrize("world_size, micro", SPLITS)
def test_global_batch_is_independent_of_world_size_and_micro_batch(
    text_config: Callable[..., TextData], world_size: int, micro: int
) -> None:
    samples = load(text_config()).train
    assert same(global_batches(samples, world_size, micro), global_batches(samples, 1, 16))


@pytest.mark.parametrize("length", [10, 16, 23])
def test_each_row_appears_once_per_epoch_when_batches_span_epochs(length: int) -> None:
    steps = length  # so that the positions are whole epochs
    rows = torch.cat([b["rows"] for b in global_batches(Plain(length), 2, 4, steps=steps)])
    for epoch in rows.view(GLOBAL, length):
        assert sorted(epoch.tolist()) == list(range(length))


@pytest.mark.parametrize("start", [0, 16, 17, 1000])
def test_resuming_at_any_step_gives_the_same_batches(start: int) -> None:
    whole = global_batches(Plain(37), 2, 4, steps=4, start=start)
    resumed = global_batches(Plain(37), 4, 2, steps=2, start=start + 2 * GLOBAL)
    for batch in (*whole, *resumed):
        del batch["process"], batch["threads"]
    assert same(resumed, whole[2:])


def test_random_choices_differ_between_epochs_and_seeds() -> None:
    batches = global_batches(Plain(8), 1, 16, steps=1)[0]
    assert sorted(batches["rows"][:8].tolist()) == sorted(batches["rows"][8:].tolist())
    assert len(set(batches["keys"].tolist())) == 16
    assert not same(global_batches(Plain(8), 1, 16, seed=8), global_batches(Plain(8), 1, 16))


@pytest.mark.process
def test_workers_change_nothing_and_use_one_thread(text_config: Callable[..., TextData]) -> None:
    samples = load(text_config()).train
    state = torch.get_rng_state()
    assert same(global_batches(samples, 1, 4, workers=2), global_batches(samples, 1, 4))
    assert torch.equal(torch.get_rng_state(), state), "the loader drew from the generator of dropout"
    shown = global_batches(Plain(100), 1, 4, workers=2)
    processes = {p for b in shown for p in b["process"].tolist()}
    assert len(processes) == 2
    assert os.getpid() not in processes
    assert {t for b in shown for t in b["threads"].tolist()} == {1}


def test_micro_batches_must_fill_the_global_batch() -> None:
    with pytest.raises(ValueError, match=r"do not make a global batch of 16"):
        train_batches(
            Plain(9),
            seed=1,
            start=0,
            steps=1,
            global_batch=16,
            micro=3,
            accumulation=5,
            rank=0,
            world_size=1,
            workers=0,
        )


@pytest.mark.parametrize("length, limit, micro, world_size", [
    (10, None, 4, 1), (10, None, 4, 2), (10, None, 1, 4), (3, None, 4, 4), (8, None, 4, 2), (100, 7, 2, 3), (5, 9, 2, 2), (1, None, 8, 2),
])  # fmt: skip
def test_each_held_out_row_counts_once_over_all_ranks(
    length: int, limit: int | None, micro: int, world_size: int
) -> None:
    ranks = [
        list(evaluation_batches(Plain(length), limit=limit, micro=micro, rank=r, world_size=world_size, workers=0))
        for r in range(world_size)
    ]
    assert len({len(batches) for batches in ranks}) == 1, "ZeRO-3 hangs where ranks differ in their number of batches"
    batches = [batch for batches in ranks for batch in batches]
    assert {len(batch["rows"]) for batch in batches} == {micro}
    weight = torch.cat([batch["weight"] for batch in batches])
    rows = torch.cat([batch["rows"] for batch in batches])[weight == 1].tolist()
    count = min(length, limit or length)
    assert weight.dtype == torch.float32
    assert set(weight.tolist()) <= {0.0, 1.0}
    assert weight.sum() == count
    assert len(set(rows)) == len(rows) == count
    assert set(rows) <= set(range(length))
    if limit and limit < length:
        assert max(rows) >= length * (1 - 1 / limit) - 1, "a limit spreads over all rows"


def train(samples: Samples, workers: int, steps: int = 50):
    return train_batches(samples, seed=1, start=0, steps=steps, global_batch=4, micro=4, accumulation=1, rank=0, world_size=1, workers=workers)  # fmt: skip


@pytest.mark.process
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("samples, error, message", [
    (Plain(20, broken=5), ConfigError, "^data.source: 'cat.png': cannot be decoded: truncated; repair or remove it$"),
    (Plain(20, buggy=5), WorkerError, "a batch could not be prepared: KeyError: 'a bug'\nTraceback"),
])  # fmt: skip
def test_config_error_and_unexpected_error_are_distinguished(
    workers: int, samples: Plain, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        list(train(samples, workers))


@pytest.mark.process
def test_error_of_a_dead_worker_names_the_key_to_change() -> None:
    with pytest.raises(WorkerError, match=r"data worker died.*data.workers"):
        list(train(Plain(20, deadly=5), workers=1))


@pytest.mark.process
def test_abandoned_iterator_leaves_no_worker() -> None:
    batches = train(Plain(20), workers=2)
    workers = {int(next(batches)["process"][0]) for _ in range(4)}
    assert all(map(psutil.pid_exists, workers))
    batches.close()
    assert not any(map(alive, workers))


SCRIPT = """
import signal, sys, time
from tests.trainer.data.helpers import Plain
from bellwether.trainer.data.loader import train_batches

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # nohup and background jobs of a shell ignore it
    batches = train_batches(Plain(20), seed=1, start=0, steps=10**6, global_batch=4, micro=4, accumulation=1,
                            rank=0, world_size=1, workers=2)
    print(*{int(next(batches)["process"][0]) for _ in range(4)}, flush=True)
    {end}
"""


@covering(lambda end, signum: signum == signal.SIGKILL or "sys.exit" in end)
@pytest.mark.process
@pytest.mark.parametrize("end, signum", [
    ("time.sleep(60)", signal.SIGKILL), ("time.sleep(60)", signal.SIGINT), ("raise KeyError('a bug')", None),
    ("for name in ('batches',): sys.modules['kept'] = batches; sys.exit(3)", None),
])  # fmt: skip
def test_workers_exit_with_the_training_process(tmp_path: Path, end: str, signum: int | None) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace("{end}", end))
    process = subprocess.Popen(
        [sys.executable, str(script)], env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        workers = [int(word) for word in process.stdout.readline().split()]
        assert len(workers) == 2
        if signum == signal.SIGINT:
            os.killpg(process.pid, signum)  # Ctrl-C reaches all processes of the terminal
        elif signum is not None:
            process.send_signal(signum)
        assert process.wait(timeout=30) != 0
        deadline = time.monotonic() + 5
        while any(map(alive, workers)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not any(map(alive, workers))
        if signum == signal.SIGINT:
            assert process.stderr.read().count("Traceback") == 1, "workers stay silent"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.mark.process
def test_workers_survive_the_signals_of_a_preemption() -> None:
    batches = train(Plain(20), workers=1)
    worker = int(next(batches)["process"][0])
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        os.kill(worker, signum)
    assert {int(next(batches)["process"][0]) for _ in range(10)} == {worker}
    batches.close()


@pytest.mark.process
def test_fork_server_ignores_preemption_signals() -> None:
    program = (
        "import os, signal, time\n"
        "from multiprocessing import get_context\n"
        "context = get_context('forkserver')\n"
        "context.set_forkserver_preload(['bellwether.trainer.data.ignore_signals'])\n"
        "if __name__ == '__main__':\n"
        "    first = context.Process(target=time.sleep, args=(0,))\n"
        "    first.start()\n"
        "    first.join()\n"
        "    from multiprocessing import forkserver\n"
        "    server = forkserver._forkserver._forkserver_pid\n"
        "    for number in (signal.SIGUSR2, signal.SIGTERM):\n"
        "        os.kill(server, number)\n"
        "    time.sleep(0.5)\n"
        "    print('alive' if os.waitpid(server, os.WNOHANG) == (0, 0) else 'dead')\n"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.stdout == "alive\n", done.stderr


def test_modules_of_samples_are_imported_once_by_the_fork_server(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(Plain):
        worker_imports = ("datasets",)

    preloaded: list[list[str]] = []

    class Context:
        def set_forkserver_preload(self, names: list[str]) -> None:
            preloaded.append(names)
            raise InterruptedError  # no process is started

    monkeypatch.setattr(loader.multiprocessing, "get_context", lambda method: Context())
    with pytest.raises(InterruptedError):
        next(train(Slow(20), workers=1))
    assert preloaded[0][-1] == "datasets"

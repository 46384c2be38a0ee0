"""Ranks that live and do not move on: the run ends within the limit, and names the rank, what it was doing and where."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.launcher.processes import finish, start
from tests.tiers import covering

HANGING = Path(__file__).parent / "hanging"
BATCH = "bellwether.trainer.data.image_samples.ImageSamples.worker_batch"
FORWARD = "bellwether.trainer.engine.Engine.forward"
LIMITS = ("engine.heartbeat=6", "engine.hang_timeout=4", "engine.hang_timeout_data=5", "engine.hang_timeout_files=6")

CASES = {
    "loader": (f"1 rank {BATCH} 40", 2, (), r"rank 1 on \S+ does not arrive: waiting for data after step \d+ for \d+ s, at \S+"),
    "worker": (f"1 worker {BATCH} 20", 2, ("data.workers=1",), r"rank 1 on \S+ does not arrive: waiting for data after step"),
    "forward": (
        f"0 rank {FORWARD} 14", 2, (),
        r"rank 0 on \S+ does not arrive: forward, backward and update .*hanging; 1 other rank waits in collective \d+ of it, "
        r"where it has begun 0",
    ),
    "evaluation": (
        f"1 evaluation {FORWARD} 6", 2, ("evaluate.every=3 steps",),
        r"rank 1 on \S+ does not arrive: evaluation .*1 other rank waits in evaluation",
    ),
    "checkpoint": (
        "1 rank bellwether.trainer.checkpoint.snapshot.Snapshot.write 2", 2, ("checkpoint.every=3 steps", "checkpoint.async_save=false"),
        r"rank 1 on \S+ does not arrive: writing the checkpoint of step 6 .*1 other rank waits in collective",
    ),
    "checkpoint in a thread": (
        "1 rank bellwether.trainer.checkpoint.snapshot.Snapshot.write 2", 2, ("checkpoint.every=3 steps",),
        r"rank 1 on \S+ does not arrive: writing the checkpoint of step 6 for \d+ s, at \S+ in hanging; 1 other rank waits in "
        r"collective 2 of it, where it has begun 1",
    ),
    "two of three": (f"0,2 rank {BATCH} 20", 3, ("batch.global=12",), r"rank 0 on .*; rank 2 on .*; 1 other rank waits"),
    "all": (f"0,1 rank {BATCH} 20", 2, (), r"no rank is behind: all 2 ranks have been in the same place of 'waiting for data'"),
    "alone": (f"0 rank {BATCH} 40", 1, (), r"rank 0 on \S+ does not arrive: waiting for data after step \d+ for \d+ s"),
}  # fmt: skip


@covering(lambda case: case == "forward")
@pytest.mark.process
@pytest.mark.parametrize("case", CASES)
def test_rank_that_does_not_move_on_ends_the_run_and_is_named(space: Path, case: str) -> None:
    hang, nproc, overrides, wanted = CASES[case]
    name = case.replace(" ", "-")
    process = start(
        space, "bellwether", "train", "long.yaml", "--nproc", str(nproc), f"name={name}", *LIMITS, *overrides,
        PYTHONPATH=str(HANGING), TEST_HANG=hang,
    )  # fmt: skip
    try:
        status, _, error = finish(process)
    finally:
        process.kill()  # its ranks exit with it
    assert status == 76, error
    logs = space / "runs" / name / "logs"
    beat = json.loads((logs / "heartbeat.json").read_text())
    assert beat["ended"] == "lost"
    assert re.search(wanted, beat["reason"]), beat["reason"]
    assert beat["reason"] in error
    (folder,) = (logs / "stacks").iterdir()
    assert str(folder.relative_to(space)) in beat["reason"]
    assert {p.name for p in folder.glob("*.txt")} == {"summary.txt", *(f"rank-{rank:05d}.txt" for rank in range(nproc))}
    hanging = folder / f"rank-{int(hang.split(',')[0].split()[0]):05d}.txt"
    if case == "worker":  # its own stack, in its rank's output
        assert any("in hanging" in file.read_text() for file in logs.rglob("stderr.log"))
    else:
        assert "in hanging" in hanging.read_text()
    if nproc > 1:
        collectives = json.loads((folder / "rank-00001.collectives.json").read_text())["entries"]
        assert {"gloo:all_reduce"} <= {entry["profiling_name"] for entry in collectives}

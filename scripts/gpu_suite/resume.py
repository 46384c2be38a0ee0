"""A run of the trainer that is killed with SIGKILL and resumed ends with the same bits as one that was not.

    python -m scripts.gpu_suite.resume CONFIG [STEP]    # one process of a run, with torch's deterministic operations; killed at STEP

Some operations of CUDA add in any order, so two runs that are not killed differ too; torch's deterministic ones are used here.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from scripts.gpu_suite import workloads
from scripts.gpu_suite.context import Context

ROOT = Path(__file__).resolve().parents[2]


def run(context: Context) -> None:
    steps, every = (6, 2) if context.dry else (60, 20)
    corpus = context.folder / "corpus.txt"
    corpus.write_text(text(3000 if context.dry else 20_000))
    raws = {name: _config(context, name, corpus, steps, every) for name in ("whole", "killed")}
    _train(context, raws["whole"])
    at = steps // 2 + 2
    status = _train(context, raws["killed"], at)
    context.check(f"SIGKILL at step {at}", status == -signal.SIGKILL, f"the process ended with {status}")
    status = _train(context, raws["killed"])
    context.check("the same command resumes", status == 0, f"the process ended with {status}")
    compare(context, *(Path(raw["runs"]) / raw["name"] for raw in raws.values()))


def compare(context: Context, whole: Path, killed: Path) -> None:
    """Compare the losses, and each tensor of the last checkpoint: weights and moments."""
    from safetensors.torch import load_file

    from bellwether.trainer import checkpoint
    from bellwether.trainer.metrics import read

    losses = [{line["step"]: line["loss"] for line in read(run).train} for run in (whole, killed)]
    common = losses[0].keys() & losses[1].keys()
    different = [step for step in sorted(common) if losses[0][step] != losses[1][step]]
    detail = f"they differ first at step {different[0]}" if different else f"{len(common)} logged steps"
    context.check("the same losses", bool(common) and not different, detail)
    tensors: list[dict[str, Any]] = []
    for folder in (whole, killed):
        newest = checkpoint.newest(folder / "checkpoints")
        assert newest is not None
        tensors.append({k: v for file in sorted(newest.glob("*.safetensors")) for k, v in load_file(file).items()})
    unequal = [name for name in tensors[0] if name not in tensors[1] or not tensors[0][name].equal(tensors[1][name])]
    detail = f"{len(unequal)} of {len(tensors[0])} differ, as {unequal[0]}" if unequal else f"{len(tensors[0])} tensors"
    context.check(
        "the same bits in the last checkpoint", not unequal and tensors[0].keys() == tensors[1].keys(), detail
    )


def text(lines: int) -> str:
    """Lines of random words, the same each time."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(800)]
    return "\n".join(" ".join(draw.choices(words, k=12)) for _ in range(lines))


def _config(context: Context, name: str, corpus: Path, steps: int, every: int) -> dict[str, Any]:
    return workloads.merged(
        workloads.bert(context.dry, 128, 32, model={"size": "tiny" if context.dry else "base"}),
        {
            "name": name, "runs": str(context.folder / "runs"), "duration": f"{steps} steps",
            "data": {"source": str(corpus), "vocabulary_size": 1000, "cache": str(context.folder / "cache"), "workers": 0 if context.dry else 2,
                     "max_overlap": 1.0},
            "checkpoint": {"every": f"{every} steps", "export": False}, "evaluate": {"limit": 32},
            "log": {"every": "1 steps", "trackers": [], "report": False},
            "engine": {"device": "cpu" if context.dry else "cuda"},
        },
    )  # fmt: skip


def _train(context: Context, raw: dict[str, Any], kill_at: int | None = None) -> int:
    """A run's only process; returns its exit status."""
    file = context.folder / f"{raw['name']}.json"
    file.write_text(json.dumps(raw))  # which is YAML too
    command = [sys.executable, "-m", "scripts.gpu_suite.resume", str(file)] + (
        [] if kill_at is None else [str(kill_at)]
    )
    return subprocess.run(command, cwd=ROOT, env={**os.environ, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}).returncode


def _process(config: str, kill_at: int | None) -> int:
    """`python -m bellwether.trainer` with deterministic operations, which may kill itself before a step."""
    import torch

    from bellwether.trainer.__main__ import main
    from bellwether.trainer.loop import PhaseLoop

    torch.use_deterministic_algorithms(True, warn_only=True)  # an operation without one is no error until bits differ
    seed = PhaseLoop.seed_torch

    def killed(self: PhaseLoop, step: int) -> int:
        if step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return seed(self, step)

    PhaseLoop.seed_torch = killed  # type: ignore[method-assign]
    return main([config])


if __name__ == "__main__":
    status = _process(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else None)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)

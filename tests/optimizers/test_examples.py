"""docs/examples: each runs with the commands in its docstring, and its loss decreases."""

from __future__ import annotations

import ast
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.precision import subprocess_path
from tests.tiers import covering

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "docs/examples").glob("*.py"))
QUICK = Path(__file__).parent / "quick_deepspeed"
PROGRAMS = {"python": [], "torchrun": ["-m", "torch.distributed.run"]}


# hf_trainer_deepspeed.py covers hf_trainer.py, DeepSpeed and accelerate, each of which has a script of its own in the full matrix;
# test_engines.py covers FSDP2.
ONCE = ("hf_trainer_deepspeed.py", "python docs/examples/plain_torch.py")


def commands(example: Path) -> list[str]:
    """The lines of the docstring that begin with a program's name."""
    head = ast.get_docstring(ast.parse(example.read_text())) or ""
    return [line for line in head.splitlines() if line.split(" ")[0] in PROGRAMS]


def test_every_example_has_its_command() -> None:
    assert len(EXAMPLES) >= 6
    for example in EXAMPLES:
        assert commands(example), example
        assert all(example.name in command for command in commands(example)), example


@covering(lambda command: command.endswith(ONCE))
@pytest.mark.process
@pytest.mark.parametrize("command", [command for example in EXAMPLES for command in commands(example)])
def test_loss_of_the_example_decreases(command: str, tmp_path: Path) -> None:
    program, *arguments = command.split()
    # One thread for each process, as torchrun sets it: the models are tiny.
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": subprocess_path(QUICK, ROOT),
        "TMPDIR": str(tmp_path),
    }
    process = subprocess.Popen(
        [sys.executable, *PROGRAMS[program], *arguments], cwd=ROOT, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        out, error = process.communicate(timeout=180)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # torchrun's processes too
        out, error = process.communicate()
        pytest.fail(f"{command}: not done after 180 s\n{out}\n{error}")
    assert process.returncode == 0, error
    losses = [float(found) for found in re.findall(r"\bloss'?:? +'?([0-9.]+)", out)]
    assert len(losses) >= 5, out
    assert losses[-1] < 0.3 * losses[0], losses

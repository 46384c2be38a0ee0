"""A virtual environment that bellwether is installed into, and a config of two quick steps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[2]

QUICK = """
name: quick
duration: 2 steps
model: {kind: cifar-resnet, depth: 8}
data: {kind: images, size: 8, mean: [0.3], std: [0.3], workers: 0, cache: cache}
batch: {global: 8, micro: 8}
optimizer: {lr: 1e-2}
log: {every: 1 steps, trackers: []}
evaluate: {limit: 16}
"""


class Environment:
    """A virtual environment with bellwether installed from the wheel, and a folder to work in.

    The folder has an ``optimizers/``, a ``launcher/`` and a ``trainer.py`` of its own, as people's repositories do.
    """

    def __init__(self, root: Path, wheel: Path, search_path: Iterable[Path | str]) -> None:
        venv = root / "venv"
        self.bin = venv / "bin"
        self.folder = root / "folder"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
        pip = [sys.executable, "-m", "pip", "--python", self.bin / "python"]
        subprocess.run([*pip, "install", "--quiet", "--no-deps", "--no-index", wheel], check=True)
        self.site_packages = next(venv.glob("lib/python*/site-packages"))
        # Appended to sys.path. The editable install's own .pth file there is not read, so the wheel is what is imported.
        (self.site_packages / "dependencies.pth").write_text("\n".join(map(str, search_path)))
        for module in ("optimizers/__init__.py", "launcher/__init__.py", "trainer.py"):
            file = self.folder / module
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("raise RuntimeError('the module of the user was imported')\n")

    def run(self, *command: str, status: int = 0) -> str:
        """Output and errors of a program of the environment, started in the folder."""
        variables = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
        done = subprocess.run(
            [self.bin / command[0], *command[1:]],
            cwd=self.folder,
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=240,
        )
        assert done.returncode == status, done.stdout
        return done.stdout


def steps(run: Path) -> list[int]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if line["event"] == "train"]

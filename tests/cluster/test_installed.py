"""bellwether launch on a real SLURM from an installed wheel, in a folder that is no checkout."""

from __future__ import annotations

import subprocess

import pytest

from tests.cluster.machine import Cluster
from tests.packaging.conftest import installed, wheel
from tests.packaging.environment import Environment, steps

__all__ = ["installed", "wheel"]  # fixtures


@pytest.mark.full
def test_launch_of_a_shipped_recipe_from_an_installed_wheel(two: Cluster, installed: Environment) -> None:
    # Without an activated environment and PYTHONPATH, the job must find the package itself.
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PATH")
    environment = {key: value for key, value in two.environment.items() if key not in hidden}
    environment |= {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "OMP_NUM_THREADS": "1"}

    def bellwether(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [installed.bin / "bellwether", *arguments], cwd=installed.folder, env=environment, capture_output=True,
            text=True, timeout=240,
        )  # fmt: skip

    resources = (
        "--nodes",
        "2",
        "--gpus-per-node",
        "0",
        "--tasks-per-node",
        "1",
        "--cpus-per-task",
        "1",
        "--time",
        "10:00",
    )
    config = ("duration=2 steps", "batch.global=8", "batch.micro=4", "evaluate.limit=8", "data.cache=cache")
    more = ("data.sequence_length=32", "data.workers=0", "name=installed")
    done = bellwether("launch", "bert-tiny", *config, *more, "--on", "slurm", *resources)
    assert done.returncode == 0, done.stderr
    job = done.stdout.split()[2].rstrip(":")
    two.wait_for(job, "COMPLETED")
    run = installed.folder / "runs" / "installed"
    assert steps(run)[-1] == 2
    assert "installed: finished" in bellwether("logs", "runs/installed").stdout

"""A job on a real SLURM whose ranks start from a packed environment."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bellwether.launcher import packed_env
from tests.cluster.conftest import ONE_EACH, TRAIN, Space, ranks, wait_for_step
from tests.cluster.machine import Cluster
from tests.launcher.test_packed_env import small_environment


@pytest.mark.full
def test_ranks_start_from_the_nodes_own_disk(two: Cluster, space: Space, tmp_path: Path) -> None:
    archive, disk = tmp_path / "environment.tar", tmp_path / "disk"
    packed_env.pack(small_environment(tmp_path / "env"), archive)
    disk.mkdir()
    environment = space.environment(BELLWETHER_PACKED_ENV=str(archive), BELLWETHER_NODE_DIR=str(disk), TEST_STEP="0.2")
    job = two.submit(
        space.folder, *ONE_EACH, "--nodes=2", TRAIN, "quick.yaml", "name=packed", "duration=40 steps", **environment
    )
    wait_for_step(two, space, "packed", 2)
    for pids in ranks(two, "packed").values():
        assert pids
        for pid in pids:
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            assert arguments[0].decode() == f"{disk}/bellwether-{job}/bin/python"
    two.wait_for(job, "COMPLETED")
    assert os.listdir(disk) == []
    assert space.step("packed") == 40

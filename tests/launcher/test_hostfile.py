"""Host files of OpenMPI and MPICH."""

from __future__ import annotations

from pathlib import Path

import pytest

from bellwether.launcher.hostfile import hosts
from bellwether.trainer.config import ConfigError


def test_hostfile_in_the_syntax_of_openmpi_and_mpich(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text("# two racks\nnode1 slots=8\n\nnode2:4  # borrowed\nme@10.0.0.7\nnode4 slots = 2 max_slots=4\n")
    assert hosts(file) == [("node1", 8), ("node2", 4), ("me@10.0.0.7", None), ("node4", 2)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("node1\nnode2 slot=4\n", ["hosts:2", "node2 slot=4", "slots=8"]),
        ("node1\n-oProxyCommand=x\n", ["hosts:2"]),
        ("node1 slots=0\n", ["hosts:1", "from 1 up"]),
        ("node1:2\nnode2\nnode1\n", ["hosts:3", "appears twice"]),
        ("# no hosts\n", ["has no hosts"]),
        (None, ["cannot be read", "No such file"]),
    ],
)
def test_invalid_hostfile_is_refused_with_its_line_number(tmp_path: Path, text: str | None, words: list[str]) -> None:
    file = tmp_path / "hosts"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError) as error:
        hosts(file)
    for word in words:
        assert word in str(error.value)

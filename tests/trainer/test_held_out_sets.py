from __future__ import annotations

from pathlib import Path

import pytest

from bellwether.trainer import report
from bellwether.trainer.metrics import read
from tests.ranks import Ranks
from tests.trainer.runs import run_config, text


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_each_set_of_held_out_data_is_evaluated(ranks: Ranks, workspace: Path) -> None:
    lines = (workspace / "corpus.txt").read_text().split("\n")
    sets = {}
    for name, part in (("one", lines[:200]), ("two", lines[200:300])):
        (workspace / f"{name}.txt").write_text("\n".join(" ".join(reversed(line.split())) for line in part))
        sets[name] = str(workspace / f"{name}.txt")
    raw = text(workspace, "sets", data={"validation": sets}, duration="2 steps")
    ranks.run(run_config, raw)
    run = Path(raw["runs"]) / raw["name"]
    line = read(run).eval[-1]
    assert line["loss"] == line["loss_one"] != line["loss_two"]
    assert 0 < line["loss_two"] < 20
    assert "accuracy_two" in line
    report.write(run)
    assert "loss, two" in (run / "report.html").read_text()

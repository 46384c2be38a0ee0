"""``bellwether recipe``: settings of published recipes as text and JSON."""

from __future__ import annotations

import json

import pytest

from bellwether import cli
from bellwether.optimizers.recipes import RECIPES


def test_recipe_prints_published_and_derived_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["recipe", "lamb-bert", "--batch", "512,1024,65536", "--json"]) == 0
    out, error = capsys.readouterr()
    rows = json.loads(out)
    assert [row["batch"] for row in rows] == [512, 1024, 65536]
    assert rows[0]["lr"] == pytest.approx(6.25e-4)
    assert rows[0]["warmup_fraction"] == pytest.approx(1 / 320)
    assert "its rule is extrapolated" in error
    assert cli.main(["recipe", "lamb-resnet50", "--json"]) == 0
    assert [row["warmup_epochs"] for row in json.loads(capsys.readouterr().out)] == [
        0.3125,
        0.625,
        1.25,
        2.5,
        5,
        10,
        20,
    ]
    assert cli.main(["recipe", "nvidia-bert-large"]) == 0
    assert "0.2843" in capsys.readouterr().out
    assert cli.main(["recipe"]) == 0
    assert "mlperf-bert" in capsys.readouterr().out
    assert cli.main(["recipe", "--json"]) == 0
    known = {each["recipe"]: each for each in json.loads(capsys.readouterr().out)}
    assert list(known) == list(RECIPES)
    assert known["lamb-bert"]["batches"] == [512, 1024, 2048, 4096, 8192, 16384, 32768]
    assert "1904.00962" in known["lamb-bert"]["source"]
    with pytest.raises(SystemExit):
        cli.main(["recipe", "lamb-bert", "--batch", "4,096"])
    assert "without thousands separators" in capsys.readouterr().err
    assert cli.main(["recipe", "--batch", "512"]) == 2
    assert "NAME: is required with --batch" in capsys.readouterr().err
    assert cli.main(["recipe", "lamb-brt"]) == 2
    assert "did you mean lamb-bert?" in capsys.readouterr().err

#!/usr/bin/env python3
"""Draws the figures of docs/optimizers.md by running the optimizers.

python scripts/draw_optimizers.py                 all, into docs/pictures: a minute on two cores
python scripts/draw_optimizers.py decay --out /tmp --quick
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from scripts.figure_decay import decay
from scripts.figure_early import early
from scripts.figure_schedules import schedules
from scripts.figure_style import STYLE
from scripts.figure_trust import trust

PICTURES: dict[str, Callable[[bool], Figure]] = {f.__name__: f for f in (decay, trust, schedules, early)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"which: {', '.join(PICTURES)}; all by default")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs/pictures")
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    with plt.rc_context(STYLE):
        for name in arguments.names or PICTURES:
            figure = PICTURES[name](arguments.quick)
            # Without matplotlib's version, so that the file is reproducible.
            file = arguments.out / f"optimizers-{name}.png"
            figure.savefig(file, metadata={"Software": None})
            plt.close(figure)
            Image.open(file).convert("RGB").quantize(96).save(file, optimize=True)  # a third of the bytes


if __name__ == "__main__":
    main()

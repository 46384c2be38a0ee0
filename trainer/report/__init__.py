"""The results of a run: ``report.html``, its pictures as PNG, and a summary for the terminal."""

from __future__ import annotations

from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

from bellwether.trainer import run_paths
from bellwether.trainer.checkpoint_interval import suggest
from bellwether.trainer.report.chart import Draw, Picture, draw
from bellwether.trainer.report.facts import Facts, finite
from bellwether.trainer.report.summary import summary

__all__ = ["summary", "write"]

FILE = "report.html"


def write(run: Path) -> Path:
    """Write ``<run>/report.html`` and ``<run>/plots/*.png`` from config.yaml and metrics.jsonl.

    The page is one file that refers to nothing else. What the run has not logged is left out, and named as missing. The
    same run directory gives the same bytes.

    Returns:
        the path of the report.
    """
    from bellwether.trainer.report import data, mlperf, tables
    from bellwether.trainer.report.html import render

    run = Path(run)
    facts = Facts.load(run)
    page = render(
        "run.html", title=facts.name, kind="report of a run", state=facts.history.state, about=_about(facts),
        facts=facts, headlines=tables.headlines(facts), sections=draw(_sections(), facts, run / "plots"),
        layers=tables.layers(facts), goodput=tables.goodput(facts), interval=suggest(facts.history, facts.goodput),
        data=data.table(facts), mlperf=mlperf.table(facts),
        tables={
            "Evaluations": tables.evaluations(facts), "Parameter groups": tables.groups(facts),
            "Checkpoints": tables.checkpoints(facts),
        },
    )  # fmt: skip
    run_paths.publish(run / FILE, page)
    return run / FILE


def _about(facts: Facts) -> list[str]:
    """The facts in the line below the title; empty ones are left out by the template."""
    h = facts.history
    first, latest = (h.start[0], h.start[-1]) if h.start else ({}, {})
    model = [facts.setting("model", key) for key in ("kind", "size", "depth", "width")]
    stage, began = facts.setting("engine", "stage"), first.get("time")
    return [
        "-".join(str(part) for part in model if part is not None),
        facts.setting("data", "source"),
        f"{latest['world_size']} × {latest['device'].split(':')[0]}" if "world_size" in latest else "",
        f"ZeRO-{stage}" if stage is not None else "",
        facts.setting("engine", "precision"),
        f"started {datetime.fromtimestamp(began, timezone.utc):%Y-%m-%d %H:%M UTC}" if finite(began) else "",
    ]


def _sections() -> dict[str, list[Picture[Facts]]]:
    from bellwether.trainer.report.curves import accuracy, between, curve, loss, noise_scale, scores, trust_ratio
    from bellwether.trainer.report.data import histogram
    from bellwether.trainer.report.heatmap import by_layer
    from bellwether.trainer.report.mlperf import strip

    def value(event: str, key: str, colour: str, **options: Any) -> Draw[Facts]:
        return partial(curve, event=event, key=key, colour=colour, **options)

    noise_note = "in samples; the critical batch may be several times larger or smaller"
    layers_note = "layers in model order, logarithmic colour"
    between_note = "loss of the batch between the weights before and after a step"
    lr = value("train", "lr", "green", smooth=False, from_zero=True)
    grad_norm = value("train", "grad_norm", "plum")
    throughput = value("train", "samples_per_s", "blue", from_zero=True)
    data_wait = value("train", "data_wait", "plum", from_zero=True)
    distance = value("walk", "distance", "green", smooth=False, from_zero=True)
    ratios, updates, weights = (
        partial(by_layer, event=event, key=key)
        for event, key in (("layers", "trust_ratio"), ("norms", "update_norms"), ("norms", "weight_norms"))
    )
    return {
        "Training": [
            Picture("loss", "Loss", "raw and smoothed training loss, held-out points", loss, expected=True),
            Picture("accuracy", "Held-out accuracy", "share predicted right", accuracy, expected=True),
            Picture("scores", "Held-out scores", "as the task defines them", scores),
            Picture("learning-rate", "Learning rate", "", lr, expected=True),
            Picture("gradient-norm", "Gradient norm", "before clipping", grad_norm, expected=True),
            Picture("throughput", "Throughput", "samples per second", throughput, expected=True),
            Picture("data-wait", "Waiting for data", "share of the time of a step", data_wait),
            Picture("noise-scale", "Gradient noise scale", noise_note, noise_scale),
        ],
        "Trust ratios": [
            Picture("trust-ratio", "Trust ratio", "over all layers", trust_ratio),
            Picture("trust-ratio-layers", "Trust ratio by layer", layers_note, ratios),
        ],
        "Trajectory": [
            Picture("cosine", "Angle", "cosine between an update and the one before", value("walk", "cosine", "blue")),
            Picture("distance", "Distance", "of the weights from their start", distance),
            Picture("update-norms", "Update by layer", f"norm of a step; {layers_note}", updates),
            Picture("weight-norms", "Weights by layer", f"norm; {layers_note}", weights),
            Picture("between", "Between iterates", between_note, between),
        ],
        "MLPerf": [Picture("mlperf", "Training to the target", "beside runs of the same batch size", strip)],
        "Data": [Picture("data", "Data", "what was read before rows were held out", histogram)],
    }

"""What came out: ``report.html``, its pictures as PNG, and a summary for the terminal."""

from __future__ import annotations

from pathlib import Path

from bellwether.trainer import run_paths
from bellwether.trainer.report.canvas import Picture, draw, style
from bellwether.trainer.report.facts import SMOOTHED, Facts
from bellwether.trainer.report.summary import summary

__all__ = ["summary", "write"]

FILE = "report.html"
PLOTS = "plots"


def write(run: Path) -> Path:
    """Make ``<run>/report.html`` and ``<run>/plots/*.png`` from config.yaml and metrics.jsonl.

    The page is one file without references to anything else. What the run has not logged is left out and said
    to be missing; the same run directory gives the same bytes.

    Returns:
        the path of the report.
    """
    from bellwether.trainer.report.page import OPTIONAL, page

    run = Path(run)
    facts = Facts.load(run)
    (run / PLOTS).mkdir(parents=True, exist_ok=True)
    with style():
        drawn = [
            (heading, [draw(picture, facts, run / PLOTS) for picture in pictures]) for heading, pictures in _sections()
        ]
    # Without trust ratios, noise that can be told or a diagnosis nothing is wrong, so no empty frames for them.
    sections = [
        (heading, shown)
        for heading, pictures in drawn
        if (shown := [each for each in pictures if heading not in OPTIONAL or each.desk is not None])
    ]
    run_paths.publish(run / FILE, page(facts, sections))
    return run / FILE


def _sections() -> list[tuple[str, list[Picture[Facts]]]]:
    from bellwether.trainer.report import curves, heatmap, trajectory
    from bellwether.trainer.report.page import NOISE, TRUST, WALK

    loss_note = "raw and smoothed training loss, held-out points"
    layers_note = "layers in model order, logarithmic colour"
    course = [
        Picture("loss", "Loss", loss_note, curves.loss, wide=True),
        Picture("accuracy", "Held-out accuracy", "share predicted right", curves.accuracy),
        Picture("learning-rate", "Learning rate", "", curves.learning_rate),
        Picture("gradient-norm", "Gradient norm", "before clipping", curves.gradient_norm),
        Picture("throughput", "Throughput", "samples a second", curves.throughput),
    ]
    trust = [
        Picture("trust-ratio", "Trust ratio", "over all layers", curves.trust_ratio, wide=True),
        Picture("trust-ratio-layers", "Trust ratio by layer", layers_note, heatmap.layers, wide=True),
    ]
    noise_note = (
        "the batch beyond which steps stop falling, as gradient noise predicts it; a mean over the last "
        f"{SMOOTHED} steps, which a phase's first ones are too few for"
    )
    batch = [Picture("noise-scale", "Critical batch", noise_note, curves.noise_scale, wide=True)]
    way = [
        Picture("cosine", "Angle", "cosine between an update and the one before", trajectory.cosine),
        Picture("distance", "Distance", "of the weights from where they began", trajectory.distance),
        Picture(
            "between",
            "Between iterates",
            "the batch's loss on the way of a step, less where it began",
            trajectory.between,
            wide=True,
        ),
        Picture("update-norms", "Update by layer", f"norm of a step; {layers_note}", heatmap.update_norms, wide=True),
        Picture("weight-norms", "Weights by layer", f"norm; {layers_note}", heatmap.weight_norms, wide=True),
    ]
    return [("Training", course), (NOISE, batch), (TRUST, trust), (WALK, way)]

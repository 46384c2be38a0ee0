"""Colours, dashes and fonts of the figures of docs/optimizers.md."""

from __future__ import annotations

# Okabe and Ito's colours, ordered so that their greys differ; lines differ in their dashes too.
COLOURS = BLACK, BLUE, ORANGE, GREEN = "#000000", "#0072B2", "#D55E00", "#009E73"
SKY = "#56B4E9"
DASHES = ("-", "--", "-.", ":")
STYLE = {
    "font.size": 12,
    "axes.titlesize": 12,
    "axes.labelsize": 12,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "legend.fontsize": 11,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.dpi": 150,
}

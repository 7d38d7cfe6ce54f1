"""Figures of the studies beyond the paper: patches with boxes, scores by condition, differences with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from companion.detection.plots import boxes, class_colors
from companion.evaluation import plots
from companion.evaluation.wording import NAMES
from companion.plots import CLASS_COLORS

STYLES = tuple(zip(CLASS_COLORS, "osD^v", strict=False))  # colour and marker


def boxed_patches(images: Sequence[NDArray], tables: Sequence[pd.DataFrame], names: list[str], title: str) -> Figure:
    """Patches uint8 [S, S], each with the boxes of its table (x1, y1, x2, y2, class) coloured by class."""
    drawn = [[(table[["x1", "y1", "x2", "y2"]].to_numpy(), class_colors(table["class"]), "-")] for table in tables]
    return boxes(images, names, drawn, title)


def scores_by(table: pd.DataFrame, condition: str, measures: Sequence[str], title: str) -> Figure:
    """Scores of every detector against the truth, by the values of the column `condition`, a panel per measure."""
    own = {NAMES.get(measure, measure): table.assign(score=table[measure]) for measure in measures}
    title = f"{title}\nmean over seeds, lines from the lowest to the highest"
    figure, panels = plots.arm_panels(own, condition, "score", "score against the truth", title)
    for panel in panels:
        panel.set(ylim=(-0.02, 1.02))
        panel.tick_params(axis="x", labelrotation=20)
    return figure


def differences(table: pd.DataFrame, condition: str, measures: Sequence[str], title: str, xlabel: str) -> Figure:
    """Paired differences with their intervals (columns `condition`, quantity, measure, mean, low, high)."""
    looks = dict(zip(dict.fromkeys(table["quantity"]), STYLES, strict=False))
    shown = table[table["measure"].isin(measures)]
    figure, panels = plots.interval_panels(shown, "measure", condition, "mean", "quantity", looks, title, "y")
    for panel in panels:
        panel.axvline(0, color="black", lw=0.8)
        panel.set(title=NAMES.get(panel.get_title(), panel.get_title()), xlabel=xlabel)
        panel.locator_params(axis="x", nbins=4)  # numbers of panels side by side do not touch
    return figure


def faithfulness(tables: Mapping[str, pd.DataFrame], note: str) -> Figure:
    """Recall with intervals (above) and class agreement (below) of a detector, by set and group of each grouping."""
    figure, axes = plt.subplots(2, len(tables), figsize=(plots.WIDTH, 4.6), sharey="row", sharex="col", squeeze=False)
    for (above, below), (title, table) in zip(axes.T, tables.items(), strict=True):
        table = table.assign(group=table["group"].astype(str).str.replace(" (", "\n("))
        looks = dict(zip(dict.fromkeys(table["images"]), STYLES, strict=False))
        plots.intervals(above, table, "group", "recall", "images", looks)
        known = table.dropna(subset="agreement").assign(low=float("nan"), high=float("nan"))
        plots.intervals(below, known, "group", "agreement", "images", looks)
        above.set(title=title, ylim=(-0.02, 1.02))
        below.set(ylim=(-0.02, 1.02))
    axes[0][0].set_ylabel("share found")
    axes[1][0].set_ylabel("of these, under\ntheir class")
    plots.legend_below(figure, axes[0][0])
    figure.suptitle(f"What a detector of labelled images finds ({note})", fontsize=10)
    return figure

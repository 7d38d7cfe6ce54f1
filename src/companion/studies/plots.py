"""Figures of the studies beyond the paper: patches with boxes, scores by condition, differences with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from numpy.typing import NDArray

from companion.config.arms import ARMS
from companion.evaluation.plots import COLORS, class_color, draw_boxes, interval_panels, intervals, legend_below
from companion.evaluation.wording import NAMES
from companion.plots import CLASS_COLORS

STYLES = tuple(zip(CLASS_COLORS, "osD^v", strict=False))  # colour and marker


def boxed_patches(
    images: Sequence[NDArray], tables: Sequence[pd.DataFrame], titles: Sequence[str], title: str
) -> Figure:
    """Patches uint8 [S, S] in a row, each with the boxes of its table (x1, y1, x2, y2, class) coloured by class."""
    figure, axes = plt.subplots(1, len(images), figsize=(2.3 * len(images), 2.9), squeeze=False)
    for panel, image, table, name in zip(axes[0], images, tables, titles, strict=True):
        panel.imshow(image, vmin=0, vmax=255)
        draw_boxes(panel, table[["x1", "y1", "x2", "y2"]], table["class"].map(class_color))
        panel.set(title=name, xlim=(-0.5, image.shape[1] - 0.5), ylim=(image.shape[0] - 0.5, -0.5))
        panel.set_axis_off()
    figure.suptitle(title, fontsize=9)
    return figure


def scores_by(table: pd.DataFrame, condition: str, measures: Sequence[str], title: str) -> Figure:
    """Scores of every detector against the truth, a panel per measure, arms in their colours and markers.

    Parameters
    ----------
    condition : column of `table` that gives the places along x, in the order of first appearance
    """
    arms, size = (
        list(dict.fromkeys(table["arm"])),
        (1.5 + len(measures) * (0.8 + 0.75 * table[condition].nunique()), 3.4),
    )
    figure, axes = plt.subplots(1, len(measures), squeeze=False, sharey=True, figsize=size)
    for panel, measure in zip(axes[0], measures, strict=True):
        sns.pointplot(table, x=condition, y=measure, hue="arm", hue_order=arms, palette=COLORS, linestyle="none",
                      markers=[ARMS[a].marker for a in arms], errorbar=("pi", 100), dodge=0.3, ax=panel)  # fmt: skip
        panel.set(title=NAMES.get(measure, measure), ylim=(-0.02, 1.02), xlabel="", ylabel="score against the truth")
        panel.tick_params(axis="x", labelrotation=20)
    legend_below(figure, axes[0][0])
    figure.suptitle(f"{title}\nmean over seeds, lines from the lowest to the highest", fontsize=9)
    return figure


def differences(table: pd.DataFrame, condition: str, measures: Sequence[str], title: str, xlabel: str) -> Figure:
    """Paired differences with their intervals (columns `condition`, quantity, measure, mean, low, high)."""
    looks = dict(zip(dict.fromkeys(table["quantity"]), STYLES, strict=False))
    shown = table[table["measure"].isin(measures)]
    figure, panels = interval_panels(shown, "measure", condition, "mean", "quantity", looks, title, "y")
    for panel in panels:
        panel.axvline(0, color="black", lw=0.8)
        panel.set(title=NAMES.get(panel.get_title(), panel.get_title()), xlabel=xlabel)
    return figure


def faithfulness(tables: Mapping[str, pd.DataFrame], note: str) -> Figure:
    """Recall with intervals (above) and class agreement (below) of a detector, per set of images.

    Parameters
    ----------
    tables : grouping -> columns images, group, recall, low, high, agreement
    """
    figure, axes = plt.subplots(2, len(tables), figsize=(9, 4.6), sharey="row", sharex="col", squeeze=False)
    for (above, below), (title, table) in zip(axes.T, tables.items(), strict=True):
        table = table.assign(group=table["group"].astype(str).str.replace(" (", "\n("))
        looks = dict(zip(dict.fromkeys(table["images"]), STYLES, strict=False))
        intervals(above, table, "group", "recall", "images", looks)
        known = table.dropna(subset="agreement").assign(low=float("nan"), high=float("nan"))
        intervals(below, known, "group", "agreement", "images", looks)
        above.set(title=title, ylim=(-0.02, 1.02))
        below.set(ylim=(-0.02, 1.02))
    axes[0][0].set_ylabel("share found")
    axes[1][0].set_ylabel("of these, under\ntheir class")
    legend_below(figure, axes[0][0])
    figure.suptitle(f"What a detector of labelled images finds ({note})", fontsize=10)
    return figure

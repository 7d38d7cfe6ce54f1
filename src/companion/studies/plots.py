"""Figures of the studies beyond the paper: patches with boxes, scores by condition, differences with intervals."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from companion.plots import ARM_COLORS, ARM_MARKERS, CLASS_COLORS
from companion.evaluation.plots import NAMES, draw_boxes

MARKERS = ("o", "s", "D", "^", "v")


def boxed_patches(
    images: Sequence[NDArray[np.uint8]], tables: Sequence[pd.DataFrame], titles: Sequence[str], title: str
) -> Figure:
    """Patches [S, S] in a row, each with the boxes of its table (x1, y1, x2, y2, class) coloured by class."""
    figure, axes = plt.subplots(1, len(images), figsize=(2.3 * len(images), 2.9), squeeze=False)
    for panel, image, table, name in zip(axes[0], images, tables, titles, strict=True):
        panel.imshow(image, vmin=0, vmax=255)
        draw_boxes(panel, table[["x1", "y1", "x2", "y2"]].to_numpy(), table["class"].tolist())
        panel.set(title=name, xlim=(-0.5, image.shape[1] - 0.5), ylim=(image.shape[0] - 0.5, -0.5))
        panel.set_axis_off()
    figure.suptitle(title, fontsize=9)
    return figure


def scores_by(table: pd.DataFrame, condition: str, measures: Sequence[str], title: str) -> Figure:
    """Scores of every run as a dot and their mean as a line, a panel per measure, arms in their colours.

    Panels stand side by side, or above each other where there are many places.

    Parameters
    ----------
    condition : column of `table` that gives the places along x, in the order of first appearance
    """
    places, names = (list(dict.fromkeys(table[column])) for column in (condition, "arm"))
    width = 0.9 + 0.75 * len(places)
    if len(places) > 4:  # wider than a page, side by side
        grid, size = (len(measures), 1), (1.4 + width, 0.6 + 2.6 * len(measures))
    else:
        grid, size = (1, len(measures)), (1.4 + len(measures) * width, 3.2)
    figure, axes = plt.subplots(*grid, squeeze=False, sharey=True, figsize=size)
    for panel, measure in zip(axes.flat, measures, strict=True):
        for k, name in enumerate(names):
            x0 = (k - (len(names) - 1) / 2) * 0.16
            for x, place in enumerate(places):
                values = table.loc[(table[condition] == place) & (table["arm"] == name), measure].dropna()
                style = {"color": ARM_COLORS[name], "marker": ARM_MARKERS[name]}
                panel.plot(np.full(len(values), x + x0), values, ls="", ms=4, **style, label=name if x == 0 else None)
                if len(values):
                    panel.hlines(values.mean(), x + x0 - 0.07, x + x0 + 0.07, color=ARM_COLORS[name], lw=2)
        panel.set_xticks(range(len(places)), [str(place).replace(", ", ",\n") for place in places], fontsize=8)
        panel.set(title=NAMES.get(measure, measure), ylim=(-0.02, 1.02), xlim=(-0.5, len(places) - 0.5))
    for panel in axes[:, 0]:
        panel.set_ylabel("score against the truth")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=max(1, len(names)))
    figure.suptitle(title, fontsize=9)
    return figure


def differences(table: pd.DataFrame, condition: str, measures: Sequence[str], title: str, xlabel: str) -> Figure:
    """Paired differences with their intervals (columns `condition`, quantity, measure, mean, low, high)."""
    places, quantities = (list(dict.fromkeys(table[column])) for column in (condition, "quantity"))
    figure, axes = plt.subplots(
        1, len(measures), squeeze=False, sharey=True,
        figsize=(2.2 + 2.3 * len(measures), 1.5 + 0.32 * len(places) * len(quantities)),
    )  # fmt: skip
    for panel, measure in zip(axes[0], measures, strict=True):
        for k, quantity in enumerate(quantities):
            own = table[(table["quantity"] == quantity) & (table["measure"] == measure)].set_index(condition)
            own = own.reindex(places)
            y = np.arange(len(places)) + (k - (len(quantities) - 1) / 2) * 0.22
            error = np.nan_to_num(np.abs(np.stack([own["mean"] - own["low"], own["high"] - own["mean"]])))
            panel.errorbar(own["mean"], y, xerr=error, fmt=MARKERS[k], color=CLASS_COLORS[k], capsize=3, ms=4,
                           label=quantity)  # fmt: skip
        panel.axvline(0, color="black", lw=0.8)
        panel.set(title=NAMES.get(measure, measure), xlabel=xlabel, ylim=(len(places) - 0.5, -0.5))
    axes[0][0].set_yticks(range(len(places)), [str(place) for place in places])
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=len(quantities))
    figure.suptitle(title, fontsize=9)
    return figure

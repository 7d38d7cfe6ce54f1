"""Figures of the studies beyond the paper: patches with boxes, scores by condition, differences with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from companion.config.arms import ARMS
from companion.evaluation.plots import NAMES, draw_boxes
from companion.plots import CLASS_COLORS

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
    """Scores of every detector against the truth, a panel per measure, arms in their colours and markers.

    Parameters
    ----------
    condition : column of `table` that gives the places along x, in the order of first appearance
    """
    arms, places = list(dict.fromkeys(table["arm"])), table[condition].nunique()
    figure, axes = plt.subplots(
        1, len(measures), squeeze=False, sharey=True, figsize=(1.5 + len(measures) * (0.8 + 0.75 * places), 3.4)
    )
    for panel, measure in zip(axes[0], measures, strict=True):
        sns.pointplot(
            table, x=condition, y=measure, hue="arm", hue_order=arms, palette=[ARMS[arm].colour for arm in arms],
            markers=[ARMS[arm].marker for arm in arms], linestyles="none", errorbar=("pi", 100), dodge=0.3, ax=panel,
        )  # fmt: skip
        panel.set(title=NAMES.get(measure, measure), ylim=(-0.02, 1.02), xlabel="", ylabel="score against the truth")
        panel.tick_params(axis="x", labelrotation=20)
    _one_legend(figure, list(axes[0]))
    figure.suptitle(f"{title}\nmean over seeds, lines from the lowest to the highest", fontsize=9)
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
            own = table[(table["quantity"] == quantity) & (table["measure"] == measure)]
            own = own.set_index(condition).reindex(places)
            y = np.arange(len(places)) + (k - (len(quantities) - 1) / 2) * 0.22
            panel.errorbar(own["mean"], y, xerr=_around(own, "mean"), fmt=MARKERS[k], color=CLASS_COLORS[k], capsize=3,
                           ms=4, label=quantity)  # fmt: skip
        panel.axvline(0, color="black", lw=0.8)
        panel.set(title=NAMES.get(measure, measure), xlabel=xlabel, ylim=(len(places) - 0.5, -0.5))
    axes[0][0].set_yticks(range(len(places)), [str(place) for place in places])
    _one_legend(figure, list(axes[0]))
    figure.suptitle(title, fontsize=9)
    return figure


def faithfulness(tables: Mapping[str, pd.DataFrame], note: str) -> Figure:
    """Recall with intervals (above) and class agreement (below) of a detector, per set of images.

    Parameters
    ----------
    tables : grouping -> columns images, group, recall, low, high, agreement
    """
    widths = [max(2, table["group"].nunique()) for table in tables.values()]
    figure, axes = plt.subplots(
        2, len(tables), figsize=(2 + 1.5 * sum(widths), 4.4), sharey="row", sharex="col", width_ratios=widths,
        squeeze=False,
    )  # fmt: skip
    for (above, below), (title, table) in zip(axes.T, tables.items(), strict=True):
        groups, names = list(dict.fromkeys(map(str, table["group"]))), list(dict.fromkeys(table["images"]))
        for k, name in enumerate(names):
            rows = table[table["images"] == name].assign(group=table["group"].astype(str)).set_index("group")
            rows, style = rows.reindex(groups), {"color": CLASS_COLORS[k], "ms": 5}
            x = np.arange(len(groups)) + (k - (len(names) - 1) / 2) * 0.8 / len(names)
            above.errorbar(x, rows["recall"], _around(rows, "recall"), fmt=MARKERS[k], capsize=2, label=name, **style)
            below.plot(x, rows["agreement"], MARKERS[k], **style)
        below.set_xticks(range(len(groups)), [group.replace(" (", "\n(") for group in groups])
        above.set(title=title, ylim=(-0.02, 1.02), xlim=(-0.5, len(groups) - 0.5))
        below.set_ylim(-0.02, 1.02)
    axes[0][0].set_ylabel("share found")
    axes[1][0].set_ylabel("of these, under\ntheir class")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.suptitle(f"What a detector of real images finds ({note})", fontsize=10)
    return figure


def _around(rows: pd.DataFrame, column: str) -> NDArray[np.float64]:
    """Lengths [2, n] of error bars from the columns low and high; 0 where they are undefined."""
    return np.clip(np.nan_to_num(np.stack([rows[column] - rows["low"], rows["high"] - rows[column]])), 0, None)


def _one_legend(figure: Figure, panels: Sequence[Axes]) -> None:
    handles, labels = panels[0].get_legend_handles_labels()
    for panel in panels:
        if panel.get_legend() is not None:
            panel.get_legend().remove()
    figure.legend(handles, labels, loc="outside lower center", ncols=max(1, len(labels)))

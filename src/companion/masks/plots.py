"""Figures of notebooks 02 and 03: label maps, curves with intervals, and samplers compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from companion.plots import CLASS_COLORS

SAMPLER_COLORS = {"real": "#000000", "authors": "#D55E00", "companion": "#0072B2", "learned": "#009E73"}
DASHES, MARKERS = ("-", "--", "-.", ":"), "os^Dv*P"


def label_maps(rows: Mapping[str, NDArray[np.uint8]], classes: Sequence[str], title: str) -> Figure:
    """Label maps in labelled rows.

    Parameters
    ----------
    rows : name of the row -> class codes uint8 [n, S, S]
    classes : names of the classes 1, 2, ...
    """
    columns = max(len(maps) for maps in rows.values())
    figure, axes = plt.subplots(len(rows), columns, figsize=(1.25 * columns, 1.35 * len(rows) + 0.7), squeeze=False)
    colors = ListedColormap(["#F2F2F2", *(CLASS_COLORS[k % len(CLASS_COLORS)] for k in range(len(classes)))])
    for line, (name, maps) in zip(axes, rows.items(), strict=True):
        for k, axis in enumerate(line):
            axis.set(xticks=[], yticks=[], visible=k < len(maps))
            axis.grid(False)
            axis.spines[:].set_visible(True)
        for axis, label_map in zip(line, maps, strict=False):
            axis.imshow(label_map, cmap=colors, vmin=0, vmax=len(classes), interpolation="nearest")
        line[0].set_ylabel(name)
    handles = [Patch(color=colors.colors[k], label=name) for k, name in enumerate(classes, start=1)]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(classes))
    figure.suptitle(title, fontsize=9)
    return figure


def curves(
    panels: Mapping[str, Mapping[str, pd.DataFrame]],
    title: str,
    y: str = "share ≤",
    colors: Mapping[str, str] | None = None,
) -> Figure:
    """Curves with intervals, side by side.

    Parameters
    ----------
    panels : label of the x axis -> name of the line -> see `statistics.share_curve` (a line with its interval) or
        `spatial.pair_correlation` (points)
    y : label of the y axes of shares
    colors : by name of the line; those of samplers are known
    """
    figure, axes = plt.subplots(1, len(panels), figsize=(2.7 * len(panels) + 0.6, 3.0), squeeze=False)
    colors = {**SAMPLER_COLORS, **(colors or {})}
    for axis, (label, lines) in zip(axes.flat, panels.items(), strict=True):
        for k, (name, table) in enumerate(lines.items()):
            style = {"color": colors.get(name, CLASS_COLORS[(k + 3) % len(CLASS_COLORS)]), "label": name}
            style["linestyle"] = DASHES[k % len(DASHES)]
            if "g" in table:
                axis.plot(table["r_px"], table["g"], marker=MARKERS[k % len(MARKERS)], markersize=3, **style)
                axis.axhline(1, color="0.6", linewidth=0.8, zorder=0)
            else:
                axis.fill_between(table["value"], table["low"], table["high"], alpha=0.2, lw=0, color=style["color"])
                axis.plot(table["value"], table["share"], **style)
        axis.set(xlabel=label, ylabel="pair correlation g(r)" if "g" in table else y, ylim=(0, None))
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.suptitle(title, fontsize=9)
    return figure


def directions(statistics: pd.DataFrame, classes: Sequence[str], title: str) -> Figure:
    """Angle of every uncut instance, a column of points per micrograph; `statistics`: see `statistics.measure`."""
    whole = statistics[~statistics["touches_border"]]
    names = dict(enumerate(classes, start=1))
    table = whole.assign(micrograph=pd.factorize(statistics["image"])[0][whole.index], label=whole["class"].map(names))
    figure, axis = plt.subplots(figsize=(6, 2.8))
    sns.scatterplot(
        table, x="micrograph", y="angle_deg", hue="label", style="label", hue_order=classes, style_order=classes,
        palette=list(CLASS_COLORS[: len(classes)]), markers=list(MARKERS[: len(classes)]), s=14, alpha=0.7, ax=axis,
    )  # fmt: skip
    axis.set(ylabel="angle [°]", ylim=(0, 180), yticks=range(0, 181, 45), title=title)
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def comparison(compared: pd.DataFrame, title: str) -> Figure:
    """How well a classifier tells each sampler's masks from real ones (left) and how alike their loops point (right).

    Parameters
    ----------
    compared : see `compare.compare`
    """
    figure, axes = plt.subplots(1, 2, figsize=(7.5, 0.27 * len(compared) + 1.0), sharey=True)
    labels = {"auc": "AUC, simulated against real masks", "coherence": "coherence of directions"}
    for axis, (column, label), marker, middle in zip(axes, labels.items(), "os", (0.5, 0.0), strict=True):
        axis.axvline(middle, color="0.3", linewidth=0.8)
        sns.scatterplot(compared, x=column, y="sampler", marker=marker, color=SAMPLER_COLORS["companion"], ax=axis)
        axis.set(xlabel=label, ylabel="")
    figure.suptitle(title, fontsize=9)
    return figure

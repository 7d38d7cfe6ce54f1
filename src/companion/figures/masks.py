"""Figures of notebooks 02 and 03: label maps, and distributions of real and simulated defects."""

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

from companion.figures import CLASS_COLORS

SOURCE_COLORS = {"real": "#000000", "simulated": "#D55E00"}


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
        for axis in line:
            axis.set(xticks=[], yticks=[])
            axis.grid(False)
            axis.spines[:].set_visible(True)
        for axis, label_map in zip(line, maps, strict=False):
            axis.imshow(label_map, cmap=colors, vmin=0, vmax=len(classes), interpolation="nearest")
        line[0].set_ylabel(name)
    handles = [Patch(color=colors.colors[k], label=name) for k, name in enumerate(classes, start=1)]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(classes))
    figure.suptitle(title, fontsize=9)
    return figure


def sizes_and_angles(statistics: pd.DataFrame, classes: Sequence[str], title: str) -> Figure:
    """Per class: histograms of the major axis in nm and of the aspect ratio, and the angles of one image after another.

    Parameters
    ----------
    statistics : see `masks.statistics.measure`; instances cut by the border are left out
    """
    whole = statistics[~statistics["touches_border"]]
    figure, axes = plt.subplots(1, 3, figsize=(9, 2.9), width_ratios=[1, 1, 1.2])
    for code, name in enumerate(classes, start=1):
        rows, color = whole[whole["class"] == code], CLASS_COLORS[(code - 1) % len(CLASS_COLORS)]
        style = {"histtype": "step", "color": color, "linewidth": 1.6, "density": True, "label": name}
        axes[0].hist(rows["major_px"] * rows["pixel_size_nm"], bins=np.linspace(0, 60, 31), **style)
        axes[1].hist(rows["major_px"] / rows["minor_px"], bins=np.linspace(1, 5, 29), **style)
        images = pd.Categorical(rows["image"], categories=statistics["image"].unique())
        axes[2].plot(images.codes, rows["angle_deg"], ".", color=color, markersize=3, alpha=0.6)
    axes[0].set(xlabel="major axis [nm]", ylabel="density")
    axes[1].set(xlabel="aspect ratio, major / minor")
    axes[2].set(xlabel="micrograph", ylabel="angle [°]", ylim=(0, 180), yticks=range(0, 181, 45))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(classes))
    figure.suptitle(title, fontsize=9)
    return figure


def counts_per_patch(counts: pd.DataFrame, classes: Sequence[str], title: str) -> Figure:
    """How many patches hold 0, 1, 2, ... instances: of all classes (bars) and of each (markers)."""
    figure, axis = plt.subplots(figsize=(6, 2.8))
    total = counts.groupby("patch")["count"].sum()
    bins = np.arange(int(total.max()) + 1)
    axis.bar(bins, np.bincount(total, minlength=len(bins)), color="0.85", label="all classes")
    for code, (name, marker) in enumerate(zip(classes, "os^Dv*P" * len(classes), strict=False), start=1):
        number = np.bincount(counts.loc[counts["class"] == code, "count"], minlength=len(bins))
        color = CLASS_COLORS[(code - 1) % len(CLASS_COLORS)]
        axis.plot(bins, number, marker=marker, color=color, linewidth=0.8, markersize=4, label=name)
    axis.set(xlabel="instances per patch", ylabel="patches")
    axis.legend()
    axis.set_title(title)
    return figure


def distributions(sources: Mapping[str, pd.DataFrame], classes: Sequence[str], title: str) -> Figure:
    """Cumulative distributions of size, aspect and angle, a row per class, sources as lines.

    Parameters
    ----------
    sources : "real", "simulated", ... -> statistics (see `masks.statistics.measure`)
    """
    measures = {
        "major axis [px]": lambda t: t["major_px"],
        "aspect ratio": lambda t: t["major_px"] / t["minor_px"],
        "angle [°]": lambda t: t["angle_deg"],
    }
    palette = {name: SOURCE_COLORS.get(name, CLASS_COLORS[k]) for k, name in enumerate(sources)}
    figure, axes = plt.subplots(
        len(classes), len(measures), figsize=(8, 1.6 * len(classes) + 0.9), sharex="col", sharey=True, squeeze=False
    )
    for code, line in enumerate(axes, start=1):
        for axis, (label, value) in zip(line, measures.items(), strict=True):
            for dashes, (name, table) in zip(["-", "--", ":", "-."] * len(sources), sources.items(), strict=False):
                values = value(table[table["class"] == code])
                if len(values):
                    sns.ecdfplot(values, ax=axis, label=name, color=palette[name], linestyle=dashes)
            axis.set(xlabel=label if code == len(classes) else "", ylabel="")
        line[0].set_ylabel(f"{classes[code - 1]}\nshare ≤")
    axes[-1, 1].set_xlim(1, 6)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(sources))
    figure.suptitle(title, fontsize=9)
    return figure

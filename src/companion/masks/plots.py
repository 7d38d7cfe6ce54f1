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

from companion.plots import CLASS_COLORS

SOURCE_COLORS = {
    "real": "#000000",
    "simulated": "#D55E00",
    "authors": "#D55E00",
    "companion": "#0072B2",
    "learned": "#009E73",
}
LINES, MARKERS = ("-", "--", "-.", ":"), "os^Dv*P"


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


def sizes_and_angles(
    bands: Mapping[str, Mapping[str, pd.DataFrame]], statistics: pd.DataFrame, classes: Sequence[str], title: str
) -> Figure:
    """Cumulative distributions with bootstrap bands, and the angles of one micrograph after another.

    Parameters
    ----------
    bands : label of the x axis -> class name -> see `masks.bands.distribution_band`; two of them
    statistics : see `masks.statistics.measure`; angles of instances cut by the border are left out
    """
    figure, axes = plt.subplots(1, 3, figsize=(9, 3), width_ratios=[1, 1, 1.2])
    for axis, (label, curves) in zip(axes, bands.items(), strict=False):
        for k, name in enumerate(classes):
            curve, color = curves[name], CLASS_COLORS[k % len(CLASS_COLORS)]
            axis.fill_between(curve["value"], curve["low"], curve["high"], color=color, alpha=0.25, linewidth=0)
            axis.plot(curve["value"], curve["share"], color=color, linestyle=LINES[k % len(LINES)], label=name)
        axis.set(xlabel=label, ylim=(0, 1))
    axes[0].set_ylabel("share ≤")
    whole = statistics[~statistics["touches_border"]]
    images = pd.Categorical(whole["image"], categories=statistics["image"].unique()).codes
    for code in range(1, len(classes) + 1):
        some, color = (whole["class"] == code).to_numpy(), CLASS_COLORS[(code - 1) % len(CLASS_COLORS)]
        marker = MARKERS[(code - 1) % len(MARKERS)]
        axes[2].plot(images[some], whole["angle_deg"][some], marker, color=color, markersize=3, alpha=0.6)
    axes[2].set(xlabel="micrograph", ylabel="angle [°]", ylim=(0, 180), yticks=range(0, 181, 45))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(classes))
    figure.suptitle(title, fontsize=9)
    return figure


def counts_per_patch(bands: Mapping[str, pd.DataFrame], title: str) -> Figure:
    """Share of the patches that hold 0, 1, 2, ... instances, with bands.

    Parameters
    ----------
    bands : "all classes" (bars), then each class (markers) -> see `masks.bands.count_band`
    """
    figure, axis = plt.subplots(figsize=(6, 2.8))
    (name, every), *classes = bands.items()
    axis.bar(every["value"], every["share"], color="0.85", label=name)
    axis.errorbar(every["value"], every["share"], _bars(every), fmt="none", ecolor="0.4", linewidth=1)
    for k, (name, band) in enumerate(classes):
        color, marker = CLASS_COLORS[k % len(CLASS_COLORS)], MARKERS[k % len(MARKERS)]
        axis.fill_between(band["value"], band["low"], band["high"], color=color, alpha=0.2, linewidth=0)
        axis.plot(band["value"], band["share"], marker=marker, color=color, linewidth=0.8, markersize=4, label=name)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set(xlabel="instances per patch", ylabel="share of patches")
    axis.legend()
    axis.set_title(title)
    return figure


def _bars(band: pd.DataFrame) -> NDArray[np.float64]:
    """Lengths of error bars [2, M]: a percentile may lie beyond the share itself."""
    return np.clip([band["share"] - band["low"], band["high"] - band["share"]], 0, None)


def by_magnification(bands: Mapping[str, Mapping[str, pd.DataFrame]], correlation: pd.DataFrame, title: str) -> Figure:
    """Neighbours and directions for every pixel size, with bands, and the pair correlation of all patches.

    Parameters
    ----------
    bands : label of the x axis -> "0.88 nm/px", ... -> table with value, share, low, high; three of them
    correlation : see `masks.spatial.pair_correlation`
    """
    figure, axes = plt.subplots(2, 2, figsize=(7.5, 5.2))
    for axis, (label, curves) in zip(axes.flat, bands.items(), strict=False):
        for k, (name, band) in enumerate(curves.items()):
            color = CLASS_COLORS[(k + 3) % len(CLASS_COLORS)]  # not those of the classes
            axis.fill_between(band["value"], band["low"], band["high"], color=color, alpha=0.2, linewidth=0)
            axis.plot(band["value"], band["share"], color=color, linestyle=LINES[k % len(LINES)], label=name)
        axis.set(xlabel=label, ylabel="share ≤", ylim=(0, 1))
    last = axes[1, 1]
    last.plot(correlation["r_px"], correlation["g"], "ko-", markersize=3)
    last.axhline(1, color="0.6", linewidth=0.8)
    last.set(xlabel="distance r [px]", ylabel="pair correlation g(r)", ylim=(0, None))
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.suptitle(title, fontsize=9)
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
    palette = _colors(sources)
    figure, axes = plt.subplots(
        len(classes), len(measures), figsize=(8, 1.6 * len(classes) + 0.9), sharex="col", sharey=True, squeeze=False
    )
    for code, line in enumerate(axes, start=1):
        for axis, (label, value) in zip(line, measures.items(), strict=True):
            for dashes, (name, table) in zip(LINES * len(sources), sources.items(), strict=False):
                values = value(table[table["class"] == code])
                if len(values):
                    sns.ecdfplot(values, ax=axis, label=name, color=palette[name], linestyle=dashes)
            axis.set(xlabel=label if code == len(classes) else "", ylabel="")
        line[0].set_ylabel(f"{classes[code - 1]}\nshare ≤")
    axes[-1, 1].set_xlim(1, 6)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(sources))
    figure.suptitle(title, fontsize=9)
    return figure


def neighbourhoods(nearest: Mapping[str, pd.DataFrame], correlations: Mapping[str, pd.DataFrame], title: str) -> Figure:
    """Where defects lie relative to each other.

    Parameters
    ----------
    nearest : source -> see `masks.bands.nearest_band`
    correlations : source -> see `masks.spatial.pair_correlation`
    """
    figure, axes = plt.subplots(1, 2, figsize=(7.5, 2.9))
    palette = _colors(nearest)
    for line, marker, (name, band) in zip(LINES * 3, MARKERS * 3, nearest.items(), strict=False):
        axes[0].fill_between(band["value"], band["low"], band["high"], color=palette[name], alpha=0.15, linewidth=0)
        axes[0].plot(band["value"], band["share"], label=name, color=palette[name], linestyle=line)
        g = correlations[name]
        axes[1].plot(g["r_px"], g["g"], color=palette[name], linestyle=line, marker=marker, markersize=3)
    axes[0].set(xlabel="distance to the nearest defect [px]", ylabel="share ≤", ylim=(0, 1))
    axes[1].axhline(1, color="0.6", linewidth=0.8)
    axes[1].set(xlabel="distance r [px]", ylabel="pair correlation g(r)", ylim=(0, None))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(nearest))
    figure.suptitle(title, fontsize=9)
    return figure


def verdict(judged: pd.DataFrame, title: str) -> Figure:
    """How well a classifier tells each sampler's masks from real ones (left) and how alike their loops point (right).

    Parameters
    ----------
    judged : see `masks.judge.judge`
    """
    figure, axes = plt.subplots(1, 2, figsize=(7.5, 0.27 * len(judged) + 1.0), sharey=True)
    rows = np.arange(len(judged))[::-1]
    axes[0].hlines(rows, judged["auc_low"], judged["auc_high"], color=SOURCE_COLORS["companion"], linewidth=1.5)
    axes[0].plot(judged["auc"], rows, "o", color=SOURCE_COLORS["companion"], markersize=4)
    axes[0].axvline(0.5, color="0.3", linewidth=0.8)
    axes[0].set(xlabel="AUC, simulated against real masks", yticks=rows, yticklabels=judged["sampler"])
    axes[1].plot(judged["coherence"], rows, "s", color=SOURCE_COLORS["simulated"], markersize=4)
    axes[1].axvline(0, color="0.6", linewidth=0.8)
    axes[1].set(xlabel="coherence of directions")
    figure.suptitle(title, fontsize=9)
    return figure


def _colors(sources: Mapping[str, object]) -> dict[str, str]:
    return {name: SOURCE_COLORS.get(name, CLASS_COLORS[k % len(CLASS_COLORS)]) for k, name in enumerate(sources)}

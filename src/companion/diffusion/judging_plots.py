"""Figures of notebooks 05 and 13 that judge generated images: against yardsticks, against time, against a detector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from companion.diffusion.measures import LAGS, PROFILE_PX

# Real images are black or blue; what a network drew is red.
STYLES = {
    "real, training": ("#0072B2", "-", "o"), "real, held out": ("#000000", "--", "s"),
    "generated": ("#D55E00", "-", "D"), "generated, as decoded": ("#CC79A7", ":", "v"),
    "phantom, same masks": ("#009E73", "-.", "^"), "real, encoded and decoded": ("#E69F00", "-", "P"),
}  # fmt: skip
Totals = tuple[NDArray[np.float64], NDArray[np.float64]]


def texture(
    frequency: NDArray[np.float64],
    power: Mapping[str, NDArray],
    histogram: Mapping[str, NDArray],
    correlation: Mapping[str, NDArray],
    note: str,
) -> Figure:
    """Mean radial power spectrum, grey-level histogram and autocorrelation of the noise, per set of patches.

    Parameters
    ----------
    frequency : [R] cycles per px
    power, histogram, correlation : [P, R], [P, 256] and [P, 2 * LAGS] per set; names of `STYLES`
    """
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(9.6, 2.9))
    for name in power:
        color, style, _ = STYLES[name]
        left.plot(frequency, power[name].mean(axis=0), style, color=color, label=name, lw=1.4)
        middle.plot(histogram[name].mean(axis=0), style, color=color, lw=1.4)
        means = np.nanmean(correlation[name], axis=0)
        right.plot(range(1, LAGS + 1), (means[:LAGS] + means[LAGS:]) / 2, style, color=color, lw=1.4)
    left.set(xscale="log", yscale="log", xlabel="spatial frequency [1/px]", ylabel="power [grey levels²]")
    middle.set(xlabel="grey level", ylabel="share of pixels")
    right.set(xlabel="distance [px]", ylabel="autocorrelation of the noise")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=len(power))
    figure.suptitle(f"Texture, grey levels and noise ({note})", fontsize=10)
    return figure


def profiles(sets: Mapping[str, Totals], classes: Sequence[str], note: str) -> Figure:
    """Grey level across the outlines of defects (see `measures.contrast_profiles`), one panel per class."""
    figure, panels = plt.subplots(1, len(classes), figsize=(1 + 2.6 * len(classes), 2.8), sharey=True, squeeze=False)
    distance = np.arange(-PROFILE_PX, PROFILE_PX) + 0.5
    for name, (total, count) in sets.items():
        color, style, _ = STYLES[name]
        for code, panel in enumerate(panels[0]):
            sums, pixels = total[:, code].sum(axis=0), count[:, code].sum(axis=0)
            panel.plot(distance, np.where(pixels > 0, sums / np.maximum(pixels, 1), np.nan), style, color=color,
                       label=name, lw=1.4)  # fmt: skip
    for panel, title in zip(panels[0], classes, strict=True):
        panel.axvline(0, color="0.7", lw=0.8)
        panel.set(title=title, xlabel="distance from the outline [px]")
    panels[0][0].set_ylabel("grey level / surroundings")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(sets))
    figure.suptitle(f"Across the outline, inside to the left ({note})", fontsize=10)
    return figure


def settings(study: pd.DataFrame, held_contrast: float, note: str) -> Figure:
    """Quality against seconds per image, one line per sampler, numbers of steps at its points.

    Parameters
    ----------
    study : see `companion.diffusion.speed.settings_study`
    held_contrast : of held-out real defects, where a perfect setting ends
    """
    panels = {
        "spectrum": "spectrum from held-out [decades]", "distance": "features from held-out [KID]",
        "contrast": "contrast of defects",
    }  # fmt: skip
    figure, axes = plt.subplots(1, 3, figsize=(9, 2.8))
    looks = {"ddim": ("#0072B2", "o-"), "dpm-solver++": ("#D55E00", "s--"), "unipc": ("#009E73", "^-.")}
    for axis, (column, label) in zip(axes, panels.items(), strict=True):
        for sampler, rows in study.groupby("sampler"):
            color, style = looks[sampler]
            axis.plot(rows["seconds"], rows[column], style, color=color, label=sampler, ms=4, lw=1.2)
            for row in rows.itertuples():
                axis.annotate(str(row.steps), (row.seconds, getattr(row, column)), fontsize=7, xytext=(3, 3),
                              textcoords="offset points")  # fmt: skip
        axis.set(xscale="log", xlabel="seconds per image", ylabel=label)
    axes[-1].axhline(held_contrast, color="0.3", lw=0.8, ls=":")
    axes[0].legend()
    figure.suptitle(f"Steps, seconds and quality ({note})", fontsize=10)
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
            color, _, marker = STYLES[name]
            rows = table[table["images"] == name].assign(group=lambda t: t["group"].astype(str))
            rows = rows.set_index("group").reindex(groups)
            x = np.arange(len(groups)) + (k - (len(names) - 1) / 2) * 0.8 / len(names)
            error = np.clip(
                np.nan_to_num(np.stack([rows["recall"] - rows["low"], rows["high"] - rows["recall"]])), 0, 1
            )
            above.errorbar(x, rows["recall"], error, fmt=marker, color=color, capsize=2, ms=5, label=name)
            below.plot(x, rows["agreement"], marker, color=color, ms=5)
        below.set_xticks(range(len(groups)), [group.replace(" (", "\n(") for group in groups])
        above.set(title=title, ylim=(-0.02, 1.02), xlim=(-0.5, len(groups) - 0.5))
        below.set_ylim(-0.02, 1.02)
    axes[0][0].set_ylabel("share found")
    axes[1][0].set_ylabel("of these, under\ntheir class")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.suptitle(f"What a detector of real images finds ({note})", fontsize=10)
    return figure

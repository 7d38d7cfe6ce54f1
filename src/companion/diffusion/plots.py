"""Figures of notebooks 04 and 05: training, and generated images measured beside labelled ones."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from companion.diffusion import measures
from companion.micrographs.patches import Patches

# Labelled images are black or blue; what a network drew is red.
COLORS = {
    "labelled, training": "#0072B2", "labelled, held out": "#000000", "generated": "#D55E00",
    "generated, as decoded": "#CC79A7", "phantom, same masks": "#009E73", "labelled, encoded and decoded": "#E69F00",
}  # fmt: skip


def losses(log: pd.DataFrame, note: str) -> Figure:
    """Training losses against steps, one panel per network; `log`: network, step, and a column per loss (or NaN)."""
    tidy = log.melt(["network", "step"], var_name="loss").dropna()
    tidy["step"] -= tidy["step"] % max(1, tidy["step"].max() // 60)  # a point is the mean of as many steps
    networks = tidy.groupby("network")
    figure, axes = plt.subplots(1, len(networks), figsize=(1.2 + 3.3 * len(networks), 2.6), squeeze=False)
    for axis, (network, rows) in zip(axes[0], networks, strict=True):
        sns.lineplot(rows, x="step", y="value", hue="loss", errorbar=None, ax=axis)
        axis.set(title=network, xlabel="optimiser step", ylabel="loss", yscale="log")
    figure.suptitle(f"Training losses ({note})", fontsize=10)
    return figure


def texture(sets: Mapping[str, Patches], note: str) -> Figure:
    """Mean radial power spectrum and grey-level histogram, per set of `COLORS`."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.5, 2.9))
    for name, patches in sets.items():
        frequency, power = measures.power_spectra(patches.images)
        left.plot(frequency, power.mean(axis=0), color=COLORS[name], label=name)
        right.plot(measures.histograms(patches.images).mean(axis=0), color=COLORS[name])
    left.set(xscale="log", yscale="log", xlabel="spatial frequency [1/px]", ylabel="power [grey levels²]")
    right.set(xlabel="grey level", ylabel="share of pixels")
    figure.legend(loc="outside lower center", ncols=3)
    figure.suptitle(f"Texture and grey levels ({note})", fontsize=10)
    return figure


def profiles(sets: Mapping[str, Patches], note: str) -> Figure:
    """Grey level across the outlines of defects (see `measures.across_outlines`), one panel per class."""
    classes = next(iter(sets.values())).classes
    figure, panels = plt.subplots(1, len(classes), figsize=(3 + 2 * len(classes), 3), sharey=True, squeeze=False)
    for name, patches in sets.items():
        total, count = (part.sum(axis=0) for part in measures.across_outlines(patches)[1:])  # (K, 2 * PROFILE_PX)
        distance = np.arange(2 * measures.PROFILE_PX) - measures.PROFILE_PX + 0.5
        for panel, title, level in zip(panels[0], classes, total / np.where(count > 0, count, np.nan), strict=True):
            panel.plot(distance, level, color=COLORS[name], label=name)
            panel.set(title=title, xlabel="distance from the outline [px]")
    for panel in panels[0]:
        panel.axvline(0, color="0.7", lw=0.8)
    panels[0][0].set_ylabel("grey level / surroundings")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.suptitle(f"Across the outline, inside to the left ({note})", fontsize=10)
    return figure

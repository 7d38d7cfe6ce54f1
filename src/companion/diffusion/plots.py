"""Figures of notebooks 04 and 05: training, and generated images measured beside real ones."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from companion.diffusion import measures
from companion.micrographs.patches import Patches

# Real images are black or blue; what a network drew is red.
COLORS = {
    "real, training": "#0072B2", "real, held out": "#000000", "generated": "#D55E00",
    "generated, as decoded": "#CC79A7", "phantom, same masks": "#009E73", "real, encoded and decoded": "#E69F00",
}  # fmt: skip


def losses(log: pd.DataFrame, note: str) -> Figure:
    """Training losses against steps, one panel per network; `log`: network, step, and a column per loss (or NaN)."""
    tidy = log.melt(["network", "step"], var_name="loss").dropna()
    tidy["step"] -= tidy["step"] % max(1, tidy["step"].max() // 60)  # a point is the mean of as many steps
    grid = sns.relplot(tidy, x="step", y="value", hue="loss", col="network", kind="line", errorbar=None,
                       height=2.6, aspect=1.4, facet_kws={"sharex": False, "sharey": False})  # fmt: skip
    grid.set(xlabel="optimiser step", ylabel="loss", yscale="log")
    grid.figure.suptitle(f"Training losses ({note})", fontsize=10)
    return grid.figure


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
    tables = []
    for name, patches in sets.items():
        _, total, count = measures.across_outlines(patches)
        mean = total.sum(axis=0) / np.where(count.sum(axis=0) > 0, count.sum(axis=0), np.nan)  # (K, 2 * PROFILE_PX)
        distance = np.arange(mean.shape[1]) - measures.PROFILE_PX + 0.5
        tables.append(pd.DataFrame(mean.T, distance, patches.classes).stack().rename("level").reset_index())
        tables[-1]["images"] = name
    tidy = pd.concat(tables, ignore_index=True).set_axis(["distance", "class", "level", "images"], axis=1)
    grid = sns.relplot(tidy, x="distance", y="level", hue="images", col="class", kind="line", palette=COLORS,
                       height=2.8, aspect=0.9)  # fmt: skip
    grid.refline(x=0, color="0.7").set_titles("{col_name}")
    grid.set_axis_labels("distance from the outline [px]", "grey level / surroundings")
    grid.figure.suptitle(f"Across the outline, inside to the left ({note})", fontsize=10)
    return grid.figure

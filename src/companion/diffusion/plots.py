"""Figures of notebooks 04 and 05: training, rows of patches, and generated images measured beside real ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from companion.diffusion import measures
from companion.micrographs.patches import Patches
from companion.plots import CLASS_COLORS

# Real images are black or blue; what a network drew is red.
COLORS = {
    "real, training": "#0072B2", "real, held out": "#000000", "generated": "#D55E00",
    "generated, as decoded": "#CC79A7", "phantom, same masks": "#009E73", "real, encoded and decoded": "#E69F00",
}  # fmt: skip


def color_mask(label_maps: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Class codes [..., S, S] as colours [..., S, S, 3]; the background is white."""
    codes = np.asarray(label_maps).astype(int)
    palette = np.array([(1.0, 1.0, 1.0), *map(to_rgb, CLASS_COLORS)])
    return palette[np.where(codes == 0, 0, (codes - 1) % len(CLASS_COLORS) + 1)]


def image_rows(
    rows: Mapping[str, NDArray], title: str, titles: Sequence[str] = (), classes: Sequence[str] = ()
) -> Figure:
    """Rows of images by name, each [n, S, S] grey levels or [n, S, S, 3] colours.

    Parameters
    ----------
    titles : over the columns
    classes : names of the classes, for a legend of `color_mask`'s colours
    """
    columns = max(map(len, rows.values()))
    figure, axes = plt.subplots(
        len(rows), columns, figsize=(1.2 * columns + 0.4, 1.2 * len(rows) + 0.5 + 0.2 * bool(classes)), squeeze=False
    )
    for line, (label, images) in zip(axes, rows.items(), strict=True):
        line[0].set_ylabel(label)
        for axis, image in zip(line, images, strict=False):
            axis.imshow(image, vmin=0, vmax=255)
            axis.set(xticks=[], yticks=[])
            axis.grid(False)
            axis.spines[:].set(visible=True, color="0.6", linewidth=0.5)
    for axis, text in zip(axes[0], titles, strict=False):
        axis.set_title(text, fontsize=7)
    if classes:
        handles = [Patch(color=CLASS_COLORS[k % len(CLASS_COLORS)], label=name) for k, name in enumerate(classes)]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(classes))
    figure.suptitle(title, fontsize=10 if columns > 3 else 8)
    return figure


def losses(log: pd.DataFrame, note: str) -> Figure:
    """Training losses against steps, one panel per network.

    Parameters
    ----------
    log : columns network, step, and one per loss (NaN where a network does not have it)
    note : data set and profile, for the title
    """
    tidy = log.melt(["network", "step"], var_name="loss").dropna()
    tidy["running mean"] = tidy.groupby(["network", "loss"])["value"].transform(
        lambda values: values.rolling(max(1, len(values) // 40), min_periods=1).mean()
    )
    networks = tidy.groupby("network")
    figure, axes = plt.subplots(1, len(networks), figsize=(3.6 * len(networks), 2.6), squeeze=False)
    for axis, (network, rows) in zip(axes[0], networks, strict=True):
        sns.lineplot(rows, x="step", y="running mean", hue="loss", errorbar=None, ax=axis)
        axis.set(title=network, xlabel="optimiser step", yscale="log")
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
    """Grey level across the outlines of defects (see `measures.contrast_profiles`), one panel per class."""
    classes = next(iter(sets.values())).classes
    figure, panels = plt.subplots(1, len(classes), figsize=(1 + 2.6 * len(classes), 2.8), sharey=True, squeeze=False)
    for name, patches in sets.items():
        total, count = (part.sum(axis=0) for part in measures.contrast_profiles(patches))  # (K, 2 * PROFILE_PX)
        for panel, title, sums, pixels in zip(panels[0], classes, total, count, strict=True):
            mean = np.divide(sums, pixels, out=np.full_like(sums, np.nan), where=pixels > 0)
            distance = np.arange(len(mean)) - len(mean) / 2 + 0.5
            panel.plot(distance, mean, color=COLORS[name], label=name if title == classes[0] else None)
            panel.set(title=title, xlabel="distance from the outline [px]")
    for panel in panels[0]:
        panel.axvline(0, color="0.7", lw=0.8)
    panels[0][0].set_ylabel("grey level / surroundings")
    figure.legend(loc="outside lower center", ncols=len(sets))
    figure.suptitle(f"Across the outline, inside to the left ({note})", fontsize=10)
    return figure


def settings(study: pd.DataFrame, held_contrast: float, note: str) -> Figure:
    """Quality against the number of denoising steps, a line per sampler.

    Parameters
    ----------
    study : see `quality.compare_settings`
    held_contrast : of held-out real defects, where a perfect setting ends
    """
    figure, axes = plt.subplots(1, 3, figsize=(9, 2.8))
    for axis, measure in zip(axes, ("power spectrum", "kid", "contrast"), strict=True):
        sns.lineplot(study, x="steps", y=measure, hue="sampler", style="sampler", markers=True, ax=axis,
                     legend=measure == "kid", palette="colorblind")  # fmt: skip
    axes[-1].axhline(held_contrast, color="0.3", lw=0.8, ls=":")
    figure.suptitle(f"Steps and quality ({note})", fontsize=10)
    return figure

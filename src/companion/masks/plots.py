"""Figures of notebooks 02 and 03, and rows of images and masks for every later page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray

from companion.plots import CLASS_COLORS, class_legend

SAMPLER_COLORS = {"labelled": "#000000", "authors": "#D55E00", "companion": "#0072B2", "learned": "#009E73"}


def color_mask(label_maps: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Class codes [..., S, S] as colours [..., S, S, 3]; the background is white."""
    codes = np.asarray(label_maps).astype(int)
    palette = np.array([(1.0, 1.0, 1.0), *map(to_rgb, CLASS_COLORS)])
    return palette[np.where(codes == 0, 0, (codes - 1) % len(CLASS_COLORS) + 1)]


def image_rows(
    rows: Mapping[str, Sequence[NDArray]], title: str, titles: Sequence[str] = (), classes: Sequence[str] = (),
    side: float = 1.2,
) -> Figure:  # fmt: skip
    """Rows of images by name, each [S, S] grey levels or [S, S, 3] colours, `side` inches wide.

    `titles` stand over the columns; `classes` name the colours of `color_mask` in a legend.
    """
    columns = max(map(len, rows.values()))
    size = side * columns + 0.4, side * len(rows) + 0.5 + 0.2 * bool(classes)
    figure, axes = plt.subplots(len(rows), columns, figsize=size, squeeze=False)
    for line, (label, images) in zip(axes, rows.items(), strict=True):
        line[0].set_ylabel(label)
        for k, axis in enumerate(line):
            axis.set(xticks=[], yticks=[], visible=k < len(images))
            axis.grid(False)
            axis.spines[:].set(visible=True, color="0.6", linewidth=0.5)
        for axis, image in zip(line, images, strict=False):
            axis.imshow(image, vmin=0, vmax=255)
    for axis, text in zip(axes[0], titles, strict=False):
        axis.set_title(text, fontsize=7 if side < 2 else 9)
    if classes:
        class_legend(figure, classes)
    figure.suptitle(title, fontsize=10 if columns > 3 else 8)
    return figure


def curves(
    panels: Mapping[str, Mapping[str, pd.DataFrame]], title: str, y: str = "share ≤", colors: Mapping[str, str] = {}
) -> Figure:
    """Curves with intervals (see `statistics.share_curve`) by the label of the x axis and the name of the line.

    `colors` are by the name of the line; those of samplers are known.
    """
    figure, axes = plt.subplots(1, len(panels), figsize=(2.7 * len(panels) + 0.6, 3.0), squeeze=False)
    colors = {**SAMPLER_COLORS, **colors}
    for axis, (label, lines) in zip(axes.flat, panels.items(), strict=True):
        for k, (name, table) in enumerate(lines.items()):
            color = colors.get(name, CLASS_COLORS[(k + 3) % len(CLASS_COLORS)])
            axis.fill_between(table["value"], table["low"], table["high"], alpha=0.2, lw=0, color=color)
            axis.plot(table["value"], table["share"], label=name, color=color, linestyle=("-", "--", "-.", ":")[k % 4])
        axis.set(xlabel=label, ylabel=y, ylim=(0, None))
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.suptitle(title, fontsize=9)
    return figure


def directions(statistics: pd.DataFrame, classes: Sequence[str], title: str) -> Figure:
    """Angle of every uncut instance, a column of points per micrograph; `statistics`: see `statistics.measure`."""
    names = dict(enumerate(classes, start=1))
    table = statistics.assign(micrograph=pd.factorize(statistics["image"])[0], label=statistics["class"].map(names))
    figure, axis = plt.subplots(figsize=(6, 2.8))
    sns.scatterplot(table[~table["touches_border"]], x="micrograph", y="angle_deg", hue="label", style="label", ax=axis,
                    hue_order=classes, palette=list(CLASS_COLORS[: len(classes)]), s=14, alpha=0.7)  # fmt: skip
    axis.set(ylabel="angle [°]", ylim=(0, 180), yticks=range(0, 181, 45), title=title)
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure

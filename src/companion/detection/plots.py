"""Figures of the detector: anchors, batches, losses, detections."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from PIL import Image

from companion.plots import CLASS_COLORS

SHOWN = 2048  # px of a picture's longer side that a figure can show
Drawn = Sequence[tuple[NDArray, Sequence[str], str]]  # boxes [N, 4] px, the colour of each, how its line is drawn


def boxes(images: Sequence[NDArray[np.uint8]], names: Sequence[str], drawn: Sequence[Drawn], title: str) -> Figure:
    """Named patches [S, S] with boxes, up to four in a row.

    `names` stand above the patches, `drawn` has the boxes of each.
    """
    across = min(4, len(images))
    rows, width = -(-len(images) // across), 7.1 / across
    figure, grid = plt.subplots(rows, across, figsize=(7.1, (width + 0.15) * rows + 0.5), squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, image, name, layers in zip(grid.flat, images, names, drawn, strict=False):
        _picture(axes, image, name)
        for corners, colors, line in layers:
            for (x1, y1, x2, y2), color in zip(corners, colors, strict=True):
                axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec=color, ls=line, lw=1.3))
    figure.suptitle(title)
    return figure


def class_colors(codes: Sequence[float]) -> list[str]:
    """Colours of class codes 1, 2, ..."""
    return [CLASS_COLORS[(int(code) - 1) % len(CLASS_COLORS)] for code in codes]


def losses(log: pd.DataFrame, title: str) -> Figure:
    """The losses of a training over its steps, each a thin line under its running mean."""
    values = log.drop(columns="learning_rate").set_index("step").rename(columns=lambda name: name.replace("_", " "))
    colors = ["black", *CLASS_COLORS[: values.shape[1] - 1]]
    axes = values.plot(color=colors, alpha=0.25, lw=0.7, legend=False, figsize=(7.1, 3.4))
    smooth = values.rolling(max(1, len(log) // 20), min_periods=1).mean()
    smooth.plot(ax=axes, color=colors, logy=True, xlabel="optimiser step", ylabel="loss", title=title)
    axes.legend(axes.lines[values.shape[1] :], values.columns, ncols=3, fontsize=8)
    return axes.figure


def detections(
    images: NDArray[np.uint8], numbers: Sequence[int], truths: pd.DataFrame, found: pd.DataFrame,
    classes: Sequence[str], title: str,
) -> Figure:  # fmt: skip
    """Patches with labelled defects dashed and predictions solid, both coloured by class; nothing is matched.

    `images` uint8 [n, S, S] have `numbers` as their patch in `truths` (patch, x1, y1, x2, y2 in px, class) and `found`
    (the same with label); `classes` are the names of the codes 1, 2, ...
    """
    drawn = []
    for number in numbers:
        here = (table[table["patch"] == number] for table in (truths, found))
        layers = zip(here, ("class", "label"), ("--", "-"), strict=True)
        drawn.append([(t[["x1", "y1", "x2", "y2"]].to_numpy(float), class_colors(t[code]), s) for t, code, s in layers])
    figure = boxes(images, [f"patch {number}" for number in numbers], drawn, title)
    names = zip(class_colors(range(1, len(classes) + 1)), classes, strict=True)
    handles = [Line2D([], [], color=color, label=name) for color, name in names]
    handles += [Line2D([], [], color="0.4", ls="--", label="labelled"), Line2D([], [], color="0.4", label="predicted")]
    figure.legend(handles=handles, loc="outside lower center", ncols=5)
    return figure


def overlay(image: NDArray[np.uint8], defects: pd.DataFrame, classes: Sequence[str]) -> Figure:
    """A micrograph uint8 [H, W] with the outline of every defect, coloured by class.

    `defects` has columns class (a name of `classes`) and outline (a list of rings, [n, 2] x and y in px).
    """
    height, width = image.shape
    figure, axes = plt.subplots(figsize=(7.1, 7.1 * height / width + 0.5))
    _picture(axes, image, "")
    handles = []
    for name, color in zip(classes, class_colors(range(1, len(classes) + 1)), strict=True):
        own = defects.loc[defects["class"] == name, "outline"]
        axes.add_collection(LineCollection([ring for rings in own for ring in rings], colors=color, linewidths=0.9))
        handles.append(Line2D([], [], color=color, label=f"{name}: {len(own)}".replace("$", r"\$")))
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    return figure


def _picture(axes: plt.Axes, image: NDArray[np.uint8], title: str) -> None:
    height, width = image.shape
    step = -(-max(image.shape) // SHOWN)  # a montage would be held several times over, as floats
    shown = np.asarray(Image.fromarray(image).reduce(step)) if step > 1 else image
    axes.imshow(shown, vmin=0, vmax=255, extent=(0, shown.shape[1] * step, shown.shape[0] * step, 0))
    axes.set(xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0))
    axes.set_title(title, fontsize=8)
    axes.grid(False)

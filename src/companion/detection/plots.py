"""Figures of the detector: anchors, batches, losses, detections."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from companion.geometry import Boxes, decode_rle
from companion.plots import CLASS_COLORS


def anchors(image: NDArray[np.uint8], place: Boxes, truths: Boxes, matched: Boxes, iou: NDArray, title: str) -> Figure:
    """Left: the anchors of one place; right: labelled boxes and the anchor closest to each.

    Parameters
    ----------
    image : uint8 [S, S]
    place : [A, 4] the anchors of one place, px
    truths : [N, 4] labelled boxes, px
    matched, iou : [N, 4] and [N], for each labelled box its best anchor and their IoU
    title : of the figure
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.9))
    _picture(left, image, f"anchors of one place, {_longest(place).min():.0f}–{_longest(place).max():.0f} px long")
    _picture(right, image, "labelled boxes (white), closest anchors (dashed)")
    for k, box in enumerate(place):
        _box(left, box, CLASS_COLORS[k // 3 % len(CLASS_COLORS)])
    for truth, anchor, overlap in zip(truths, matched, iou, strict=True):
        _box(right, truth, "white")
        _box(right, anchor, CLASS_COLORS[5], "--")
        right.text(truth[0], truth[1] - 1, f"{overlap:.2f}", color="white", fontsize=7, va="bottom")
    figure.suptitle(title)
    return figure


def batch(images: NDArray[np.uint8], boxes: NDArray, labels: NDArray, names: Sequence[str], title: str) -> Figure:
    """Patches of one training batch with their labelled boxes coloured by class.

    Parameters
    ----------
    images : uint8 [B, S, S]
    boxes, labels : [B, M, 4] px and [B, M], label 0 is padding
    names : what to write above each patch
    title : of the figure
    """
    figure, grid = _grid(images, names, title)
    for axes, found, codes in zip(grid, boxes, labels, strict=False):
        for box, code in zip(found[codes > 0], codes[codes > 0], strict=True):
            _box(axes, box, _color(code))
    return figure


def losses(log: pd.DataFrame, title: str) -> Figure:
    """The losses of a training over its steps, each a thin line under its running mean, and the learning rate."""
    names = ["total", *(name for name in log.columns if name.startswith("loss_"))]
    figure, (axes, rate) = plt.subplots(2, 1, figsize=(7.2, 4.2), sharex=True, height_ratios=[3, 1])
    smooth = log[names].rolling(max(1, len(log) // 20), min_periods=1).mean()
    for name, color in zip(names, ("black", *CLASS_COLORS), strict=False):
        axes.plot(log["step"], log[name], color=color, alpha=0.25, lw=0.7)
        axes.plot(log["step"], smooth[name], color=color, label=name.removeprefix("loss_").replace("_", " "))
    axes.set(yscale="log", ylabel="loss")
    axes.legend(ncols=3, fontsize=7)
    rate.plot(log["step"], log["learning_rate"], color="0.3")
    rate.set(xlabel="optimiser step", ylabel="learning rate")
    figure.suptitle(title)
    return figure


def detections(
    images: NDArray[np.uint8], numbers: Sequence[int], truths: pd.DataFrame, found: pd.DataFrame,
    classes: Sequence[str], title: str,
) -> Figure:  # fmt: skip
    """Patches with labelled defects dashed and predictions solid, both coloured by class; nothing is matched.

    Parameters
    ----------
    images : uint8 [n, S, S], the patches to show
    numbers : their patch numbers in the tables
    truths : columns patch, x1, y1, x2, y2 (px), class
    found : columns patch, x1, y1, x2, y2 (px), label
    classes : names of the class codes 1, 2, ...
    title : of the figure
    """
    figure, grid = _grid(images, [f"patch {number}" for number in numbers], title)
    for table, code, line in ((truths, "class", "--"), (found, "label", "-")):
        for axes, number in zip(grid, numbers, strict=False):
            for *box, label in table.loc[table["patch"] == number, ["x1", "y1", "x2", "y2", code]].to_numpy(float):
                _box(axes, box, _color(label), line)
    handles = [Line2D([], [], color=_color(code), label=name) for code, name in enumerate(classes, start=1)]
    handles += [Line2D([], [], color="0.4", ls="--", label="labelled"), Line2D([], [], color="0.4", label="predicted")]
    figure.legend(handles=handles, loc="outside lower center", ncols=5)
    return figure


def overlay(image: NDArray[np.uint8], defects: pd.DataFrame, classes: Sequence[str], title: str) -> Figure:
    """A micrograph with the outline of every defect, coloured by class.

    Parameters
    ----------
    image : uint8 [H, W]
    defects : columns class (name), mask (COCO compressed run-length bytes of the whole image)
    classes : names of the classes
    title : of the figure
    """
    height, width = image.shape
    figure, axes = plt.subplots(figsize=(7.2, 7.2 * height / width + 0.5))
    _picture(axes, image, title)
    colors = {name: _color(code) for code, name in enumerate(classes, start=1)}
    for name, mask in defects[["class", "mask"]].itertuples(index=False):
        outline = np.pad(decode_rle([mask], image.shape)[0].astype(float), 1)
        centres_x, centres_y = np.arange(width + 2) - 0.5, np.arange(height + 2) - 0.5
        axes.contour(centres_x, centres_y, outline, levels=[0.5], colors=[colors[name]], linewidths=0.9)
    counts = defects["class"].value_counts()
    handles = [Line2D([], [], color=c, label=f"{name}: {counts.get(name, 0)}") for name, c in colors.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    return figure


def _grid(images: NDArray[np.uint8], names: Sequence[str], title: str) -> tuple[Figure, list[Axes]]:
    """Named patches, four in a row."""
    rows = -(-len(images) // 4)
    figure, grid = plt.subplots(rows, 4, figsize=(7.2, 1.95 * rows + 0.5), squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, image, name in zip(grid.flat, images, names, strict=False):
        _picture(axes, image, name)
        axes.title.set_fontsize(7)
    figure.suptitle(title)
    return figure, list(grid.flat)


def _picture(axes: Axes, image: NDArray[np.uint8], title: str) -> None:
    axes.imshow(image, vmin=0, vmax=255, extent=(0, image.shape[1], image.shape[0], 0))
    axes.set(xticks=[], yticks=[], title=title)
    axes.grid(False)


def _box(axes: Axes, box: Sequence[float], color: str, line: str = "-") -> None:
    x1, y1, x2, y2 = box
    axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec=color, ls=line, lw=1.3))


def _color(code: float) -> str:
    return CLASS_COLORS[(int(code) - 1) % len(CLASS_COLORS)]


def _longest(boxes: Boxes) -> NDArray:
    """Long sides of boxes, px."""
    return (boxes[:, 2:] - boxes[:, :2]).max(axis=1)

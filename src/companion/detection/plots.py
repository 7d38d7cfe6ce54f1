"""Figures of the detector: anchors, losses, detections with their errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from companion.plots import CLASS_COLORS
from companion.geometry import decode_rle

# Colour and line say the same: solid is in the truth, dashed is not.
OUTCOME_STYLES = {
    "hit": ("#009E73", "-"), "other class": ("#E69F00", "-"), "missed": ("#D55E00", "-"),
    "false positive": ("#CC79A7", "--"),
}  # fmt: skip


def _picture(axes: Axes, image: NDArray[np.uint8]) -> None:
    axes.imshow(image, vmin=0, vmax=255, extent=(0, image.shape[1], image.shape[0], 0))
    axes.set(xticks=[], yticks=[])
    axes.grid(False)


def _box(axes: Axes, box: Sequence[float], color: str, line: str = "-", width: float = 1.3) -> None:
    x1, y1, x2, y2 = box
    axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec=color, ls=line, lw=width))


def anchors(
    image: NDArray[np.uint8], levels: Sequence[NDArray], truths: NDArray, matched: NDArray, title: str
) -> Figure:
    """Left: the anchors of one place on every feature level; right: truths and the anchor closest to each.

    Parameters
    ----------
    image : uint8 [S, S]
    levels : per feature level [n, 4] the anchors of one place, px
    truths : [T, 4] labelled boxes
    matched : per truth (T, 5), for each truth its best anchor and their IoU
    title : of the figure
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.9))
    for axes in (left, right):
        _picture(axes, image)
    for boxes, color in zip(levels, CLASS_COLORS, strict=False):
        for box in boxes:
            _box(left, box, color)
    sides = [np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)) for boxes in levels]
    names = [f"level {k}: {s.min():.0f}–{s.max():.0f} px" for k, s in enumerate(sides, start=1)]
    handles = [Line2D([], [], color=c, label=n) for n, c in zip(names, CLASS_COLORS, strict=False)]
    left.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=3, fontsize=7)
    left.set_title("anchors of one place")
    for truth, (*anchor, overlap) in zip(truths, matched, strict=True):
        _box(right, truth, "white")
        _box(right, anchor, CLASS_COLORS[5], "--")
        right.text(truth[0], truth[1] - 1, f"{overlap:.2f}", color="white", fontsize=7, va="bottom")
    handles = [
        Line2D([], [], color="0.6", label="labelled"),
        Line2D([], [], color=CLASS_COLORS[5], ls="--", label="closest anchor, with IoU"),
    ]
    right.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=2, fontsize=7)
    right.set_title("labelled boxes and their closest anchors")
    figure.suptitle(title)
    return figure


def batch(images: NDArray[np.uint8], boxes: NDArray, labels: NDArray, names: Sequence[str], title: str) -> Figure:
    """Patches of one training batch with their labelled boxes coloured by class.

    Parameters
    ----------
    images : uint8 [B, S, S]
    boxes, labels : [B, M, 4] and [B, M], label 0 is padding
    names : what to write above each patch
    title : of the figure
    """
    columns = min(4, len(images))
    rows = -(-len(images) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(7.2, 1.95 * rows + 0.3), squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, image, found, codes, name in zip(grid.flat, images, boxes, labels, names, strict=False):
        _picture(axes, image)
        axes.set_title(name, fontsize=7)
        for box, code in zip(found[codes > 0], codes[codes > 0], strict=True):
            _box(axes, box, CLASS_COLORS[(int(code) - 1) % len(CLASS_COLORS)])
    figure.suptitle(title)
    return figure


def losses(log: pd.DataFrame, title: str) -> Figure:
    """The losses of a training over its steps, each a thin line under its running mean, and the learning rate."""
    names = [name for name in log.columns if name.startswith("loss_")]
    figure, (axes, rate) = plt.subplots(2, 1, figsize=(7.2, 4.2), sharex=True, height_ratios=[3, 1])
    window = max(1, len(log) // 20)
    for name, color in zip(["total", *names], ("black", *CLASS_COLORS), strict=False):
        axes.plot(log["step"], log[name], color=color, alpha=0.25, lw=0.7)
        smooth = log[name].rolling(window, min_periods=1).mean()
        axes.plot(log["step"], smooth, color=color, label=name.removeprefix("loss_").replace("_", " "))
    axes.set(yscale="log", ylabel="loss")
    axes.legend(ncols=3, fontsize=7)
    rate.plot(log["step"], log["learning_rate"], color="0.3")
    rate.set(xlabel="optimiser step", ylabel="learning rate")
    figure.suptitle(title)
    return figure


def live_losses(title: str) -> Callable[[pd.DataFrame], None]:
    """What shows the `losses` of a log in a notebook, each time in the place of what the cell showed before."""
    from IPython.display import clear_output, display

    def show(log: pd.DataFrame) -> None:
        figure = losses(log, title)
        clear_output(wait=True)
        display(figure)
        plt.close(figure)

    return show


def detections(images: NDArray[np.uint8], numbers: Sequence[int], outcomes: pd.DataFrame, title: str) -> Figure:
    """Patches with what was found, found under another class, missed and invented.

    Parameters
    ----------
    images : uint8 [n, S, S], the patches to show
    numbers : their patch numbers in `outcomes`
    outcomes : columns patch, x1, y1, x2, y2, outcome (see `companion.evaluation.outcomes`)
    title : of the figure
    """
    columns = 4
    rows = -(-len(images) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(7.2, 1.9 * rows + 0.6), squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, image, number in zip(grid.flat, images, numbers, strict=False):
        _picture(axes, image)
        axes.set_title(f"patch {number}", fontsize=7)
        here = outcomes[outcomes["patch"] == number]
        for x1, y1, x2, y2, outcome in here[["x1", "y1", "x2", "y2", "outcome"]].itertuples(index=False):
            _box(axes, (x1, y1, x2, y2), *OUTCOME_STYLES[outcome])
    handles = [Line2D([], [], color=c, ls=line, label=name) for name, (c, line) in OUTCOME_STYLES.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    figure.suptitle(title)
    return figure


def crops(
    images: NDArray[np.uint8], outcomes: pd.DataFrame, classes: Sequence[str], title: str, each: int = 6
) -> Figure:
    """Close-ups of what went wrong, one row for each kind of error: largest misses and wrong classes first, and
    false positives by falling score.

    Parameters
    ----------
    images : uint8 [P, S, S], every patch
    outcomes : columns patch, x1, y1, x2, y2, class, outcome, size_px, and score (of false positives)
    classes : names of the class codes 1, 2, ...
    title : of the figure
    each : close-ups in a row
    """
    kinds = [kind for kind in OUTCOME_STYLES if kind != "hit"]
    figure, grid = plt.subplots(len(kinds), each, figsize=(7.2, 1.4 * len(kinds) + 0.5))
    for row, kind in zip(grid, kinds, strict=True):
        order = "score" if kind == "false positive" else "size_px"
        shown = outcomes[outcomes["outcome"] == kind].nlargest(each, order, keep="first")
        for axes in row:
            axes.set_axis_off()
        row[0].text(-0.1, 0.5, kind, rotation=90, ha="right", va="center", transform=row[0].transAxes)
        for axes, error in zip(row, shown.to_dict("records"), strict=False):
            box = [error[side] for side in ("x1", "y1", "x2", "y2")]
            _picture(axes, images[error["patch"]])
            _box(axes, box, *OUTCOME_STYLES[kind])
            x, y, half = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2, max(16, 0.8 * error["size_px"])
            axes.set(xlim=(x - half, x + half), ylim=(y + half, y - half))
            what = f"score {error['score']:.2f}" if kind == "false positive" else f"{error['size_px']:.0f} px"
            axes.set_title(f"{classes[error['class'] - 1]}\npatch {error['patch']}, {what}", fontsize=6)
    figure.suptitle(title)
    return figure


def errors_by_class_and_size(
    outcomes: pd.DataFrame, classes: Sequence[str], edges_px: Sequence[float], title: str
) -> Figure:
    """Shares of outcomes, left by class and right by long side of the box.

    Parameters
    ----------
    outcomes : columns class, size_px, outcome
    classes : names of the class codes 1, 2, ...
    edges_px : boundaries of the size groups
    title : of the figure
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.2), sharey=True)
    groups = pd.cut(outcomes["size_px"], list(edges_px), right=False)
    for axes, key, names in (
        (left, outcomes["class"], dict(enumerate(classes, start=1))),
        (right, groups, {g: f"{g.left:.0f}–{g.right:.0f}" for g in groups.cat.categories}),
    ):
        bottom = np.zeros(len(names))
        for outcome, (color, line) in OUTCOME_STYLES.items():
            heights = [int(((key == value) & (outcomes["outcome"] == outcome)).sum()) for value in names]
            hatch = "///" if line == "--" else None
            axes.bar(range(len(names)), heights, bottom=bottom, color=color, hatch=hatch, ec="white", label=outcome)
            bottom += heights
        axes.set_xticks(range(len(names)), list(names.values()))
    left.set(ylabel="truths and false positives", xlabel="class")
    right.set(xlabel="long side, px")
    right.legend(fontsize=7)
    figure.suptitle(title)
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
    _picture(axes, image)
    colors = {name: CLASS_COLORS[k % len(CLASS_COLORS)] for k, name in enumerate(classes)}
    for name, mask in defects[["class", "mask"]].itertuples(index=False):
        outline = np.pad(decode_rle([mask], image.shape)[0].astype(float), 1)
        centres_x, centres_y = np.arange(width + 2) - 0.5, np.arange(height + 2) - 0.5
        axes.contour(centres_x, centres_y, outline, levels=[0.5], colors=[colors[name]], linewidths=0.9)
    counts = defects["class"].value_counts()
    handles = [Line2D([], [], color=c, label=f"{name}: {counts.get(name, 0)}") for name, c in colors.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    axes.set_title(title)
    return figure

"""Figures of scores and of what goes wrong: curves (Fig 3), sweeps, kinds of errors, close-ups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from companion.config.arms import ARMS
from companion.evaluation.errors import ERRORS, MISSED
from companion.plots import CLASS_COLORS

NAMES = {"f1_detect": "$F1_{detect}$", "f1_class": "$F1_{class}$", "f1_hm": "$F1_{HM}$"}
COLORS = {name: arm.colour for name, arm in ARMS.items()}


def arms_in(table: pd.DataFrame) -> list[str]:
    """The arms that occur in a table, in the order of the registry."""
    return [arm for arm in ARMS if (table["arm"] == arm).any()]


def defined_measures(scores: pd.DataFrame) -> list[str]:
    """The F1 measures that are defined somewhere in a table."""
    return [name for name in NAMES if scores[name].notna().any()]


def draw_boxes(axes: Axes, boxes: NDArray, codes: Sequence[int], style: str = "-") -> None:
    """Boxes [n, 4] in px on an image, coloured by class code."""
    for (x1, y1, x2, y2), code in zip(boxes, codes, strict=True):
        color = CLASS_COLORS[(int(code) - 1) % len(CLASS_COLORS)]
        axes.add_patch(Rectangle((x1 - 0.5, y1 - 0.5), x2 - x1, y2 - y1, fill=False, ec=color, lw=1.6, ls=style))


def score_curves(scores: pd.DataFrame, iou: float, arms: Sequence[str], note: str) -> Figure:
    """Scores against confidence, arms in colour (Fig 3): every seed a thin line, their mean bold, their range a band.

    One row of axes per split and N, one column per measure that is defined. Means and bands are drawn where every
    seed is defined.
    """
    here = scores[np.isclose(scores["iou_threshold"], iou) & scores["arm"].isin(list(arms))]
    measures, conditions = defined_measures(here) or ["f1_detect"], list(here.groupby(["split", "n_train"]))
    figure, grid = plt.subplots(
        max(1, len(conditions)), len(measures), squeeze=False, sharex=True, sharey="row",
        figsize=(max(4.6, 1.2 + 2.9 * len(measures)), 0.8 + 2.3 * max(1, len(conditions))),
    )  # fmt: skip
    for row, ((split, n_train), table) in zip(grid, conditions, strict=False):
        for axes, measure in zip(row, measures, strict=True):
            for arm in (arm for arm in arms if (table["arm"] == arm).any()):
                _curve(axes, table[table["arm"] == arm], measure, arm)
            axes.set(title=f"{NAMES[measure]}, split {split}, N = {n_train}", ylim=(0, 1))
        row[0].set_ylabel("score")
    for axes in grid[-1]:
        axes.set_xlabel("confidence threshold")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(max(1, len(labels)), len(measures)))
    figure.suptitle(f"Scores against confidence, box IoU ≥ {iou:g}\n{note}", fontsize=9)
    return figure


def _curve(axes: Axes, table: pd.DataFrame, measure: str, arm: str) -> None:
    wide = table.pivot_table(index="confidence", columns="seed", values=measure, dropna=False)
    mean, style = wide.mean(axis=1, skipna=False), {"color": ARMS[arm].colour}
    axes.plot(wide.index, wide.to_numpy(), lw=0.6, alpha=0.6, **style)
    if wide.shape[1] > 1:
        ends = wide.min(axis=1), wide.max(axis=1)
        axes.fill_between(wide.index, *ends, where=wide.notna().all(axis=1), alpha=0.2, lw=0, **style)
    label = f"{arm} (mean of {n} seeds; band: lowest to highest)" if (n := wide.shape[1]) > 1 else f"{arm} (1 seed)"
    axes.plot(mean.index, mean, marker=ARMS[arm].marker, ms=3, lw=1.8, label=label, **style)
    if mean.notna().any():
        axes.axvline(mean.idxmax(), lw=0.8, ls=":", **style)


def iou_sweep(scores: pd.DataFrame, measure: str, note: str) -> Figure:
    """`measure` against confidence at every IoU threshold: one panel per arm, mean over the seeds of one condition."""
    arms = arms_in(scores)
    figure, panels = plt.subplots(1, len(arms), figsize=(1.8 + 2.4 * len(arms), 3), squeeze=False, sharey=True)
    for panel, arm in zip(panels[0], arms, strict=True):
        sns.lineplot(scores[scores["arm"] == arm], x="confidence", y=measure, hue="iou_threshold",
                     style="iou_threshold", palette="viridis", errorbar=None, legend="full", ax=panel)  # fmt: skip
        panel.set(title=arm, xlabel="confidence threshold", ylabel=NAMES[measure], ylim=(0, 1))
        panel.legend(title="IoU ≥", loc="center left", bbox_to_anchor=(1, 0.5)).set_visible(arm == arms[-1])
    figure.suptitle(f"{NAMES[measure]} and the IoU that makes a match, mean over seeds\n{note}", fontsize=9)
    return figure


def skipping_effect(counted: pd.DataFrame, skipped: pd.DataFrame, note: str) -> Figure:
    """F1_detect against confidence, misses of unpredicted patches counted and dropped; means of one condition."""
    table = pd.concat([counted.assign(misses="counted"), skipped.assign(misses="dropped")], ignore_index=True)
    figure, axes = plt.subplots(figsize=(5.4, 3))
    sns.lineplot(table, x="confidence", y="f1_detect", hue="arm", style="misses", hue_order=arms_in(table),
                 palette=COLORS, errorbar=None, ax=axes)  # fmt: skip
    axes.set(xlabel="confidence threshold", ylabel=NAMES["f1_detect"], ylim=(0, 1))
    axes.set_title(f"What dropping patches without predictions does\n{note}")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def error_kinds(counts: pd.DataFrame, note: str) -> Figure:
    """Errors of each kind per annotated defect in one condition: bars are means over seeds, dots single runs."""
    figure, axes = plt.subplots(figsize=(6.4, 3))
    shared = {"data": counts, "x": "error", "y": "per_truth", "hue": "arm", "hue_order": arms_in(counts), "ax": axes}
    sns.barplot(**shared, palette=COLORS, errorbar=None, alpha=0.5)
    sns.stripplot(**shared, palette=COLORS, dodge=True, jitter=False, size=3, legend=False)
    axes.set(xlabel="", ylabel="errors per annotated defect")
    axes.set_title(f"Kinds of errors, each arm at its best threshold\n{note}")
    axes.legend()
    return figure


def recall_groups(table: pd.DataFrame, note: str) -> Figure:
    """Recall of each group with its interval over micrographs: a panel per grouping, the arms of one condition beside.

    Parameters
    ----------
    table : columns by, arm, group, recall, low, high
    """
    parts = {f"by {by}": own.assign(value=own["recall"]) for by, own in table.groupby("by", sort=False)}
    figure, panels = _intervals(parts, "group")
    panels[0].set(ylabel="share of defects found")
    figure.suptitle(f"What is found, with intervals over micrographs\n{note}", fontsize=9)
    return figure


def materials(table: pd.DataFrame, published: Mapping[str, tuple[float, float]], note: str) -> Figure:
    """Mean absolute error of defect size and areal density per class in one condition, and published (mean, spread)."""
    parts = {f"error of {name}": table[table["quantity"] == name].assign(value=table["error"]) for name in published}
    figure, panels = _intervals(parts, "class")
    for panel, (mean, spread) in zip(panels, published.values(), strict=True):
        panel.axhspan(mean - spread, mean + spread, color="#999999", alpha=0.25, lw=0)
        panel.axhline(mean, color="#666666", lw=1)
    panels[0].set(ylabel="mean absolute relative error; grey: Jacobs et al. 2022")
    figure.suptitle(f"What a materials scientist reads, with intervals over micrographs\n{note}", fontsize=9)
    return figure


def _intervals(parts: Mapping[str, pd.DataFrame], group: str) -> tuple[Figure, NDArray]:
    """A panel per table: its value with the interval (low, high), groups along x, arms side by side."""
    widths = [max(1, table[group].nunique()) for table in parts.values()]
    size = (1.5 + 1.1 * sum(widths), 3.2)
    figure, panels = plt.subplots(1, len(parts), figsize=size, squeeze=False, width_ratios=widths)
    for panel, (title, table) in zip(panels[0], parts.items(), strict=True):
        groups, arms = list(dict.fromkeys(table[group])), arms_in(table)
        for k, arm in enumerate(arms):
            own = table[table["arm"] == arm].set_index(group).reindex(groups)
            x = np.arange(len(groups)) + (k - (len(arms) - 1) / 2) * 0.8 / max(4, len(arms))
            error = np.nan_to_num(np.stack([own["value"] - own["low"], own["high"] - own["value"]]).astype(float))
            panel.errorbar(x, own["value"], np.clip(error, 0, None), fmt=ARMS[arm].marker, color=ARMS[arm].colour,
                           capsize=3, ms=5, label=arm)  # fmt: skip
        panel.set_xticks(range(len(groups)), [str(name).replace(" ", "\n", 1) for name in groups])
        panel.set(title=title, xlim=(-0.5, len(groups) - 0.5), ylim=(0, None))
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure, panels[0]


def close_ups(
    images: NDArray[np.uint8], predictions: pd.DataFrame, truths: pd.DataFrame, note: str, each: int = 6
) -> Figure:
    """Close-ups of errors, a row for each kind: the largest misses, and wrong predictions by falling score.

    Parameters
    ----------
    images : uint8 [P, S, S], every patch
    predictions, truths : of one run, as `errors.audit_runs` gives them
    each : close-ups in a row
    """
    figure, grid = plt.subplots(len(ERRORS), each, figsize=(7.2, 1.45 * len(ERRORS) + 0.5), squeeze=False)
    for line, kind in zip(grid, ERRORS, strict=True):
        table, order = (truths, "size_px") if kind == MISSED else (predictions, "score")
        shown = table[table["error"] == kind].nlargest(each, order)
        for axes in line:
            axes.set_axis_off()
        line[0].text(-0.1, 0.5, kind, rotation=90, ha="right", va="center", transform=line[0].transAxes)
        for axes, error in zip(line, shown.to_dict("records"), strict=False):
            x1, y1, x2, y2 = (error[side] for side in ("x1", "y1", "x2", "y2"))
            axes.imshow(images[error["patch"]], vmin=0, vmax=255, extent=(0, images.shape[2], images.shape[1], 0))
            axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec=CLASS_COLORS[5], lw=1.3))
            x, y, half = (x1 + x2) / 2, (y1 + y2) / 2, max(16, 0.8 * error["size_px"])
            axes.set(xlim=(x - half, x + half), ylim=(y + half, y - half))
            what = f"{error['size_px']:.0f} px" if np.isnan(error["score"]) else f"score {error['score']:.2f}"
            axes.set_title(f"{error['class']}\npatch {error['patch']}, {what}", fontsize=6)
    figure.suptitle(note, fontsize=9)
    return figure

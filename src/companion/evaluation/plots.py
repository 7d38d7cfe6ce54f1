"""Figures of stages 7 to 11: score curves, gains, tests, class balance and the strip of the front page."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from companion.plots import ARM_COLORS, ARM_MARKERS, CLASS_COLORS

NAMES = {"f1_detect": "$F1_{detect}$", "f1_class": "$F1_{class}$", "f1_hm": "$F1_{HM}$"}


def defined_measures(scores: pd.DataFrame) -> list[str]:
    """The F1 measures that are defined somewhere in a table."""
    return [name for name in NAMES if scores[name].notna().any()]


def score_curves(scores: pd.DataFrame, iou: float, arms: Sequence[str], note: str) -> Figure:
    """Scores against confidence, arms in colour (Fig 3): every seed a thin line, their mean bold, their range a band.

    One row of axes per split and N, one column per measure that is defined. The band reaches from the lowest to the
    highest seed, where every seed is defined; of one seed there is none.
    """
    here = scores[np.isclose(scores["iou_threshold"], iou) & scores["arm"].isin(list(arms))]
    measures = defined_measures(here) or ["f1_detect"]
    conditions = list(here.groupby(["split", "n_train"], sort=True))
    figure, grid = plt.subplots(
        max(1, len(conditions)), len(measures), squeeze=False, sharex=True, sharey="row",
        figsize=(max(4.6, 1.2 + 2.9 * len(measures)), 0.8 + 2.3 * max(1, len(conditions))),
    )  # fmt: skip
    for row, (condition, table) in enumerate(conditions):
        for axes, measure in zip(grid[row], measures, strict=True):
            for arm in (a for a in arms if (table["arm"] == a).any()):
                _curve(axes, table[table["arm"] == arm], measure, arm)
            axes.set(title=f"{NAMES[measure]}, split {condition[0]}, N = {condition[1]}", ylim=(0, 1))
            if row == len(conditions) - 1:
                axes.set_xlabel("confidence threshold")
        grid[row][0].set_ylabel("score")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(max(1, len(labels)), len(measures)))
    figure.suptitle(f"Scores against confidence, box IoU ≥ {iou:g}\n{note}", fontsize=9)
    return figure


def _curve(axes: Axes, table: pd.DataFrame, measure: str, arm: str) -> None:
    wide = table.pivot_table(index="confidence", columns="seed", values=measure, dropna=False)
    axes.plot(wide.index, wide.to_numpy(), color=ARM_COLORS[arm], lw=0.6, alpha=0.6)
    if wide.shape[1] > 1:
        every = wide.notna().all(axis=1)
        axes.fill_between(wide.index, wide.min(axis=1), wide.max(axis=1), where=every, color=ARM_COLORS[arm], alpha=0.2,
                          lw=0)  # fmt: skip
    mean = wide.mean(axis=1, skipna=False)  # undefined where any seed is
    label = f"{arm} (mean of {n} seeds; band: lowest to highest)" if (n := wide.shape[1]) > 1 else f"{arm} (1 seed)"
    axes.plot(mean.index, mean, color=ARM_COLORS[arm], marker=ARM_MARKERS[arm], ms=3, lw=1.8, label=label)
    if mean.notna().any():
        axes.axvline(mean.idxmax(), color=ARM_COLORS[arm], lw=0.8, ls=":")


def iou_sweep(scores: pd.DataFrame, measure: str, note: str) -> Figure:
    """`measure` against confidence at every IoU threshold: one panel per arm, mean over the seeds of one condition."""
    arms = [arm for arm in ARM_COLORS if (scores["arm"] == arm).any()]
    figure, axes = plt.subplots(1, len(arms), figsize=(max(4.6, 1 + 3 * len(arms)), 3), squeeze=False, sharey=True)
    thresholds = sorted(scores["iou_threshold"].unique())
    for panel, arm in zip(axes[0], arms, strict=True):
        means = scores[scores["arm"] == arm].groupby(["iou_threshold", "confidence"])[measure].mean()
        for k, iou in enumerate(thresholds):
            color = plt.get_cmap("viridis")(0.9 * k / max(1, len(thresholds) - 1))
            panel.plot(
                means[iou].index,
                means[iou],
                color=color,
                label=f"IoU ≥ {iou:g}",
                lw=1.4,
                ls=("-", "--", "-.", ":")[k % 4],
            )
        panel.set(title=arm, xlabel="confidence threshold", ylim=(0, 1))
    axes[0][0].set_ylabel(NAMES[measure])
    axes[0][-1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    figure.suptitle(f"{NAMES[measure]} and the IoU that makes a match, mean over seeds\n{note}", fontsize=9)
    return figure


def skipping_effect(counted: pd.DataFrame, skipped: pd.DataFrame, note: str) -> Figure:
    """F1_detect against confidence, misses of unpredicted patches counted and dropped; means of one condition."""
    figure, axes = plt.subplots(figsize=(5, 3))
    for arm in (a for a in ARM_COLORS if (counted["arm"] == a).any()):
        for table, style, name in ((counted, "-", "counted"), (skipped, "--", "dropped")):
            mean = table[table["arm"] == arm].groupby("confidence")["f1_detect"].mean()
            axes.plot(mean.index, mean, color=ARM_COLORS[arm], ls=style, marker=ARM_MARKERS[arm], ms=2.5,
                      label=f"{arm}, misses {name}")  # fmt: skip
    axes.set(xlabel="confidence threshold", ylabel=NAMES["f1_detect"], ylim=(0, 1))
    axes.set_title(f"What dropping patches without predictions does\n{note}")
    axes.legend()
    return figure


def gains(table: pd.DataFrame, note: str) -> Figure:
    """Detection beside classification gain, per split and N, with intervals (Fig 4)."""
    conditions = table[["split", "n_train"]].drop_duplicates().sort_values(["split", "n_train"])
    labels = [f"split {split}\nN = {n}" for split, n in conditions.itertuples(index=False)]
    figure, axes = plt.subplots(figsize=(max(4.6, 2.5 + 1.1 * len(labels)), 3))
    styles = {"f1_detect": ("#0072B2", "o", "detection"), "f1_class": ("#CC79A7", "D", "classification")}
    for offset, (measure, (color, marker, name)) in zip((-0.12, 0.12), styles.items(), strict=True):
        rows = conditions.merge(table[table["measure"] == measure], on=["split", "n_train"], how="left")
        x = np.arange(len(rows)) + offset
        axes.bar(x, rows["gain"], 0.22, color=color, alpha=0.35)
        error = np.abs(np.stack([rows["gain"] - rows["low"], rows["high"] - rows["gain"]]))
        missing = "" if rows["gain"].notna().any() else ": undefined"
        axes.errorbar(x, rows["gain"], np.nan_to_num(error), fmt=marker, color=color, capsize=3, label=name + missing)
    axes.axhline(0, color="black", lw=0.8)
    axes.set_xticks(range(len(labels)), labels)
    axes.set(ylabel="gain of EXP+GEN over EXP, F1", xlim=(-0.6, max(1, len(labels)) - 0.4))
    axes.set_title(f"Where the gain comes from\n{note}")
    axes.legend()
    return figure


def sizes(table: pd.DataFrame, measure: str, note: str) -> Figure:
    """Scores of both arms by N and split, with the gain as a share of what is left to gain (Fig 5)."""
    rows = table[table["measure"] == measure].sort_values(["split", "n_train"])
    splits = sorted(rows["split"].unique())
    figure, axes = plt.subplots(
        1, max(1, len(splits)), figsize=(1.5 + 2.8 * len(splits), 3), squeeze=False, sharey=True
    )
    for panel, split in zip(axes[0], splits, strict=False):
        here = rows[rows["split"] == split].reset_index(drop=True)
        for column, arm, shift in (("base", "EXP", -0.18), ("other", "EXP+GEN", 0.18)):
            hatch = "" if arm == "EXP" else "//"
            panel.bar(here.index + shift, here[column], 0.34, color=ARM_COLORS[arm], alpha=0.8, hatch=hatch, label=arm)
        for k, row in here.iterrows():
            text = "undefined" if pd.isna(row["share_of_left"]) else f"{100 * row['share_of_left']:+.1f} %"
            panel.annotate(text, (k, np.nanmax([row["base"], row["other"], 0])), ha="center", va="bottom")
        panel.set_xticks(here.index, [f"N = {n}" for n in here["n_train"]])
        panel.set(title=f"split {split}", ylim=(0, 1.05), xlim=(-0.6, max(1.0, len(here)) - 0.4))
    axes[0][0].set_ylabel(f"{NAMES[measure]} at each arm's best threshold")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.suptitle(f"{NAMES[measure]} by N; above the bars the gain as a share of what EXP leaves\n{note}", fontsize=9)
    return figure


def paired_differences(pairs: pd.DataFrame, tests: pd.DataFrame, measure: str, note: str) -> Figure:
    """Every pair's difference as a dot, the mean with its interval beside it, per split and N."""
    rows = tests[tests["measure"] == measure].sort_values(["split", "n_train"]).reset_index(drop=True)
    figure, axes = plt.subplots(figsize=(max(4.6, 2.5 + 1.2 * len(rows)), 3))
    for k, row in rows.iterrows():
        chosen = (pairs["split"] == row["split"]) & (pairs["n_train"] == row["n_train"]) & (pairs["measure"] == measure)
        points = pairs.loc[chosen, "difference"]
        axes.plot(
            np.full(len(points), k - 0.1),
            points,
            "o",
            color="#555555",
            ms=4,
            label="one pair of runs" if k == 0 else None,
        )
        if pd.notna(row["low"]):
            error = [[row["mean"] - row["low"]], [row["high"] - row["mean"]]]
            axes.errorbar([k + 0.1], [row["mean"]], error, fmt="s", color="#D55E00", capsize=4,
                          label="mean and interval" if k == 0 else None)  # fmt: skip
    axes.axhline(0, color="black", lw=0.8)
    axes.set_xticks(
        range(len(rows)), [f"split {s}\nN = {n}" for s, n in zip(rows["split"], rows["n_train"], strict=True)]
    )
    axes.set(ylabel=f"difference in {NAMES[measure]}", xlim=(-0.6, max(1, len(rows)) - 0.4))
    axes.set_title(f"Differences, paired by detector seed\n{note}")
    axes.legend()
    return figure


def class_shares(table: pd.DataFrame, note: str) -> Figure:
    """Shares of the classes in the real and the two simulated sets (columns set, class, share)."""
    sets, classes = list(dict.fromkeys(table["set"])), list(dict.fromkeys(table["class"]))
    figure, axes = plt.subplots(figsize=(5.5, 0.8 + 0.5 * len(sets)))
    left = np.zeros(len(sets))
    for k, name in enumerate(classes):
        share = table[table["class"] == name].set_index("set")["share"].reindex(sets).fillna(0).to_numpy()
        axes.barh(range(len(sets)), share, left=left, color=CLASS_COLORS[k % len(CLASS_COLORS)], label=name,
                  hatch=("", "//", "..")[k % 3], edgecolor="white")  # fmt: skip
        left += share
    axes.set_yticks(range(len(sets)), sets)
    axes.set(xlabel="share of instances", xlim=(0, 1))
    axes.set_title(f"Class shares\n{note}")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def draw_boxes(axes: Axes, boxes: NDArray, codes: Sequence[int], style: str = "-") -> None:
    """Boxes [n, 4] in px on an image, coloured by class code."""
    for (x1, y1, x2, y2), code in zip(boxes, codes, strict=True):
        color = CLASS_COLORS[(int(code) - 1) % len(CLASS_COLORS)]
        axes.add_patch(Rectangle((x1 - 0.5, y1 - 0.5), x2 - x1, y2 - y1, fill=False, ec=color, lw=1.6, ls=style))


def quality_by_size(quality: pd.DataFrame, note: str) -> Figure:
    """Measures of image quality against N, one panel each: a marker with its interval per generator, beside the
    yardstick (a short line) that the same measure gives on real images. Splits differ in colour and marker.

    Parameters
    ----------
    quality : measure, value, low, high, yardstick, split, n_train, generator
    """
    measures, sizes = list(dict.fromkeys(quality["measure"])), sorted(set(quality["n_train"]))
    splits, looks = list(dict.fromkeys(quality["split"])), list(zip(CLASS_COLORS, ARM_MARKERS.values(), strict=False))
    columns = min(4, len(measures))
    rows = -(-len(measures) // columns)
    figure, grid = plt.subplots(rows, columns, squeeze=False, figsize=(2.4 * columns, 0.6 + 2.1 * rows))
    for panel in grid.flat[len(measures) :]:
        panel.remove()
    for panel, measure in zip(grid.flat, measures, strict=False):
        for position, size in enumerate(sizes):
            own = quality[(quality["measure"] == measure) & (quality["n_train"] == size)]
            own = own.assign(place=position + (np.arange(len(own)) - (len(own) - 1) / 2) * 0.6 / max(1, len(own)))
            for number, split in enumerate(splits):
                part, (color, marker) = own[own["split"] == split], looks[number % len(looks)]
                error = np.abs(np.stack([part["value"] - part["low"], part["high"] - part["value"]]))
                panel.errorbar(
                    part["place"], part["value"], np.nan_to_num(error.astype(float)), fmt=marker, ms=4, capsize=2, lw=1,
                    color=color, label=f"split {split}" if position == 0 else None,
                )  # fmt: skip
            panel.hlines(own["yardstick"], position - 0.4, position + 0.4, color="black", lw=1, ls="--")
        panel.set_xticks(range(len(sizes)), [str(size) for size in sizes])
        panel.set(xlim=(-0.6, len(sizes) - 0.4), title=textwrap.fill(measure, 30))
    for panel in grid[-1]:
        panel.set_xlabel("N")
    if len(splits) > 1:
        figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=len(splits))
    figure.suptitle(f"Generated images by N, a marker per generator; dashed: real images\n{note}", fontsize=9)
    return figure


def strip(
    real_labels: NDArray,
    simulated_labels: NDArray,
    generated: NDArray,
    test: NDArray,
    found: pd.DataFrame,
    classes: Mapping[int, str],
    note: str,
) -> Figure:
    """The method in four pictures: real mask, simulated mask, generated image, detections on a held-out patch.

    Parameters
    ----------
    real_labels, simulated_labels : uint8 [S, S] class codes, 0 for background
    generated, test : uint8 [S, S] grey levels
    found : detections on `test`: x1, y1, x2, y2, label
    classes : class code -> name
    """  # fmt: skip
    titles = (
        "mask of a real micrograph",
        "simulated mask",
        "image generated from it",
        "detections on a held-out patch",
    )
    figure, axes = plt.subplots(1, 4, figsize=(10, 2.9))
    for panel, title in zip(axes, titles, strict=True):
        panel.set_title(title)
        panel.set_axis_off()
    for panel, labels in zip(axes, (real_labels, simulated_labels), strict=False):
        palette = np.array([(0.12, 0.12, 0.12), *(plt.matplotlib.colors.to_rgb(c) for c in CLASS_COLORS)])
        panel.imshow(palette[np.where(labels > 0, (labels - 1) % len(CLASS_COLORS) + 1, 0)])
    axes[2].imshow(generated, vmin=0, vmax=255)
    axes[3].imshow(test, vmin=0, vmax=255)
    draw_boxes(axes[3], found[["x1", "y1", "x2", "y2"]].to_numpy(), found["label"].tolist())
    handles = [Rectangle((0, 0), 1, 1, fc=CLASS_COLORS[(code - 1) % len(CLASS_COLORS)]) for code in classes]
    figure.legend(handles, classes.values(), loc="outside lower center", ncols=len(classes))
    figure.suptitle(f"From a real mask to a detector\n{note}", fontsize=9)
    return figure

"""Figures of notebooks 08 to 11: scores and gains of the arms, tests, class shares, image quality, and the strip."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from companion.config.arms import ARMS
from companion.evaluation.plots import NAMES, arms_in, draw_boxes
from companion.micrographs.patches import Patches
from companion.plots import CLASS_COLORS


def gains(tests: pd.DataFrame, note: str) -> Figure:
    """Detection beside classification gain of EXP+GEN, per split and N, with intervals (Fig 4)."""
    tests = tests[tests["arm"] == "EXP+GEN"]
    conditions = sorted(set(zip(tests["split"], tests["n_train"], strict=True)))
    figure, axes = plt.subplots(figsize=(max(4.6, 2.5 + 1.1 * len(conditions)), 3))
    styles = {"f1_detect": ("#0072B2", "o", "detection"), "f1_class": ("#CC79A7", "D", "classification")}
    for shift, (measure, (color, marker, name)) in zip((-0.12, 0.12), styles.items(), strict=True):
        rows = tests[tests["measure"] == measure]
        x = [conditions.index(place) + shift for place in zip(rows["split"], rows["n_train"], strict=True)]
        axes.bar(x, rows["gain"], 0.22, color=color, alpha=0.35)
        missing = "" if rows["gain"].notna().any() else ": undefined"
        axes.errorbar(x, rows["gain"], _whiskers(rows), fmt=marker, color=color, capsize=3, label=name + missing)
    axes.axhline(0, color="black", lw=0.8)
    axes.set_xticks(range(len(conditions)), [f"split {split}\nN = {n}" for split, n in conditions])
    axes.set(ylabel="gain of EXP+GEN over EXP, F1", title=f"Where the gain comes from\n{note}")
    axes.legend()
    return figure


def sizes(chosen: pd.DataFrame, tests: pd.DataFrame, measure: str, note: str) -> Figure:
    """Scores of all arms by N and split: means, with bars from the lowest to the highest seed (Fig 5).

    Parameters
    ----------
    chosen : one row per run (`significance.at_thresholds`)
    tests : `significance.paired_tests`; what EXP+GEN gains of what EXP leaves stands below each N
    """
    splits, numbers = sorted(set(chosen["split"])), sorted(set(chosen["n_train"]))
    arms = arms_in(chosen)
    width = 1 + max(4.5 / len(splits), 0.22 * len(arms) * len(numbers)) * len(splits)
    figure, panels = plt.subplots(1, len(splits), figsize=(width, 3.4), squeeze=False, sharey=True)
    for panel, split in zip(panels[0], splits, strict=True):
        sns.pointplot(
            chosen[chosen["split"] == split], x="n_train", y=measure, hue="arm", order=numbers, hue_order=arms,
            palette=[ARMS[arm].colour for arm in arms], markers=[ARMS[arm].marker for arm in arms], linestyle="none",
            dodge=0.7, errorbar=("pi", 100), err_kws={"linewidth": 1.2}, markersize=5, ax=panel,
        )  # fmt: skip
        own = tests[(tests["split"] == split) & (tests["arm"] == "EXP+GEN") & (tests["measure"] == measure)]
        shares = own.set_index("n_train")["share_of_left"].reindex(numbers)
        texts = [f"N = {n}" + ("" if pd.isna(s) else f"\n{100 * s:+.1f} %") for n, s in shares.items()]
        panel.set_xticks(range(len(numbers)), texts)
        panel.set(title=f"split {split}", xlabel="", ylabel=f"{NAMES[measure]} at each arm's threshold")
        panel.legend().remove()
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=min(5, len(arms)))
    figure.suptitle(f"{NAMES[measure]} by N; below: gain of EXP+GEN, share of what EXP leaves\n{note}", fontsize=9)
    return figure


def paired_differences(pairs: pd.DataFrame, tests: pd.DataFrame, measure: str, note: str) -> Figure:
    """Every pair's difference as a dot, the mean with its interval below, a row per split, N and arm."""
    tests = tests[tests["measure"] == measure].assign(order=tests["arm"].map(list(ARMS).index))
    rows = tests.sort_values(["split", "n_train", "order"]).set_index(["split", "n_train", "arm"])
    places, pairs = {names: k for k, names in enumerate(rows.index)}, pairs[pairs["measure"] == measure]
    figure, axes = plt.subplots(figsize=(6.4, 1.2 + 0.3 * len(rows)))
    heights = [places[names] - 0.2 for names in zip(pairs["split"], pairs["n_train"], pairs["arm"], strict=True)]
    axes.plot(pairs["difference"], heights, ".", color="#555555", ms=4)
    for names, k in places.items():
        own, look = rows.iloc[[k]], {"fmt": ARMS[names[2]].marker, "color": ARMS[names[2]].colour}
        axes.errorbar(own["gain"], [k + 0.1], xerr=_whiskers(own), capsize=3, ms=5, **look)
    axes.axvline(0, color="black", lw=0.8)
    labels = [f"split {s}, N = {n}: {arm} minus {ARMS[arm].baseline}" for s, n, arm in places]
    axes.set_yticks(range(len(rows)), labels)
    title = f"Differences: dots are pairs of runs, markers means with intervals\n{note}"
    axes.set(ylim=(len(rows) - 0.4, -0.6), xlabel=f"difference in {NAMES[measure]}", title=title)
    return figure


def resampled(table: pd.DataFrame, measure: str, note: str) -> Figure:
    """Intervals of one difference, by what is taken to vary: columns split, n_train, varies, gain, low, high."""
    rows = table.sort_values(["split", "n_train"], kind="stable").reset_index(drop=True)
    figure, axes = plt.subplots(figsize=(6.4, 1.2 + 0.35 * len(rows)))
    for k, name in enumerate(dict.fromkeys(rows["varies"])):
        own, look = rows[rows["varies"] == name], {"fmt": "osD"[k % 3], "color": CLASS_COLORS[(4, 5, 2)[k % 3]]}
        axes.errorbar(own["gain"], own.index, xerr=_whiskers(own), capsize=3, label=name, **look)
    axes.axvline(0, color="black", lw=0.8)
    axes.set_yticks(range(len(rows)), [f"split {s}, N = {n}" for s, n in rows[["split", "n_train"]].to_numpy()])
    axes.set(ylim=(len(rows) - 0.5, -0.5), xlabel=f"difference in {NAMES[measure]}, EXP+GEN minus EXP")
    axes.set_title(f"The same difference; what varies differs\n{note}")
    axes.legend(title="varies", bbox_to_anchor=(1, 1), loc="upper left")
    return figure


def power(table: pd.DataFrame, gain: float, note: str) -> Figure:
    """Power of the paired t-test against the number of pairs (`significance.power_table`)."""
    figure, axes = plt.subplots(figsize=(5, 3))
    axes.plot(table["n"], table["power"], "o-", color="#0072B2", ms=4)
    axes.axhline(0.8, color="black", lw=0.8, ls=":")
    axes.set(xlabel="pairs of detectors on one split", ylabel="power", ylim=(0, 1.02), xticks=table["n"])
    axes.set_title(f"Chance to see a gain of {gain:g} on one split\n{note}")
    return figure


def class_shares(table: pd.DataFrame, note: str) -> Figure:
    """Shares of the classes in the labelled and the simulated sets of one condition (columns set, class, share)."""
    wide = table.pivot_table(index="set", columns="class", values="share", sort=False).fillna(0)
    figure, axes = plt.subplots(figsize=(5.5, 0.8 + 0.5 * len(wide)))
    wide.plot.barh(stacked=True, ax=axes, color=list(CLASS_COLORS), edgecolor="white")
    for k, bars in enumerate(axes.containers):
        for bar in bars:
            bar.set_hatch(("", "//", "..")[k % 3])
    axes.set(xlabel="share of instances", ylabel="", xlim=(0, 1), title=f"Class shares\n{note}")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def quality_by_size(quality: pd.DataFrame, note: str) -> Figure:
    """Measures of image quality against N, one panel each: a marker with its interval per model, beside the yardstick
    (a short line) that the same measure gives on real images. Splits differ in colour and marker.

    Parameters
    ----------
    quality : measure, value, low, high, yardstick, split, n_train, model
    """
    numbers, splits = sorted(set(quality["n_train"])), sorted(set(quality["split"]))
    beside = quality.sort_values(["split", "model"]).groupby(["measure", "n_train"])
    many = beside["n_train"].transform("size")
    shift = (beside.cumcount() - (many - 1) / 2) * 0.6 / many  # models of one N stand side by side
    quality = quality.assign(place=quality["n_train"].map(numbers.index), gain=quality["value"])
    panels = list(quality.groupby("measure", sort=False))
    columns, rows = min(4, len(panels)), -(-len(panels) // 4)
    figure, grid = plt.subplots(rows, columns, squeeze=False, figsize=(2.4 * columns, 0.6 + 2.1 * rows))
    for unused in grid.flat[len(panels) :]:
        unused.remove()
    for axes, (measure, own) in zip(grid.flat, panels, strict=False):
        for k, split in enumerate(splits):
            part, look = own[own["split"] == split], {"fmt": "osD^"[k % 4], "color": CLASS_COLORS[4 - k % 5]}
            places = part["place"] + shift[part.index]
            axes.errorbar(places, part["gain"], _whiskers(part), capsize=3, ms=4, label=f"split {split}", **look)
        axes.hlines(own["yardstick"], own["place"] - 0.4, own["place"] + 0.4, color="black", lw=1, ls="--")
        axes.set_xticks(range(len(numbers)), [str(n) for n in numbers])
        axes.set(xlim=(-0.6, len(numbers) - 0.4), title=textwrap.fill(measure, 30))
    if len(splits) > 1:
        figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=len(splits))
    figure.supxlabel("N")
    figure.suptitle(f"Generated images by N, a marker per model; dashed: real images\n{note}", fontsize=9)
    return figure


def typical_patch(patches: Patches) -> int:
    """The first patch with the average number of defects or more, so that nobody picks the picture."""
    numbers = np.bincount(patches.table["patch"], minlength=len(patches))
    return int(np.argmax(numbers >= numbers.mean()))


def strip(
    labels: Sequence[NDArray], images: Sequence[NDArray], found: pd.DataFrame, classes: Mapping[int, str], note: str
) -> Figure:
    """The method in four pictures: mask of a micrograph, simulated mask, generated image, detections on a test patch.

    Parameters
    ----------
    labels : the two masks, uint8 [S, S] class codes, 0 for background
    images : generated image and test patch, uint8 [S, S] grey levels
    found : detections on the test patch: x1, y1, x2, y2 (px), label
    classes : class code -> name
    """
    titles = ("mask of a labelled micrograph", "simulated mask", "image generated from it",
              "detections on a held-out patch")  # fmt: skip
    figure, axes = plt.subplots(1, 4, figsize=(10, 2.9))
    palette = np.array([(0.12, 0.12, 0.12), *(plt.matplotlib.colors.to_rgb(c) for c in CLASS_COLORS)])
    shown = [palette[np.where(mask > 0, (mask - 1) % len(CLASS_COLORS) + 1, 0)] for mask in labels]
    for panel, title, picture in zip(axes, titles, [*shown, *images], strict=True):
        panel.imshow(picture, vmin=0, vmax=255)
        panel.set_title(title)
        panel.set_axis_off()
    draw_boxes(axes[3], found[["x1", "y1", "x2", "y2"]].to_numpy(), found["label"].tolist())
    handles = [Rectangle((0, 0), 1, 1, fc=CLASS_COLORS[(code - 1) % len(CLASS_COLORS)]) for code in classes]
    figure.legend(handles, classes.values(), loc="outside lower center", ncols=len(classes))
    figure.suptitle(f"From a mask to a detector\n{note}", fontsize=9)
    return figure


def _whiskers(rows: pd.DataFrame) -> NDArray[np.float64]:
    """[2, n] distances from the gain down to low and up to high; 0 where there is no interval."""
    return np.nan_to_num(rows[["low", "high"]].sub(rows["gain"], axis=0).abs().to_numpy(dtype=float).T)

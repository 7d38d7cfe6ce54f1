"""Figures of notebooks 07 to 12: scores and gains of the arms, tests, errors, image quality, and the strip."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike, NDArray

from companion.config.arms import ARMS
from companion.evaluation.formats import BOX
from companion.evaluation.verdicts import PAPER_GAIN
from companion.evaluation.wording import CONDITION, F1, NAMES, condition_name
from companion.masks.plots import image_rows
from companion.plots import CLASS_COLORS

COLORS = {name: arm.colour for name, arm in ARMS.items()}
LOOKS = {name: (arm.colour, arm.marker) for name, arm in ARMS.items()}
WIDTH = 7.1  # inches: the column of a page, so that text keeps its size there
Looks = Mapping[str, tuple[str, str]]  # colour and marker by name, in the order in which they are drawn


def class_color(code: int) -> str:
    """Colour of a class, by its code 1, 2, ..."""
    return CLASS_COLORS[(int(code) - 1) % len(CLASS_COLORS)]


def defined_measures(scores: pd.DataFrame) -> list[str]:
    """The F1 measures that are defined somewhere in a table."""
    return [name for name in F1 if scores[name].notna().any()]


def draw_boxes(axes: Axes, boxes: ArrayLike, colors: Iterable[str]) -> None:
    """Boxes [n, 4] in px on an image."""
    for (x1, y1, x2, y2), color in zip(np.asarray(boxes), colors, strict=True):
        axes.add_patch(Rectangle((x1 - 0.5, y1 - 0.5), x2 - x1, y2 - y1, fill=False, ec=color, lw=1.6))


def intervals(axes: Axes, table: pd.DataFrame, by: str, value: str, hue: str, looks: Looks, orient: str = "x") -> None:
    """A marker with its interval (columns low and high, if defined) for each row of `table`.

    Values of the column `by`, in the order of appearance, are the places along the axis `orient`, "x" or "y"; those of
    `hue` that are in `looks` stand side by side.
    """
    places, names = list(dict.fromkeys(table[by])), [name for name in looks if (table[hue] == name).any()]
    other = "y" if orient == "x" else "x"
    for k, name in enumerate(names):
        own, (color, marker) = table[table[hue] == name], looks[name]
        at = own[by].map(places.index) + (k - (len(names) - 1) / 2) * 0.7 / max(4, len(names))
        sizes = np.nan_to_num(own[["low", "high"]].sub(own[value], axis=0).abs().to_numpy(dtype=float).T)
        points = {orient: at, other: own[value], f"{other}err": sizes}
        axes.errorbar(**points, fmt=marker, color=color, capsize=3, ms=5, label=name)
    limits = (-0.5, len(places) - 0.5)[:: 1 if orient == "x" else -1]
    axes.set(**{f"{orient}ticks": range(len(places)), f"{orient}ticklabels": places, f"{orient}lim": limits})


def interval_panels(
    table: pd.DataFrame, panel: str, by: str, value: str, hue: str, looks: Looks, title: str, orient: str = "x",
    sharey: bool = False,
) -> tuple[Figure, list[Axes]]:  # fmt: skip
    """`intervals` of each value of the column `panel`, up to three in a row, under one title and over one legend."""
    parts, marks = list(table.groupby(panel, sort=False)), table[by].nunique() * table[hue].nunique()
    columns = min(len(parts), 3 if table[by].nunique() < 4 or orient == "y" else 2)
    columns = 1 if columns * marks > 27 and orient == "x" else columns  # too many to stand side by side
    rows, high = -(-len(parts) // columns), 0.4 * table[by].nunique() * (orient == "y")
    size = (WIDTH if len(parts) > 1 else 5.6, 1.1 + rows * (2.2 + high))
    figure, grid = plt.subplots(rows, columns, squeeze=False, figsize=size, sharey=sharey or orient == "y")
    for unused in grid.flat[len(parts) :]:
        unused.remove()
    for axes, (name, own) in zip(grid.flat, parts, strict=False):
        intervals(axes, own, by, value, hue, looks, orient)
        axes.set_title(textwrap.fill(str(name), 26))
    legend_below(figure, grid[0][0])
    figure.suptitle(title, fontsize=9)
    return figure, list(grid.flat[: len(parts)])


def arm_panels(
    panels: Mapping[str, pd.DataFrame], x: str, y: str, ylabel: str, title: str
) -> tuple[Figure, list[Axes]]:
    """Scores `y` of the arms at every `x`, a panel for each table of runs: means, bars from lowest to highest seed."""
    every = pd.concat(panels, names=["panel", None]).reset_index("panel")
    table = every.groupby(["panel", x, "arm"], sort=False)[y].agg(score="mean", low="min", high="max").reset_index()
    figure, axes = interval_panels(table, "panel", x, "score", "arm", LOOKS, title, sharey=True)
    plt.setp(axes, ylabel=ylabel)
    return figure, axes


def legend_below(figure: Figure, axes: Axes) -> None:
    """One legend for all panels, that of `axes`."""
    handles, labels = axes.get_legend_handles_labels()
    for panel in figure.axes:
        panel.legend().remove()
    columns = 2 if sum(map(len, labels)) > 70 else min(5, max(1, len(labels)))  # five long ones would be cut
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def score_curves(scores: pd.DataFrame, iou: float, arms: Sequence[str], note: str) -> Figure:
    """Scores against confidence (Fig 3): every seed a thin line, their mean bold, their range a band, the best dotted.

    A row of axes per split and N, a column per measure that is defined. Means and bands are drawn where every seed is
    defined.
    """
    here = scores[np.isclose(scores["iou_threshold"], iou) & scores["arm"].isin(list(arms))]
    measures, conditions = defined_measures(here) or ["f1_detect"], list(here.groupby(CONDITION))
    size = (WIDTH if len(measures) > 1 else 4.6, 0.8 + 2.3 * len(conditions))
    figure, grid = plt.subplots(len(conditions), len(measures), squeeze=False, sharex=True, sharey="row", figsize=size)
    for row, (condition, table) in zip(grid, conditions, strict=True):
        for axes, measure in zip(row, measures, strict=True):
            defined = table[table.groupby(["arm", "confidence"])[measure].transform("count") == table["seed"].nunique()]
            look = {"x": "confidence", "y": measure, "hue": "arm", "palette": COLORS, "hue_order": arms, "ax": axes}
            sns.lineplot(table, units="seed", estimator=None, lw=0.6, alpha=0.6, legend=False, **look)
            sns.lineplot(defined, errorbar=("pi", 100), style="arm", style_order=arms, dashes=False, lw=1.8, ms=4,
                         markers=[ARMS[arm].marker for arm in arms], **look)  # fmt: skip
            for arm, means in defined.groupby(["arm", "confidence"])[measure].mean().groupby("arm"):
                axes.axvline(means.idxmax()[1], lw=0.8, ls=":", color=COLORS[arm])
            axes.set(title=f"{NAMES[measure]}, {condition_name(condition)}", ylim=(0, 1), ylabel="score",
                     xlabel="confidence threshold")  # fmt: skip
    legend_below(figure, grid[0][0])
    figure.suptitle(f"Scores at box IoU ≥ {iou:g}; bold: mean of seeds, band: lowest to highest\n{note}", fontsize=9)
    return figure


def sizes(chosen: pd.DataFrame, tests: pd.DataFrame, measure: str, note: str) -> Figure:
    """Scores of all arms by N and split (Fig 5), from one row per run (`thresholds.headline`).

    What EXP+GEN gains of what EXP leaves, of `significance.paired_tests`, stands below each N.
    """
    splits = {f"split {split}": own for split, own in chosen.sort_values(CONDITION).groupby("split")}
    name, numbers = NAMES[measure], sorted(set(chosen["n_train"]))
    title = f"{name} by N; below: gain of EXP+GEN, share of what EXP leaves\n{note}"
    figure, panels = arm_panels(splits, "n_train", measure, f"{name} at each arm's threshold", title)
    own = tests[(tests["arm"] == "EXP+GEN") & (tests["measure"] == measure)].set_index("n_train")
    if chosen[measure].notna().any():  # from the tenth below to the tenth above, so that a gain of 0.02 is seen
        panels[0].set_ylim(np.floor(10 * chosen[measure].min()) / 10, np.ceil(10 * chosen[measure].max() + 0.2) / 10)
    for panel in panels:
        shares = own.loc["split " + own["split"] == panel.get_title(), "share_of_left"].reindex(numbers)
        texts = [f"N = {n}" + ("" if pd.isna(s) else f"\n{100 * s:+.1f} %") for n, s in shares.items()]
        panel.set_xticks(range(len(numbers)), texts)
    return figure


def waterfall(steps: pd.DataFrame, note: str) -> Figure:
    """What is lost from fresh labelled micrographs to none: a bar for each step of `worth.waterfall`, with its paired
    interval at its end; a row per measure, a column per split and N."""
    measures, conditions = list(dict.fromkeys(steps["measure"])), list(steps.groupby(CONDITION))
    shape = max(1, len(measures)), max(1, len(conditions))
    size = min(WIDTH, 1.8 + 3.2 * shape[1]), 1 + 2.2 * shape[0]
    figure, grid = plt.subplots(*shape, squeeze=False, figsize=size, sharey="row")
    for column, (condition, table) in zip(grid.T, conditions, strict=False):
        for axes, measure in zip(column, measures, strict=True):
            own = table[table["measure"] == measure]
            above = own["score"] - own["step"].fillna(0)
            places = range(len(own))
            axes.use_sticky_edges = False  # a bar without height is not cut off
            axes.bar(places, own["step"].fillna(0), 0.5, above, color=own["arm"].map(COLORS), alpha=0.4)
            axes.vlines(places, above + own["low"], above + own["high"], color="black", lw=1.2)
            for k, row in enumerate(own.itertuples()):
                axes.plot([k - 0.4, min(k + 1.4, len(own) - 0.6)], [row.score] * 2, color="#777777", lw=0.8)
                axes.plot(k, row.score, ARMS[row.arm].marker, color=COLORS[row.arm], ms=6)
                said = f"{row.score:.3f}" if pd.isna(row.step) else f"{row.step:+.3f}"
                axes.annotate(said, (k + 0.08, row.score), (2, 4), textcoords="offset points", fontsize=8)
            axes.set(title=condition_name(condition), ylabel=NAMES[measure], xlim=(-0.6, len(own) - 0.2))
            axes.set_xticks(places, own["arm"].str.replace("+", "+\n"), fontsize=8)
    if not conditions:
        grid[0][0].text(0.5, 0.5, "no two arms to compare", ha="center")
    figure.suptitle(f"From more labelled micrographs to none: steps paired by seed, with intervals\n{note}", fontsize=9)
    return figure


def paired_differences(
    pairs: pd.DataFrame, tests: pd.DataFrame, measures: Sequence[str], note: str, width: float = 6.4,
    band: tuple[float, float] = (0, PAPER_GAIN),
) -> Figure:  # fmt: skip
    """Every pair's difference as a dot, the mean with its interval beside it: a panel per measure, a row per split, N
    and, of several, arm. Grey: `band` of F1HM, the paper's gain or another. `width` in inches."""
    order = {arm: k for k, arm in enumerate(ARMS)}
    tests = tests[tests["measure"].isin(measures)].sort_values([*CONDITION, "arm"], key=lambda c: c.replace(order))
    compared = list(dict.fromkeys(tests["arm"] + " minus " + tests["baseline"]))
    rows, dots = (
        table.assign(place="split " + table["split"] + ", N = " + table["n_train"].astype(str) + (
            ": " + table["arm"] + " minus " + table["baseline"] if len(compared) > 1 else ""))
        for table in (tests, pairs)
    )  # fmt: skip
    size = width, 0.8 + len(measures) * (0.4 + 0.17 * rows["place"].nunique())
    figure, panels = plt.subplots(len(measures), figsize=size, sharex=True, squeeze=False)
    for axes, measure in zip(panels.flat, measures, strict=True):
        own, single = (table[table["measure"] == measure] for table in (rows, dots))
        intervals(axes, own, "place", "gain", "measure", {measure: ("#0072B2", "D")}, "y")
        axes.plot(single["difference"], single["place"].map(list(own["place"]).index) - 0.25, ".", color="#555", ms=4)
        axes.axvline(0, color="black", lw=0.8)
        if measure == "f1_hm":
            axes.axvspan(*band, color="#999999", alpha=0.35, lw=0)
        axes.set_title(NAMES[measure], loc="left", fontweight="bold")
    panels[-1, 0].set_xlabel("difference" + f", {compared[0]}" * (len(compared) == 1))
    figure.suptitle(note, fontsize=9)
    return figure


def quality_by_size(quality: pd.DataFrame, note: str) -> Figure:
    """Measures of image quality (rows of quality.parquet with split, n_train, model) against N, a panel each: a marker
    with its interval per model, beside the yardstick (a short line) of the same measure of labelled micrographs."""
    named = quality.replace({"measure": {"kid": "KID", "c2st_auc": "classifier AUC"}})
    table = named.assign(name="split " + named["split"].astype(str) + ", model " + named["model"].astype(str))
    table, numbers = table.sort_values("n_train", kind="stable"), sorted(set(quality["n_train"]))
    looks = {name: (CLASS_COLORS[4 - k % 5], "osD^v"[k % 5]) for k, name in enumerate(sorted(set(table["name"])))}
    title = f"Generated images by N, a marker per model; dashed: labelled micrographs\n{note}"
    figure, panels = interval_panels(table, "measure", "n_train", "value", "name", looks, title)
    for axes, (_, own) in zip(panels, table.groupby("measure", sort=False), strict=True):
        places = own["n_train"].map(numbers.index)
        axes.hlines(own["yardstick"], places - 0.4, places + 0.4, color="black", lw=1, ls="--")
        axes.set_xlabel("N")
    return figure


def error_kinds(counts: pd.DataFrame, note: str) -> Figure:
    """Errors of each kind per defect in one condition, a panel per side: means, bars from lowest to highest seed."""
    sides = {f"of the {side}": own for side, own in counts.groupby("against", sort=False)}
    title = f"Kinds of errors, each arm at its threshold\n{note}"
    figure, panels = arm_panels(sides, "error", "per_truth", "errors per defect", title)
    panels[0].set_ylim(bottom=0)
    return figure


def typical(images: ArrayLike, label_maps: NDArray[np.uint8]) -> int:
    """The number of a patch to show, of uint8 [P, S, S] and class codes [P, S, S], so that nobody picks it.

    Of the patches with the most classes the one with the median contrast (standard deviation of the grey level).
    """
    many = np.array([len(np.unique(codes[codes > 0])) for codes in label_maps])
    most = np.flatnonzero(many == many.max())
    return int(most[np.argsort(np.asarray(images)[most].std(axis=(1, 2)))][len(most) // 2])


def strip(pictures: Mapping[str, NDArray], found: pd.DataFrame, classes: Mapping[int, str], note: str) -> Figure:
    """The method in pictures of one patch by title, [S, S] grey levels or [S, S, 3] colours; on the last the boxes of
    `found` (x1, y1, x2, y2 in px, label); `classes` the names by code."""
    figure = image_rows({"": [*pictures.values()]}, note, [*pictures], list(classes.values()), side=2)
    shown = np.percentile(next(iter(pictures.values())), [0.5, 99.5])  # the same grey levels in all
    for axes in figure.axes:
        axes.images[0].set_clim(*shown)
    draw_boxes(figure.axes[-1], found[BOX], found["label"].map(class_color))
    return figure

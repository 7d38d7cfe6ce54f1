"""Figures of what goes wrong and of what a study can show."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from companion.plots import ARM_COLORS, ARM_MARKERS
from companion.evaluation.plots import NAMES


def _arms(table: pd.DataFrame) -> list[str]:
    return [arm for arm in ARM_COLORS if (table["arm"] == arm).any()]


def error_kinds(counts: pd.DataFrame, note: str) -> Figure:
    """Errors of each kind per annotated defect in one condition: bars are means over seeds, dots single runs."""
    arms, kinds = _arms(counts), list(dict.fromkeys(counts["error"]))
    figure, axes = plt.subplots(figsize=(6.4, 3))
    for k, arm in enumerate(arms):
        own = counts[counts["arm"] == arm]
        x = np.arange(len(kinds)) + (k - (len(arms) - 1) / 2) * (width := 0.78 / max(3, len(arms)))
        means = own.groupby("error")["per_truth"].mean().reindex(kinds)
        axes.bar(x, means, 0.92 * width, color=ARM_COLORS[arm], alpha=0.5, label=arm)
        for place, kind in zip(x, kinds, strict=True):
            points = own.loc[own["error"] == kind, "per_truth"]
            axes.plot(np.full(len(points), place), points, ARM_MARKERS[arm], color=ARM_COLORS[arm], ms=3)
    axes.set_xticks(range(len(kinds)), kinds)
    axes.set_ylabel("errors per annotated defect")
    axes.set_title(f"Kinds of errors, each arm at its best threshold\n{note}")
    axes.legend()
    return figure


def recall_groups(tables: dict[str, pd.DataFrame], note: str) -> Figure:
    """Recall of each group with its interval over micrographs: one panel per grouping, arms of one condition beside.

    Parameters
    ----------
    tables : grouping -> columns arm, group, truths, recall, low, high
    """
    widths = [max(1, table["group"].nunique()) for table in tables.values()]
    figure, panels = plt.subplots(
        1, len(tables), figsize=(1.5 + 1.1 * sum(widths), 3), sharey=True, squeeze=False, width_ratios=widths
    )
    for panel, (name, table) in zip(panels[0], tables.items(), strict=True):
        groups, arms = list(dict.fromkeys(table["group"])), _arms(table)
        for k, arm in enumerate(arms):
            own = table[table["arm"] == arm].set_index("group").reindex(groups)
            x = np.arange(len(groups)) + (k - (len(arms) - 1) / 2) * 0.8 / max(4, len(arms))
            error = np.nan_to_num(np.stack([own["recall"] - own["low"], own["high"] - own["recall"]]))
            panel.errorbar(x, own["recall"], np.clip(error, 0, None), fmt=ARM_MARKERS[arm], color=ARM_COLORS[arm],
                           capsize=3, ms=5, label=arm)  # fmt: skip
        panel.set_xticks(range(len(groups)), [str(g).replace(" (", "\n(") for g in groups])
        panel.set(title=f"by {name}", xlim=(-0.5, len(groups) - 0.5), ylim=(0, 1.02))
    panels[0][0].set_ylabel("share of defects found")
    panels[0][-1].legend()
    figure.suptitle(f"What is found, with intervals over micrographs\n{note}", fontsize=9)
    return figure


def materials(table: pd.DataFrame, published: dict[str, tuple[float, float]], note: str) -> Figure:
    """Mean absolute error of defect size and areal density per class in one condition, and published (mean, spread)."""
    figure, panels = plt.subplots(1, 2, figsize=(7.4, 3))
    for panel, quantity in zip(panels, ("size", "density"), strict=True):
        own = table[table["quantity"] == quantity]
        classes, arms = list(dict.fromkeys(own["class"])), _arms(own)
        mean, spread = published[quantity]
        panel.axhspan(100 * (mean - spread), 100 * (mean + spread), color="#999999", alpha=0.25, lw=0)
        panel.axhline(100 * mean, color="#666666", lw=1, label="Jacobs et al. 2022")
        for k, arm in enumerate(arms):
            rows = own[own["arm"] == arm].set_index("class").reindex(classes)
            x = np.arange(len(classes)) + (k - (len(arms) - 1) / 2) * 0.8 / max(4, len(arms))
            error = np.nan_to_num(np.stack([rows["error"] - rows["low"], rows["high"] - rows["error"]]))
            panel.errorbar(x, 100 * rows["error"], 100 * np.clip(error, 0, None), fmt=ARM_MARKERS[arm],
                           color=ARM_COLORS[arm], capsize=3, ms=5, label=arm)  # fmt: skip
        panel.set_xticks(range(len(classes)), classes)
        panel.set(title=f"error of {quantity}", ylabel="mean absolute error, %", xlim=(-0.5, len(classes) - 0.5))
        panel.set_ylim(bottom=0)
    panels[0].legend()
    figure.suptitle(f"What a materials scientist reads, with intervals over micrographs\n{note}", fontsize=9)
    return figure


def resampled(table: pd.DataFrame, measure: str, note: str) -> Figure:
    """Intervals of the difference from tests over seeds and from bootstraps over micrographs.

    Parameters
    ----------
    table : columns split, n_train, resampled (what varies), difference, low, high
    """
    rows = table.sort_values(["split", "n_train"], kind="stable").reset_index(drop=True)
    kinds = list(dict.fromkeys(rows["resampled"]))
    figure, axes = plt.subplots(figsize=(6.4, 1.2 + 0.35 * len(rows)))
    for k, kind in enumerate(kinds):
        own = rows[rows["resampled"] == kind]
        error = np.nan_to_num(np.stack([own["difference"] - own["low"], own["high"] - own["difference"]]))
        axes.errorbar(own["difference"], own.index, xerr=np.clip(error, 0, None), fmt=("o", "s", "D")[k % 3],
                      color=("#0072B2", "#D55E00", "#009E73")[k % 3], capsize=3, label=kind)  # fmt: skip
    axes.axvline(0, color="black", lw=0.8)
    axes.set_yticks(range(len(rows)), [f"split {s}, N = {n}" for s, n in rows[["split", "n_train"]].to_numpy()])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(f"difference in {NAMES[measure]}, EXP+GEN minus EXP")
    axes.set_title(f"The same difference; what varies differs\n{note}")
    axes.legend(title="varies", bbox_to_anchor=(1, 1), loc="upper left")
    return figure


def power(seeds: pd.DataFrame, effect: float, note: str) -> Figure:
    """Power of the paired t-test against the number of seeds of one split."""
    figure, axes = plt.subplots(figsize=(5, 3))
    axes.plot(seeds["seeds"], seeds["power"], "o-", color="#0072B2", ms=4)
    axes.axhline(0.8, color="black", lw=0.8, ls=":")
    axes.set(xlabel="detector seeds per arm", ylabel="power", ylim=(0, 1.02), xscale="log")
    axes.set_xticks(seeds["seeds"], [str(n) for n in seeds["seeds"]], minor=False)
    axes.minorticks_off()
    axes.set_title(f"Chance to see a gain of {effect:g} on one split, p < 0.05\n{note}")
    return figure

"""The confidence at which detectors are compared: three ways of choosing it, and every score at each of them.

The paper reads the best threshold from the test images, which flatters. One chosen on validation micrographs has seen
none of them, and is the headline; a fixed one is COCO's habit.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from companion.evaluation.wording import ARM, READ, RUN

VALIDATED, BEST, FIXED = "chosen on validation", "best on test", "fixed"


def operating_points(scores: pd.DataFrame, iou: float, measure: str, fallback: float) -> pd.DataFrame:
    """Confidence with the highest mean over seeds, for every split, N and arm; of equal means the lowest.

    On the images that are scored it is optimistic. A mean counts only where every seed is defined: a curve must not win
    by losing its bad seeds. Columns split, n_train, arm, confidence (`fallback` where nothing is defined).
    """
    here = scores[np.isclose(scores["iou_threshold"], iou)]
    means = here.groupby([*ARM, "confidence"])[measure].agg(lambda seeds: seeds.mean(skipna=False))
    best = means.unstack("confidence").fillna(-1.0).idxmax(axis=1)
    defined = means.notna().groupby(ARM).any()
    return best.where(defined, fallback).rename("confidence").reset_index()


def choices(
    scores: pd.DataFrame, validation: pd.DataFrame | None, iou: float, measure: str, confidence: float
) -> pd.DataFrame:  # fmt: skip
    """The threshold of every arm by the three ways of choosing it, the headline first.

    `scores` and `validation` are scores.parquet and the same of validation micrographs, None where a split holds none
    back; `confidence` is the fixed one, and that of an arm whose `measure` is undefined everywhere. Columns choice
    (`VALIDATED`, where there is validation; `BEST`; `FIXED`), split, n_train, arm, confidence.
    """
    best = operating_points(scores, iou, measure, confidence)
    points = {BEST: best, FIXED: best.assign(confidence=confidence)}
    if validation is not None:
        points = {VALIDATED: operating_points(validation, iou, measure, confidence), **points}
    return pd.concat([table.assign(choice=name) for name, table in points.items()], ignore_index=True)


def read_at(
    scores: Mapping[str, pd.DataFrame], precision: pd.DataFrame, points: pd.DataFrame, iou: float
) -> pd.DataFrame:
    """chosen.parquet: scores of every run at every choice of its threshold, against labels and against the truth.

    Columns choice, against, split, n_train, arm, seed, confidence, those of scores.parquet, map50, ap50_1, ...

    Parameters
    ----------
    scores : tables like scores.parquet by what they are scored against, "labels" and "truth"
    precision : columns against, the keys of a run, and those of `precision.mean_precision`
    points : `choices`
    """
    tables = [table[np.isclose(table["iou_threshold"], iou)].assign(against=name) for name, table in scores.items()]
    read = pd.concat(tables).merge(points, on=[*ARM, "confidence"]).merge(precision, on=["against", *RUN])
    order = {name: k for k, name in enumerate(points["choice"].unique())}
    read = read.sort_values([*READ, *RUN], key=lambda c: c.map(order) if c.name == "choice" else c)
    return read[[*READ, *RUN, *read.columns.drop([*READ, *RUN])]].reset_index(drop=True)


def headline(table: pd.DataFrame) -> pd.DataFrame:
    """The rows that a page speaks of first: threshold chosen on validation where that was done, against labels."""
    choice = VALIDATED if (table["choice"] == VALIDATED).any() else BEST
    return table[(table["choice"] == choice) & (table["against"] == "labels")]

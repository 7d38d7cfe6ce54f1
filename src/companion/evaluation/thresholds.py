"""The confidence at which detectors are compared, and how much the usual choice of it flatters.

The paper reads the best threshold from the test images. A threshold chosen on validation micrographs has seen none of
them, and is the headline; the difference of the two test scores is the optimism of the former.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from companion.evaluation.runs import Run
from companion.evaluation.scores import Counts, pooled
from companion.evaluation.wording import ARM, READ, RUN
from companion.stats import cluster_weights, percentile_interval

VALIDATED, BEST, FIXED = "chosen on validation", "best on test", "fixed"
Counted = Sequence[tuple[Run, Counts]]  # runs and their counts


def operating_points(scores: pd.DataFrame, iou: float, measure: str, fallback: float) -> pd.DataFrame:
    """Confidence with the highest mean over seeds, for every split, N and arm; of equal means the lowest.

    It is chosen on the images that are scored, so the score at it is optimistic. A mean counts only where every seed
    is defined: a curve must not win by losing its bad seeds.

    Returns
    -------
    split, n_train, arm, confidence (`fallback` where the measure is undefined everywhere)
    """
    here = scores[np.isclose(scores["iou_threshold"], iou)]
    means = here.groupby([*ARM, "confidence"])[measure].agg(lambda seeds: seeds.mean(skipna=False))
    curves = means.unstack("confidence").sort_index()
    confidence, values = curves.columns.to_numpy(dtype=float), curves.to_numpy(dtype=float)
    best = _where_highest(np.broadcast_to(confidence, values.shape), values)
    return curves.index.to_frame(index=False).assign(confidence=np.where(np.isnan(best), fallback, best))


def choices(
    scores: pd.DataFrame, validated: pd.DataFrame, iou: float, measure: str, confidence: float
) -> pd.DataFrame:  # fmt: skip
    """The threshold of every arm by the three ways of choosing it, the headline first.

    Parameters
    ----------
    scores : scores.parquet
    validated : `optimism` of them
    confidence : the fixed one, and that of an arm whose `measure` is undefined everywhere

    Returns
    -------
    choice (`VALIDATED`, where validation micrographs were held back; `BEST`; `FIXED`), split, n_train, arm, confidence
    """
    best = operating_points(scores, iou, measure, confidence)
    points = {BEST: best, FIXED: best.assign(confidence=confidence)}
    if validated["validation_micrographs"].all():
        there = validated.rename(columns={"on_validation": "confidence"})[[*ARM, "confidence"]]
        points = {VALIDATED: there.fillna({"confidence": confidence}), **points}
    return pd.concat([table.assign(choice=name) for name, table in points.items()], ignore_index=True)


def read_at(
    scores: Mapping[str, pd.DataFrame], precision: pd.DataFrame, points: pd.DataFrame, iou: float
) -> pd.DataFrame:
    """chosen.parquet: scores of every run at every choice of its threshold, against labels and against the truth.

    Parameters
    ----------
    scores : tables like scores.parquet by what they are scored against, "labels" and "truth"
    precision : columns against, the keys of a run, and those of `precision.mean_precision`
    points : `choices`

    Returns
    -------
    choice, against, split, n_train, arm, seed, confidence, the columns of scores.parquet, map50, ap50_1, ...
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


def optimism(
    test: Counted, validation: Counted, iou: float, measure: str, rng: np.random.Generator, resamples: int, level: float
) -> pd.DataFrame:
    """Test scores at the confidence chosen on validation patches, beside those at the one that is best on test.

    Both are chosen once per split, N and arm, as in `operating_points`. For the interval, test and validation
    micrographs are drawn with replacement and both confidences are chosen anew in every draw. The optimism is never
    negative, by construction; it holds the luck of the one choice as well as the bad luck of the other.

    Returns
    -------
    split, n_train, arm, on_test and on_validation (confidences), best_on_test and chosen_on_validation (test scores at
    them, mean over seeds), optimism (their difference) with low and high, seeds, test_micrographs,
    validation_micrographs; NaN where there is no validation patch or the measure is undefined everywhere
    """
    rows, groups = [], ({}, {})
    for group, counted in zip(groups, (test, validation), strict=True):
        for run, counts in counted:
            group.setdefault(tuple(run.keys[key] for key in ARM), []).append((run, counts))
    for keys, own in sorted(groups[0].items()):
        held_back = groups[1].get(keys, [])
        scored, n_test = _curves(own, iou, measure, rng, resamples)  # (1 + R, C)
        choosing, n_val = np.full(scored.shape, np.nan), 0
        if held_back:
            choosing, n_val = _curves(held_back, iou, measure, rng, resamples)
        confidence = np.array([own[0][1].confidence])  # (1, C)
        points = (_where_highest(confidence, curves[:1])[0] for curves in (scored, choosing))
        best, chosen = _where_highest(scored, scored), _where_highest(scored, choosing)  # (1 + R,)
        interval = percentile_interval((best - chosen)[1:], level)
        rows.append((*keys, *points, best[0], chosen[0], best[0] - chosen[0], *interval, len(own), n_test, n_val))
    columns = ["on_test", "on_validation", "best_on_test", "chosen_on_validation", "optimism", "low", "high", "seeds",
               "test_micrographs", "validation_micrographs"]  # fmt: skip
    return pd.DataFrame(rows, columns=[*ARM, *columns])


def _curves(
    counted: Counted, iou: float, measure: str, rng: np.random.Generator, resamples: int
) -> tuple[NDArray[np.float64], int]:
    """[1 + R, C] mean score over seeds (NaN where one is undefined) of all micrographs, then of each draw; how many."""
    images = counted[0][0].patches.index["image"]
    weights = np.vstack([np.ones(len(images)), cluster_weights(images, rng, resamples)])  # (1 + R, P)
    i = counted[0][1].iou.index(iou)
    slices = (replace(counts, pairs=counts.pairs[:, i : i + 1], iou=(iou,)) for _, counts in counted)
    return np.mean([pooled(one, weights)[measure][:, 0] for one in slices], axis=0), images.nunique()


def _where_highest(values: NDArray[np.float64], curves: NDArray[np.float64]) -> NDArray[np.float64]:
    """[R] entry of each row of `values` where that of `curves` is highest, the first of equal ones; NaN without."""
    places = np.where(np.isnan(curves), -np.inf, curves).argmax(axis=1)
    found = np.take_along_axis(values, places[:, None], axis=1)[:, 0]
    return np.where(np.isnan(curves).all(axis=1), np.nan, found)

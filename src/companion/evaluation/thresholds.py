"""The confidence at which detectors are compared, and how much the usual choice of it flatters.

The paper reads the best threshold from the test images. A threshold chosen on validation micrographs has seen none of
them; the difference of the two test scores is the optimism of the former.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from companion.evaluation.conditions import CONDITION
from companion.evaluation.runs import Run
from companion.evaluation.scores import Counts, pooled
from companion.stats import cluster_weights, percentile_interval


def operating_points(scores: pd.DataFrame, iou: float, measure: str, fallback: float) -> pd.DataFrame:
    """Confidence with the highest mean over seeds, for every split, N and arm; of equal means the lowest.

    It is chosen on the images that are scored, so the score at it is optimistic. A mean counts only where every seed
    is defined: a curve must not win by losing its bad seeds.

    Parameters
    ----------
    scores : scores.parquet
    measure : e.g. "f1_hm"
    fallback : the confidence of conditions where the measure is undefined everywhere

    Returns
    -------
    split, n_train, arm, confidence, chosen_by ("best on test" or "fixed: ... undefined")
    """
    here = scores[np.isclose(scores["iou_threshold"], iou)]
    means = here.groupby([*CONDITION, "arm", "confidence"])[measure].agg(lambda seeds: seeds.mean(skipna=False))
    curves = means.unstack("confidence").sort_index()
    best = curves.columns.to_numpy(dtype=float)[_best(curves.to_numpy(dtype=float))]
    undefined = curves.isna().all(axis=1).to_numpy()
    return curves.index.to_frame(index=False).assign(
        confidence=np.where(undefined, fallback, best),
        chosen_by=np.where(undefined, f"fixed: {measure} is undefined", "best on test"),
    )


def confidence_of(run: Run, chosen: pd.DataFrame) -> float:
    """The confidence of a run's split, N and arm among those `chosen` (see `operating_points`)."""
    keys = [*CONDITION, "arm"]
    return float(chosen.set_index(keys)["confidence"][tuple(run.keys[key] for key in keys)])


def optimism(
    found: Sequence[Run], counts: Sequence[Counts], val_counts: Sequence[Counts], iou: float, measure: str,
    rng: np.random.Generator, resamples: int, level: float,
) -> pd.DataFrame:  # fmt: skip
    """Test scores at the confidence chosen on validation patches, beside those at the one that is best on test.

    Both are chosen once per split, N and arm, as in `operating_points`. For the interval, test and validation
    micrographs are drawn with replacement and both confidences are chosen anew in every draw. The optimism is never
    negative, by construction; it holds the luck of the one choice as well as the bad luck of the other.

    Without validation patches, `resamples` random halves of the test micrographs stand in: one half chooses, the other
    is scored, and its own best confidence is the comparison: an upper estimate, for a half's best is luckier.

    Parameters
    ----------
    found, counts : runs and their counts on test patches
    val_counts : counts of the runs that have validation patches, in their order

    Returns
    -------
    split, n_train, arm, on_test and on_validation (confidences; NaN where the measure is undefined everywhere),
    best_on_test and chosen_on_validation (test scores at them, mean over seeds), optimism (their difference) with low
    and high, seeds, test_micrographs, validation_micrographs (0: halves)
    """
    held_back, groups = iter(val_counts), {}
    for run, counted in zip(found, counts, strict=True):
        own = (run, counted, next(held_back) if run.val else None)
        groups.setdefault(tuple(run.keys[key] for key in (*CONDITION, "arm")), []).append(own)
    rows = []
    for keys, own in sorted(groups.items()):
        runs, test, val = zip(*own, strict=True)
        images, confidence = runs[0].patches.index["image"], np.append(test[0].confidence, np.nan)  # -1: nowhere
        on_test = confidence[_best(_curves(test, iou, measure, np.ones((1, len(images)))))[0]]
        if runs[0].val:
            val_images = runs[0].val.patches.index["image"]
            scored = _curves(test, iou, measure, _draws(images, rng, resamples))  # (1 + R, C)
            choosing = _curves(val, iou, measure, _draws(val_images, rng, resamples))
            ends = np.stack([_at_best(scored, scored), _at_best(scored, choosing)])
            low, high = percentile_interval(ends[0, 1:] - ends[1, 1:], level)
            values, on_validation, n_val = ends[:, 0], confidence[_best(choosing)[0]], val_images.nunique()
        else:
            half = rng.permuted(np.tile(np.arange(images.nunique()) % 2, (resamples, 1)), axis=1)
            half = half[:, np.unique(images, return_inverse=True)[1]]
            scored, choosing = (_curves(test, iou, measure, weights) for weights in (half, 1 - half))  # (R, C)
            ends = np.stack([_at_best(scored, scored), _at_best(scored, choosing)])
            ends = ends[:, ~np.isnan(ends).any(axis=0)]
            values = ends.mean(axis=1) if ends.size else np.full(2, np.nan)
            low, high, on_validation, n_val = np.nan, np.nan, np.nan, 0
        optimism = values[0] - values[1], low, high
        rows.append((*keys, on_test, on_validation, *values, *optimism, len(own), images.nunique(), n_val))
    columns = ["on_test", "on_validation", "best_on_test", "chosen_on_validation", "optimism", "low", "high", "seeds",
               "test_micrographs", "validation_micrographs"]  # fmt: skip
    return pd.DataFrame(rows, columns=[*CONDITION, "arm", *columns])


def _draws(images: pd.Series, rng: np.random.Generator, resamples: int) -> NDArray[np.float64]:
    """[1 + R, P] how often each patch counts: once, then in every draw of whole micrographs."""
    names, weights = cluster_weights(images, rng, resamples)
    return np.vstack([np.ones(len(images)), weights[:, np.searchsorted(names, images)]])


def _curves(counts: Sequence[Counts], iou: float, measure: str, weights: NDArray) -> NDArray[np.float64]:
    """[R, C] mean over seeds of the score of each draw of patches [R, P]; NaN where it is undefined for any seed."""
    i = counts[0].iou.index(iou)
    slices = (replace(c, pairs=c.pairs[:, i : i + 1], iou=c.iou[i : i + 1]) for c in counts)
    return np.mean([pooled(one, weights)[measure][:, 0] for one in slices], axis=0)


def _best(curves: NDArray[np.float64]) -> NDArray[np.intp]:
    """[R] position of the highest entry of each row [R, C], the first of equal ones; -1 where all are NaN."""
    empty = np.isnan(curves).all(axis=1)
    return np.where(empty, -1, np.where(np.isnan(curves), -np.inf, curves).argmax(axis=1))


def _at_best(scores: NDArray[np.float64], chosen_by: NDArray[np.float64]) -> NDArray[np.float64]:
    """[R] entry of each row of `scores` where the same row of `chosen_by` is highest; NaN where that is nowhere."""
    places = _best(chosen_by)
    found = np.take_along_axis(scores, np.maximum(places, 0)[:, None], axis=1)[:, 0]
    return np.where(places < 0, np.nan, found)

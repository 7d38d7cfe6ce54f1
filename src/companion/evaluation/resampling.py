"""Bootstrap intervals that resample what was sampled: whole micrographs, and detector seeds within conditions.

Patches of one micrograph, and defects of one patch, are not independent; resampling them alone gives intervals
that are too short (pseudo-replication).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from companion.evaluation.scores import Counts, pooled

Interval = tuple[float, float, float]


def ratio_interval(
    numerator: ArrayLike, denominator: ArrayLike, rng: np.random.Generator, resamples: int, level: float
) -> Interval:
    """Ratio of sums over clusters (one entry per micrograph), with a percentile interval over resampled clusters.

    Returns
    -------
    value, low, high; the interval is NaN for fewer than two clusters, everything for a denominator of 0
    """
    a, b = np.asarray(numerator, dtype=float), np.asarray(denominator, dtype=float)
    if b.sum() == 0:
        return (float("nan"),) * 3
    value = float(a.sum() / b.sum())
    if len(a) < 2:
        return value, float("nan"), float("nan")
    weights = resampled_weights(len(a), rng, resamples)
    sums = weights @ b
    return value, *percentiles((weights @ a)[sums > 0] / sums[sums > 0], level)


def mean_interval(values: ArrayLike, rng: np.random.Generator, resamples: int, level: float) -> Interval:
    """Mean with a percentile interval; see `ratio_interval`."""
    array = np.asarray(values, dtype=float)
    return ratio_interval(array, np.ones(len(array)), rng, resamples, level)


def resampled_weights(n: int, rng: np.random.Generator, resamples: int) -> NDArray[np.float64]:
    """[resamples, n] how often each of n things is drawn when n are drawn with replacement."""
    return rng.multinomial(n, np.full(n, 1 / n), size=resamples).astype(float)


def percentiles(values: NDArray[np.float64], level: float) -> tuple[float, float]:
    """Percentile interval of resampled values; undefined ones are left out."""
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return float("nan"), float("nan")
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def nested_bootstrap(
    arms: tuple[Sequence[Counts], Sequence[Counts]],
    images: Sequence[ArrayLike],
    places: tuple[tuple[int, int], tuple[int, int]],
    measure: str,
    rng: np.random.Generator,
    resamples: int,
    level: float,
    seeds: bool = True,
) -> dict[str, float | int]:
    """Difference of two arms on one split, resampling test micrographs and, within that, detector seeds.

    Every resample draws micrographs with replacement (the same for both arms and all seeds: the comparison is
    paired by image) and then pairs of runs; the statistic is the mean over the pairs of the difference of the score
    pooled over the drawn micrographs.

    Parameters
    ----------
    arms : counts of the two arms, run k of one paired with run k of the other
    images : [P] micrograph of each patch
    places : (IoU, confidence) position in the counts, per arm
    measure : e.g. "f1_hm"
    seeds : whether pairs of runs are resampled too; False shows the spread of the test images alone

    Returns
    -------
    difference, low, high, p (share of resamples on the other side of zero, doubled), images, pairs
    """
    names, member = np.unique(np.asarray(images), return_inverse=True)
    draws = resampled_weights(len(names), rng, resamples)[:, member]  # (R, P)
    everything = np.ones((1, len(member)))

    def differences(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """[R, runs]"""
        columns = []
        for first, second in zip(*arms, strict=True):
            values = [
                pooled(at(counts, place), weights)[measure][..., 0, 0]
                for counts, place in zip((first, second), places, strict=True)
            ]
            columns.append(values[1] - values[0])
        return np.stack(columns, axis=-1)

    drawn = differences(draws)
    n_runs = drawn.shape[1]
    if seeds:
        runs = resampled_weights(n_runs, rng, resamples) / n_runs
        drawn = (drawn * runs).sum(axis=1)
    else:
        drawn = drawn.mean(axis=1)
    low, high = percentiles(drawn, level)
    finite = drawn[np.isfinite(drawn)]
    p = 2 * min((finite <= 0).mean(), (finite >= 0).mean()) if finite.size else float("nan")
    return {
        "difference": float(differences(everything).mean()), "low": low, "high": high, "p": min(1.0, float(p)),
        "images": len(names), "pairs": n_runs,
    }  # fmt: skip


def at(counts: Counts, place: tuple[int, int]) -> Counts:
    """`counts` at one IoU and one confidence, given by position."""
    i, c = place
    return Counts(
        counts.pairs[:, i : i + 1, c : c + 1], counts.predicted[:, c : c + 1], counts.truths, counts.iou[i : i + 1],
        counts.confidence[c : c + 1], counts.classes, counts.patches,
    )  # fmt: skip


def threshold_optimism(
    counts: Counts, images: ArrayLike, iou: int, measure: str, rng: np.random.Generator, repeats: int
) -> pd.Series:
    """How much a threshold chosen on the scored images flatters, for one run.

    Half of the micrographs choose the threshold, the other half are scored at it, and the other way round; a random
    halving is repeated. The best-on-test score of the same halves is the comparison, so both have the same images.

    Returns
    -------
    best_on_test, chosen_elsewhere, optimism (their difference), halvings (in which both were defined)
    """
    names, member = np.unique(np.asarray(images), return_inverse=True)
    here = Counts(
        counts.pairs[:, iou : iou + 1], counts.predicted, counts.truths, counts.iou[iou : iou + 1], counts.confidence,
        counts.classes, counts.patches,
    )  # fmt: skip
    found = []
    for _ in range(repeats):
        half = rng.permutation(len(names)) < len(names) // 2
        weights = np.stack([half[member], ~half[member]]).astype(float)
        scores = pooled(here, weights)[measure][:, 0]  # (2, C)
        if np.isnan(scores).all(axis=1).any():
            continue
        best = np.nanargmax(scores, axis=1)
        found.append((scores[[0, 1], best].mean(), scores[[0, 1], best[::-1]].mean()))
    columns = ["best_on_test", "chosen_elsewhere"]
    means = pd.DataFrame(found, columns=columns, dtype=float).dropna()
    result = means.mean() if len(means) else pd.Series(float("nan"), index=columns)
    return pd.concat([result, pd.Series({"optimism": result.iloc[0] - result.iloc[1], "halvings": float(len(means))})])

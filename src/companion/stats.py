"""Resampling by cluster and the classifier two-sample test: the statistics that several chapters share."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def cluster_weights(groups: ArrayLike, rng: np.random.Generator, resamples: int) -> NDArray[np.int64]:
    """How often each value is drawn in each bootstrap resample of whole clusters (Efron and Tibshirani 1993).

    Values of one micrograph are alike, so whole micrographs are drawn, never single values: `groups` [n] names that of
    each. Equal sets of clusters are drawn alike from generators in one state. [R, n] for R `resamples`.
    """
    names, place = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) == 0:
        return np.zeros((resamples, 0), dtype=np.int64)
    return rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)[:, place]


def ratio_interval(
    above: ArrayLike, below: ArrayLike, groups: ArrayLike, rng: np.random.Generator, resamples: int, level: float = 0.95
) -> tuple[Floats, Floats, Floats]:
    """Sum of `above` [n, G] by sum of `below` [n, G] or [n, 1], NaN where that is 0: ratio, low and high [G].

    The interval is over clusters: defects of one micrograph share density, size and orientation, so that resampling
    defects would make it far too narrow.
    """
    sums = [pd.DataFrame(np.asarray(each, dtype=float)).groupby(np.asarray(groups)).sum() for each in (above, below)]
    drawn = cluster_weights(sums[0].index, rng, resamples)
    weights = np.vstack([np.ones(len(sums[0])), drawn])  # (1 + R, clusters)
    total, n = (weights @ each.to_numpy() for each in sums)
    ratios = np.divide(total, n, out=np.full(total.shape, np.nan), where=n > 0)
    return ratios[0], *percentile_interval(ratios[1:], level)


def percentile_interval(resampled: Floats, level: float = 0.95) -> tuple[Floats, Floats]:
    """Bootstrap percentile interval over the first axis, ignoring undefined (NaN) resamples; NaN where fewer than half
    of them are defined."""
    resampled = np.asarray(resampled, dtype=float)
    if len(resampled) == 0:
        return np.full(resampled.shape[1:], np.nan)[()], np.full(resampled.shape[1:], np.nan)[()]
    tail, few = 100 * (1 - level) / 2, np.isnan(resampled).mean(axis=0) > 0.5
    with np.errstate(all="ignore"):
        low, high = np.nanpercentile(np.where(few, 0.0, resampled), [tail, 100 - tail], axis=0)
    return np.where(few, np.nan, low)[()], np.where(few, np.nan, high)[()]


def c2st_auc(
    a: Floats, b: Floats, groups_a: ArrayLike, groups_b: ArrayLike, rng: np.random.Generator, deals: int = 20,
    folds: int = 5, penalty: float = 0.1,
) -> float:  # fmt: skip
    """Classifier two-sample test (Lopez-Paz and Oquab 2017): how well a classifier tells two sets apart.

    Logistic regression on standardised features, scored on clusters that it has not seen, mean over `deals` random
    deals of clusters to folds, as one deal of few clusters says little.

    Parameters
    ----------
    a, b : features [n, F] and [m, F]
    groups_a, groups_b : cluster of each row; equal names in both are the same cluster and held out together
    penalty : inverse strength C of the L2 penalty

    Returns
    -------
    Area under the ROC curve: 0.5 cannot tell (what is below is chance, and given as 0.5), 1 always. NaN where a set has
    fewer than two clusters.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import GroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = np.concatenate([a, b]), np.repeat([0, 1], [len(a), len(b)])
    clusters = np.unique(np.concatenate([np.asarray(groups_a).astype(str), np.asarray(groups_b).astype(str)]),
                         return_inverse=True)[1]  # fmt: skip
    folds = min(folds, *(len(np.unique(clusters[y == side])) for side in (0, 1)))
    if folds < 2:
        return float("nan")
    areas = []
    for _ in range(deals):
        splitter = GroupKFold(folds, shuffle=True, random_state=int(rng.integers(2**31)))
        model = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=1000))
        for seen, held in splitter.split(x, y, clusters):
            if len(np.unique(y[held])) == 2 and len(np.unique(y[seen])) == 2:
                areas.append(roc_auc_score(y[held], model.fit(x[seen], y[seen]).decision_function(x[held])))
    return max(0.5, float(np.mean(areas))) if areas else float("nan")

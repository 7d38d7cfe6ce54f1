"""Which prediction is which truth: three rules, at every IoU and every confidence threshold at once.

The authors' rule lets each truth, in file order, take its best unused prediction; COCO's lets each prediction,
in order of its score, take its best unused truth; the optimal one makes as many pairs as there can be. They
differ only where defects crowd. Classes are ignored: where a pair must not be, its overlap is given as -1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from companion.errors import CompanionError, nearest

Matching = Literal["truth-greedy", "score-greedy", "optimal"]
MATCHINGS: tuple[str, ...] = get_args(Matching)


def score_order(scores: NDArray, boxes: NDArray) -> NDArray[np.intp]:
    """Order of predictions [M]: highest score first, equal scores by box [M, 4], so that file order never matters."""
    keys = np.asarray(boxes, dtype=float).reshape(-1, 4)
    return np.lexsort((keys[:, 3], keys[:, 2], keys[:, 1], keys[:, 0], -np.asarray(scores, dtype=float)))


def kept(scores: NDArray, confidence: Sequence[float]) -> NDArray[np.intp]:
    """How many of `scores` [M] reach each threshold [C]; a score equal to the threshold counts.

    Thresholds are rounded to the type of the scores first: 0.7 stored as float32 reaches 0.7.
    """
    scores = np.asarray(scores)
    thresholds = np.asarray(confidence).astype(scores.dtype if scores.dtype.kind == "f" else float)
    return (scores[None, :] >= thresholds[:, None]).sum(axis=1)


def match(
    overlap: NDArray[np.float64], kept: NDArray[np.intp], iou: Sequence[float], matching: Matching = "truth-greedy"
) -> NDArray[np.int32]:
    """Prediction of every truth in one patch, for all thresholds.

    Parameters
    ----------
    overlap : [T, M] IoU of truths (file order) and predictions (in `score_order`)
    kept : [C] how many predictions, from the first on, reach each confidence (see `kept`)
    iou : [I] smallest overlap of a pair; equality counts

    Returns
    -------
    [I, C, T] index of the matched prediction in 0...M-1, or -1
    """
    rules = dict(zip(MATCHINGS, (_truth_greedy, _score_greedy, _optimal), strict=True))
    if matching not in rules:
        raise CompanionError(f"no matching rule '{matching}': {nearest(str(matching), MATCHINGS)}")
    thresholds = np.asarray(iou, dtype=float)
    found = np.full((len(thresholds), len(kept), len(overlap)), -1, dtype=np.int32)
    # Most predictions overlap nothing: only the others can be paired, and there are few of them.
    columns = np.flatnonzero((overlap >= thresholds.min(initial=np.inf)).any(axis=0)) if overlap.size else []
    if len(columns) == 0:
        return found
    candidates = overlap[:, columns]
    allowed = candidates[None] >= thresholds[:, None, None]  # (I, T, M)
    prefix = np.searchsorted(columns, kept)  # (C,) kept predictions among the candidates
    pairs = rules[matching](candidates, allowed, prefix)
    found[pairs >= 0] = columns[pairs[pairs >= 0]]
    return found


def match_once(
    overlap: NDArray[np.float64], scores: NDArray, boxes: NDArray, iou: float, matching: Matching = "truth-greedy"
) -> NDArray[np.intp]:
    """Position of the prediction of every truth [T] in one patch, or -1; predictions [M] in file order."""
    order = score_order(scores, boxes)
    found = match(overlap[:, order], np.array([len(order)]), [iou], matching)[0, 0]
    return np.append(order, -1)[found]


def _truth_greedy(candidates: NDArray, allowed: NDArray[np.bool_], prefix: NDArray[np.intp]) -> NDArray[np.intp]:
    n_iou, n_truth, n_candidates = allowed.shape
    pairs = np.full((n_iou, len(prefix), n_truth), -1)
    free = np.broadcast_to(np.arange(n_candidates) < prefix[:, None], (n_iou, len(prefix), n_candidates)).copy()
    for truth in range(n_truth):
        value = np.where(free & allowed[:, None, truth], candidates[truth], -1.0)  # (I, C, M)
        best = value.argmax(axis=2)
        taken = np.take_along_axis(value, best[..., None], axis=2)[..., 0] >= 0
        pairs[..., truth] = np.where(taken, best, -1)
        i, c = np.nonzero(taken)
        free[i, c, best[i, c]] = False
    return pairs


def _score_greedy(candidates: NDArray, allowed: NDArray[np.bool_], prefix: NDArray[np.intp]) -> NDArray[np.intp]:
    n_iou, n_truth, n_candidates = allowed.shape
    # A lower-scored prediction never changes what a higher-scored one took: one pass serves all confidences.
    owner = np.full((n_iou, n_truth), n_candidates)
    for prediction in range(n_candidates):
        free = (owner == n_candidates) & allowed[:, :, prediction]  # (I, T)
        value = np.where(free, candidates[:, prediction], -1.0)
        best = value.argmax(axis=1)
        rows = np.flatnonzero(free.any(axis=1))
        owner[rows, best[rows]] = prediction
    return np.where(owner[:, None, :] < prefix[None, :, None], owner[:, None, :], -1)


def _optimal(candidates: NDArray, allowed: NDArray[np.bool_], prefix: NDArray[np.intp]) -> NDArray[np.intp]:
    from scipy.optimize import linear_sum_assignment

    n_iou, n_truth, _ = allowed.shape
    pairs = np.full((n_iou, len(prefix), n_truth), -1)
    # One more pair outweighs any sum of overlaps, so the number of pairs comes first and overlap second.
    value = np.where(allowed, 1.0 + min(candidates.shape) + candidates, 0.0)
    for size in np.unique(prefix[prefix > 0]):
        for i in range(n_iou):
            truths, predictions = linear_sum_assignment(value[i, :, :size], maximize=True)
            good = allowed[i, truths, predictions]
            pairs[i][np.ix_(prefix == size, truths[good])] = predictions[good]
    return pairs

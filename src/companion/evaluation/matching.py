"""Which prediction is which truth: the authors' rule and COCO's, at every IoU and every confidence at once.

The authors' rule (`truth-greedy`) lets each truth, in file order, take its best unused prediction; COCO's
(`score-greedy`) lets each prediction, in order of its score, take its best unused truth. They differ only where defects
crowd. Classes are ignored: where a pair must not be, its overlap is given as -1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from companion.errors import CompanionError, nearest

Matching = Literal["truth-greedy", "score-greedy"]
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
    if matching not in MATCHINGS:
        raise CompanionError(f"no matching rule '{matching}': {nearest(str(matching), MATCHINGS)}")
    (n_truth, n_found), reached = overlap.shape, np.arange(overlap.shape[1]) < np.asarray(kept)[:, None]  # (C, M)
    allowed = overlap >= np.asarray(iou, dtype=float)[:, None, None]  # (I, T, M)
    pairs = np.full((len(allowed), len(reached), n_truth), -1, dtype=np.int32)
    if matching == "truth-greedy":
        free = np.broadcast_to(reached, (len(allowed), *reached.shape)).copy()  # (I, C, M)
        # Most predictions overlap no truth, and most truths few predictions: only these are looked at.
        for truth, columns in ((t, np.flatnonzero(allowed[:, t].any(axis=0))) for t in range(n_truth)):
            if len(columns):
                open_to = free[..., columns] & allowed[:, None, truth, columns]
                best = columns[np.where(open_to, overlap[truth, columns], -1.0).argmax(axis=2)]  # (I, C)
                i, c = np.nonzero(open_to.any(axis=2))
                pairs[i, c, truth] = best[i, c]
                free[i, c, best[i, c]] = False
        return pairs
    # A lower-scored prediction never changes what a higher-scored one took: one pass serves all confidences.
    owner = np.full((len(allowed), n_truth), n_found)
    for prediction in np.flatnonzero(allowed.any(axis=(0, 1))):
        open_to = (owner == n_found) & allowed[:, :, prediction]  # (I, T)
        best, rows = np.where(open_to, overlap[:, prediction], -1.0).argmax(axis=1), open_to.any(axis=1)
        owner[rows, best[rows]] = prediction
    return np.where(owner[:, None, :] < np.asarray(kept)[None, :, None], owner[:, None, :], -1).astype(np.int32)


def match_once(
    overlap: NDArray[np.float64], scores: NDArray, boxes: NDArray, iou: float, matching: Matching = "truth-greedy"
) -> NDArray[np.intp]:
    """Position of the prediction of every truth [T] in one patch, or -1; predictions [M] in file order."""
    order = score_order(scores, boxes)
    found = match(overlap[:, order], np.array([len(order)]), [iou], matching)[0, 0]
    return np.append(order, -1)[found]

"""COCO's average precision, which depends on no threshold and compares with everyone else's detectors.

pycocotools takes half a second a detector; tests compare the two.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from companion.evaluation.formats import BOX, Truth
from companion.evaluation.matching import match, score_order
from companion.evaluation.scores import rows_of
from companion.geometry import box_iou

IGNORED = "class ignored"  # average precision of the detection alone
IOU, RECALLS = np.linspace(0.5, 0.95, 10), np.linspace(0, 1, 101)


def average_precision(predictions: pd.DataFrame, truth: Truth) -> pd.DataFrame:
    """AP over box IoU 0.50 to 0.95, AP50 and AP75, by class (name, or "class ignored"); NaN for one without truths."""
    scores, labels, boxes = (predictions[key].to_numpy() for key in ("score", "label", BOX))
    classes, truth_boxes = truth.table["class"].to_numpy(), truth.table[BOX].to_numpy()
    found, order = np.zeros((2, len(IOU), len(predictions)), dtype=bool), [np.zeros(0, dtype=int)]
    for own, rows in zip(rows_of(truth.table, truth.patches), rows_of(predictions, truth.patches), strict=True):
        order.append(rows := rows[score_order(scores[rows], boxes[rows])])
        overlap = box_iou(truth_boxes[own], boxes[rows])
        of_class = np.where(classes[own][:, None] == labels[rows], overlap, -1.0)
        for kind, allowed in enumerate((of_class, overlap)):
            pairs = match(allowed, np.array([len(rows)]), IOU, "score-greedy")[:, 0]  # (10, T)
            i, t = np.nonzero(pairs >= 0)
            found[kind, i, rows[pairs[i, t]]] = True
    ranked = np.concatenate(order)
    ranked = ranked[np.argsort(-scores[ranked], kind="stable")]
    by_name = {
        name: _areas(found[0][:, ranked[labels[ranked] == code]], np.sum(classes == code))
        for code, name in sorted(truth.classes.items())
    } | {IGNORED: _areas(found[1][:, ranked], len(classes))}
    rows = [(name, ap.mean(), ap[0], ap[5]) for name, ap in by_name.items()]
    return pd.DataFrame(rows, columns=["class", "AP", "AP50", "AP75"])


def _areas(found: NDArray[np.bool_], n_truths: int) -> NDArray[np.float64]:
    """Mean over 101 recalls of the best precision at that recall or more [10], of hits in order of score [10, M]."""
    if n_truths == 0:
        return np.full(len(found), np.nan)
    hits = found.cumsum(axis=1)
    precision = np.pad(hits / np.arange(1, 1 + found.shape[1]), ((0, 0), (0, 1)))
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    first = np.array([np.searchsorted(row / n_truths, RECALLS) for row in hits])
    return np.take_along_axis(best, first, axis=1).mean(axis=1)


def mean_precision(table: pd.DataFrame) -> pd.DataFrame:
    """Of `average_precision` with the columns that name a run: a row per run with map50 (mean over the classes of the
    truth) and ap50_1, ap50_2, ... by class code."""
    classes = table[table["class"] != IGNORED]
    keys, names = list(table.columns.drop(["class", "AP", "AP50", "AP75"])), classes["class"].unique()
    wide = classes.pivot(index=keys, columns="class", values="AP50")[names]
    wide = wide.set_axis([f"ap50_{code}" for code in range(1, len(names) + 1)], axis=1)
    return wide.assign(map50=wide.mean(axis=1)).reset_index()

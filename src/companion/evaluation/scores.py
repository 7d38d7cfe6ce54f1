"""Detection, classification and combined F1 at every threshold.

F1_detect pools the counts of all test patches (micro); F1_class is the unweighted mean of the per-class F1 among
matched pairs only; F1HM is the harmonic mean of the two (the authors' definitions). What is undefined is NaN,
never a silent 0 or 1: F1_class where a class of the truth has no matched pair, or where the truth has one class.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from companion.evaluation.formats import BOX, Truth, read_predictions, read_truth
from companion.evaluation.matching import Matching, kept, match, score_order
from companion.geometry import box_iou

Unpredicted = Literal["count", "skip"]


class Counts(NamedTuple):
    """Everything the scores are made of, per patch, at every threshold."""

    pairs: NDArray[np.int32]  # [P, I, C, K, K] matched pairs by class of the truth and class of the prediction
    predicted: NDArray[np.int32]  # [P, C] predictions that reach the confidence
    truths: NDArray[np.int32]  # [P, K] truths by class
    iou: tuple[float, ...]  # I thresholds
    confidence: tuple[float, ...]  # C thresholds
    classes: tuple[int, ...]  # K class codes


def count(
    predictions: pd.DataFrame, truth: Truth, iou: Sequence[float], confidence: Sequence[float],
    matching: Matching = "truth-greedy", same_class: bool = False,
) -> Counts:  # fmt: skip
    """Match every patch at every threshold `iou` and `confidence`; a pair or a score equal to it counts.

    `predictions` have patch, x1, y1, x2, y2 (px), score, label. With `same_class` only pairs of one class can match
    (the paper ignores class in matching).
    """
    codes, truths, patches = np.asarray(sorted(truth.classes)), truth.table, truth.patches
    scores, boxes = predictions["score"].to_numpy(), predictions[BOX].to_numpy(dtype=float)
    labels, truth_labels = (np.searchsorted(codes, column) for column in (predictions["label"], truths["class"]))
    K, truth_rows = len(codes), rows_of(truths, patches)
    pairs = np.zeros((len(patches), len(iou), len(confidence), K, K), dtype=np.int32)
    predicted = np.zeros((len(patches), len(confidence)), dtype=np.int32)
    truth_boxes = truths[BOX].to_numpy(dtype=float)
    for p, (rows, own) in enumerate(zip(rows_of(predictions, patches), truth_rows, strict=True)):
        rows = rows[score_order(scores[rows], boxes[rows])]
        overlap = box_iou(truth_boxes[own], boxes[rows])  # (T, M)
        predicted[p] = kept(scores[rows], confidence)
        if same_class:
            overlap = np.where(truth_labels[own][:, None] == labels[rows], overlap, -1.0)
        found = match(overlap, predicted[p], iou, matching)  # (I, C, T)
        i, c, t = np.nonzero(found >= 0)
        np.add.at(pairs[p], (i, c, truth_labels[own[t]], labels[rows[found[i, c, t]]]), 1)
    known = np.array([np.bincount(truth_labels[rows], minlength=K) for rows in truth_rows], dtype=np.int32)
    thresholds = tuple(map(float, iou)), tuple(map(float, confidence))
    return Counts(pairs, predicted, known.reshape(len(patches), K), *thresholds, tuple(codes.tolist()))


def rows_of(table: pd.DataFrame, patches: Sequence[int]) -> list[NDArray[np.intp]]:
    """Row numbers of each patch, in file order."""
    groups = pd.Series(range(len(table))).groupby(table["patch"].to_numpy()).indices
    return [groups.get(patch, np.zeros(0, dtype=np.intp)) for patch in patches]


def pooled(counts: Counts, weights: NDArray | None = None, unpredicted: Unpredicted = "count") -> dict[str, NDArray]:
    """Scores of the pooled counts at every threshold.

    Parameters
    ----------
    weights : [..., P] how often each patch counts (for resampling); once by default
    unpredicted : ``"skip"`` drops patches without a prediction at a threshold, with their misses, as one of the
        authors' scripts does; ``"count"`` counts them

    Returns
    -------
    tp, fp, fn, precision, recall, f1_detect, f1_class, f1_hm: [..., I, C]; f1_per_class: [..., I, C, K]
    """
    weights = np.ones(len(counts.truths)) if weights is None else np.asarray(weights, dtype=float)
    flat = counts.pairs.reshape(len(counts.truths), -1).astype(float)
    confusion = (weights @ flat).reshape(*weights.shape[:-1], *counts.pairs.shape[1:])  # (..., I, C, K, K)
    truths = np.broadcast_to(counts.truths.sum(axis=1)[:, None], counts.predicted.shape)
    if unpredicted == "skip":
        truths = np.where(counts.predicted > 0, truths, 0)
    n_predicted = (weights @ counts.predicted.astype(float))[..., None, :]  # (..., 1, C)
    n_truths = (weights @ truths.astype(float))[..., None, :]
    tp = confusion.sum(axis=(-2, -1))
    correct, matched = np.diagonal(confusion, axis1=-2, axis2=-1), confusion.sum(axis=-1)  # (..., I, C, K)
    present = (weights @ counts.truths.astype(float) > 0)[..., None, None, :]  # (..., 1, 1, K) classes of the truth
    per_class = _ratio(2 * correct, matched + confusion.sum(axis=-2))
    per_class = np.where(present.sum(axis=-1, keepdims=True) > 1, per_class, np.nan)  # of one class all pairs agree
    n_classes = (~np.isnan(per_class)).sum(axis=-1)
    defined = (n_classes > 1) & ((matched > 0) | ~present).all(axis=-1)
    f1_class = np.where(defined, np.nansum(per_class, axis=-1) / np.maximum(n_classes, 1), np.nan)
    f1_detect = _ratio(2 * tp, n_predicted + n_truths)
    return {
        "tp": tp, "fp": n_predicted - tp, "fn": n_truths - tp, "precision": _ratio(tp, n_predicted),
        "recall": _ratio(tp, n_truths), "f1_detect": f1_detect, "f1_per_class": per_class, "f1_class": f1_class,
        "f1_hm": np.where(f1_detect + f1_class == 0, 0.0, _ratio(2 * f1_detect * f1_class, f1_detect + f1_class)),
    }  # fmt: skip


def _ratio(a: NDArray, b: NDArray) -> NDArray:
    a, b = np.broadcast_arrays(np.asarray(a, dtype=float), np.asarray(b, dtype=float))
    return np.divide(a, b, out=np.full(a.shape, np.nan), where=b != 0)


def tabulate(counts: Counts, unpredicted: Unpredicted = "count") -> pd.DataFrame:
    """A row per IoU and confidence: iou_threshold, confidence, then the scores of `pooled`, f1_class_1 and on last."""
    scores = pooled(counts, unpredicted=unpredicted)
    per_class = np.moveaxis(scores.pop("f1_per_class"), -1, 0)
    iou, confidence = np.meshgrid(counts.iou, counts.confidence, indexing="ij")
    columns = {"iou_threshold": iou, "confidence": confidence, **scores}
    columns |= {f"f1_class_{code}": values for code, values in zip(counts.classes, per_class, strict=True)}
    table = pd.DataFrame({name: values.ravel() for name, values in columns.items()})
    return table.astype(dict.fromkeys(("tp", "fp", "fn"), np.int64))


def evaluate_files(
    predictions: Path, truth: Path, iou: Sequence[float] = (0.5,), confidence: Sequence[float] = (0.5,),
    matching: Matching = "truth-greedy", same_class: bool = False, unpredicted: Unpredicted = "count",
) -> pd.DataFrame:  # fmt: skip
    """Scores of anyone's predictions: the function behind ``companion evaluate``.

    `predictions` and `truth` are files as in `formats`; `tabulate` for every combination of `iou` and `confidence`.
    """
    truths = read_truth(Path(truth))
    table = read_predictions(Path(predictions), truths)
    return tabulate(count(table, truths, iou, confidence, matching, same_class), unpredicted)

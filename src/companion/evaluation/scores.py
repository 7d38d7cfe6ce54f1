"""Detection, classification and combined F1 at every threshold.

F1_detect pools the counts of all test patches (micro); F1_class is the unweighted mean of the per-class F1 among
matched pairs only; F1HM is the harmonic mean of the two (the authors' definitions). What is undefined is NaN,
never a silent 0 or 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from companion.micrographs.patches import load_patches
from companion.errors import CompanionError, nearest, problems
from companion.evaluation.formats import BOX, read_predictions, read_truth
from companion.evaluation.matching import Matching, class_aware, kept, match, score_order
from companion.geometry import box_iou

RUN_KEYS = ["dataset", "split", "n_train", "arm", "seed"]
Unpredicted = Literal["count", "skip"]
On = Literal["boxes", "masks"]
Overlaps = Callable[[NDArray[np.intp], NDArray[np.intp]], NDArray[np.float64]]


@dataclass(frozen=True)
class Counts:
    """Everything the scores are made of, per patch, at every threshold.

    Attributes
    ----------
    pairs : int32 [P, I, C, K, K] matched pairs by class of the truth and class of the prediction
    predicted : int32 [P, C] predictions that reach the confidence
    truths : int32 [P, K] truths by class
    iou, confidence : the thresholds, I and C of them
    classes : the K class codes
    patches : [P] patch numbers, in the order of the first axis
    """

    pairs: NDArray[np.int32]
    predicted: NDArray[np.int32]
    truths: NDArray[np.int32]
    iou: tuple[float, ...]
    confidence: tuple[float, ...]
    classes: tuple[int, ...]
    patches: tuple[int, ...]


def count(
    predictions: pd.DataFrame,
    truths: pd.DataFrame,
    patches: Sequence[int],
    classes: Sequence[int],
    iou: Sequence[float],
    confidence: Sequence[float],
    matching: Matching = "truth-greedy",
    same_class: bool = False,
    overlaps: Overlaps | None = None,
) -> Counts:
    """Match every patch at every threshold.

    Parameters
    ----------
    predictions : columns patch, x1, y1, x2, y2 (px), score, label
    truths : columns patch, x1, y1, x2, y2 (px), class
    patches : every evaluated patch, those without truths or predictions too
    classes : class codes, at least those that occur
    iou, confidence : thresholds; a pair or a score equal to them counts
    matching : see `matching`
    same_class : only pairs of one class can match (the paper ignores class in matching)
    overlaps : IoU of some truths and predictions, given by row; of boxes by default (see `mask_overlaps`)
    """
    codes = np.asarray(sorted(classes))
    strange = set(predictions["label"]) | set(truths["class"])
    if strange := sorted(int(code) for code in strange - set(codes.tolist())):
        raise CompanionError(f"class code(s) {strange} occur, but the classes are {codes.tolist()}")
    scores = predictions["score"].to_numpy()
    boxes = predictions[BOX].to_numpy(dtype=float)
    labels = np.searchsorted(codes, predictions["label"].to_numpy())
    truth_boxes, truth_labels = truths[BOX].to_numpy(dtype=float), np.searchsorted(codes, truths["class"].to_numpy())
    prediction_rows, truth_rows = _rows(predictions["patch"], patches), _rows(truths["patch"], patches)
    K = len(codes)
    pairs = np.zeros((len(patches), len(iou), len(confidence), K, K), dtype=np.int32)
    predicted = np.zeros((len(patches), len(confidence)), dtype=np.int32)
    for p, (rows, truth) in enumerate(zip(prediction_rows, truth_rows, strict=True)):
        rows = rows[score_order(scores[rows], boxes[rows])]
        predicted[p] = n_kept = kept(scores[rows], confidence)
        if len(rows) == 0 or len(truth) == 0:
            continue
        overlap = overlaps(truth, rows) if overlaps else box_iou(truth_boxes[truth], boxes[rows])  # (T, M)
        if same_class:
            overlap = class_aware(overlap, truth_labels[truth], labels[rows])
        i, c, t = np.nonzero((found := match(overlap, n_kept, iou, matching)) >= 0)
        np.add.at(pairs[p], (i, c, truth_labels[truth[t]], labels[rows[found[i, c, t]]]), 1)
    return Counts(
        pairs, predicted, np.stack([np.bincount(truth_labels[t], minlength=K) for t in truth_rows]).astype(np.int32),
        tuple(map(float, iou)), tuple(map(float, confidence)), tuple(codes.tolist()), tuple(patches),
    )  # fmt: skip


def mask_overlaps(predictions: pd.DataFrame, truths: pd.DataFrame, instances: NDArray[np.integer]) -> Overlaps:
    """Overlap of masks instead of boxes, for `count`.

    Parameters
    ----------
    predictions : with column mask (COCO compressed run-length bytes)
    truths : with columns patch and instance
    instances : [P, S, S] instance ids; of overlapping instances only what is on top counts

    Raises
    ------
    CompanionError
        If a prediction has no mask.
    """
    from pycocotools import mask as coco

    if "mask" not in predictions or predictions["mask"].isna().any():
        raise CompanionError(
            "matching on masks needs predictions with masks (column mask of predictions.parquet); these have boxes "
            "only: match on boxes"
        )
    size = list(instances.shape[1:])
    found = [{"size": size, "counts": counts} for counts in predictions["mask"]]
    ids = zip(truths["patch"], truths["instance"], strict=True)
    true = [coco.encode(np.asfortranarray(instances[patch] == instance, dtype=np.uint8)) for patch, instance in ids]

    def overlaps(truth: NDArray[np.intp], rows: NDArray[np.intp]) -> NDArray[np.float64]:
        return coco.iou([found[r] for r in rows], [true[t] for t in truth], [0] * len(truth)).T

    return overlaps


def _rows(column: pd.Series, patches: Sequence[int]) -> list[NDArray[np.intp]]:
    """Row numbers of each patch, in file order."""
    groups = pd.Series(np.arange(len(column))).groupby(column.to_numpy()).indices
    if strange := set(groups) - set(patches):
        raise CompanionError(f"patch {min(strange)} is not among the {len(patches)} evaluated patches")
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
    fp, fn = n_predicted - tp, n_truths - tp
    correct = np.diagonal(confusion, axis1=-2, axis2=-1)
    involved = confusion.sum(axis=-1) + confusion.sum(axis=-2)  # (..., I, C, K) times a class is in a pair
    per_class = _ratio(2 * correct, involved)
    if (counts.truths.sum(axis=0) > 0).sum() < 2:  # with one class every pair agrees: not a score
        per_class = np.full_like(per_class, np.nan)
    n_classes = (~np.isnan(per_class)).sum(axis=-1)
    f1_class = np.where(n_classes >= 2, np.nansum(per_class, axis=-1) / np.maximum(n_classes, 1), np.nan)
    f1_detect = _ratio(2 * tp, n_predicted + n_truths)
    return {
        "tp": tp, "fp": fp, "fn": fn, "precision": _ratio(tp, tp + fp), "recall": _ratio(tp, tp + fn),
        "f1_detect": f1_detect, "f1_per_class": per_class, "f1_class": f1_class,
        "f1_hm": harmonic_mean(f1_detect, f1_class),
    }  # fmt: skip


def harmonic_mean(a: NDArray, b: NDArray) -> NDArray:
    """Harmonic mean; NaN where either is NaN, 0 where either is 0."""
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    mean = _ratio(2 * a * b, a + b)
    return np.where((a + b) == 0, 0.0, mean)


def _ratio(a: NDArray, b: NDArray) -> NDArray:
    a, b = np.broadcast_arrays(np.asarray(a, dtype=float), np.asarray(b, dtype=float))
    return np.divide(a, b, out=np.full(a.shape, np.nan), where=b != 0)


def tabulate(counts: Counts, keys: Mapping[str, Any] | None = None, unpredicted: Unpredicted = "count") -> pd.DataFrame:
    """Rows of scores.parquet: run keys (None where not given), thresholds, counts, scores."""
    scores = pooled(counts, unpredicted=unpredicted)
    i, c = (axis.ravel() for axis in np.indices((len(counts.iou), len(counts.confidence))))
    table = pd.DataFrame({"iou_threshold": np.take(counts.iou, i), "confidence": np.take(counts.confidence, c)})
    for name in ("tp", "fp", "fn"):
        table[name] = scores[name].ravel().astype(np.int64)
    for name in ("precision", "recall", "f1_detect"):
        table[name] = scores[name].ravel()
    for k, code in enumerate(counts.classes):
        table[f"f1_class_{code}"] = scores["f1_per_class"][..., k].ravel()
    for name in ("f1_class", "f1_hm"):
        table[name] = scores[name].ravel()
    for position, key in enumerate(RUN_KEYS):
        table.insert(position, key, [(keys or {}).get(key)] * len(table))
    return table


def evaluate_files(
    predictions: Path,
    truth: Path,
    iou: Sequence[float] = (0.5,),
    confidence: Sequence[float] = (0.5,),
    matching: Matching = "truth-greedy",
    on: On = "boxes",
    same_class: bool = False,
    unpredicted: Unpredicted = "count",
) -> pd.DataFrame:
    """Scores of anyone's predictions: the function behind ``companion evaluate``.

    Parameters
    ----------
    predictions : predictions.parquet, a COCO results JSON, or detectron2's coco_instances_results.json
    truth : a patches folder, or a COCO annotations JSON (then `patch` is the COCO image id)
    iou, confidence : thresholds; every combination is scored
    matching : rule of `matching`
    on : what must overlap; masks need predictions with masks and a patches folder as truth
    same_class : see `count`
    unpredicted : see `pooled`

    Returns
    -------
    One row per combination, with the columns of scores.parquet; the run keys are None.

    Raises
    ------
    CompanionError
        A threshold out of range or an unknown rule; masks asked for where there are none; a file that is missing,
        broken or not what it should be (every problem of it listed).
    """
    found = [f"IoU threshold {v!r} is not in (0, 1]" for v in iou if not 0 < v <= 1]
    found += [f"confidence {v!r} is not in [0, 1]" for v in confidence if not 0 <= v <= 1]
    found += [f"no {name} threshold given" for name, v in (("IoU", iou), ("confidence", confidence)) if len(v) == 0]
    if found:
        raise problems("thresholds that cannot be used:", found)
    match(np.zeros((0, 0)), np.zeros(1, dtype=np.intp), [0.5], matching)  # refuses an unknown rule before reading
    if on not in get_args(On):
        raise CompanionError(f"'{on}' cannot be matched on; {nearest(on, get_args(On))}")
    if on == "masks" and not Path(truth).is_dir():
        raise CompanionError(f"{truth}: matching on masks needs the truth's masks, of a patches folder; match on boxes")
    truths = read_truth(Path(truth))
    table = read_predictions(Path(predictions), truths)
    overlaps = mask_overlaps(table, truths.table, load_patches(Path(truth)).instances) if on == "masks" else None
    known = (table, truths.table, truths.patches, truths.classes)
    return tabulate(count(*known, iou, confidence, matching, same_class, overlaps), unpredicted=unpredicted)

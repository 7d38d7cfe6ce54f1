"""COCO's average precision, by pycocotools, for comparison with everyone else's detectors."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from companion.evaluation.formats import BOX


def coco_average_precision(
    predictions: pd.DataFrame, truths: pd.DataFrame, patches: Sequence[int], classes: Mapping[int, str]
) -> pd.DataFrame:
    """AP over box IoU 0.50 to 0.95, at 0.50 and at 0.75, per class, their mean, and with class ignored.

    Parameters
    ----------
    predictions : patch, x1, y1, x2, y2 (px), score, label
    truths : patch, x1, y1, x2, y2 (px), class
    patches : every evaluated patch
    classes : class code -> name

    Returns
    -------
    class (name, "mean of classes", "class ignored"), AP, AP50, AP75; NaN for a class without truths
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports progress by printing
        truth = COCO()
        truth.dataset = {
            "images": [{"id": int(patch)} for patch in patches],
            "categories": [{"id": int(code), "name": name} for code, name in classes.items()],
            "annotations": _boxes(truths, "class"),
        }
        truth.createIndex()
        results = _boxes(predictions, "label")
        for result, score in zip(results, predictions["score"], strict=True):
            result["score"] = float(score)
        found = truth.loadRes(results) if results else COCO()
        rows = []
        for agnostic in (False, True):
            evaluation = COCOeval(truth, found, "bbox")
            evaluation.params.useCats = int(not agnostic)
            evaluation.params.maxDets = [1, 10, 1000]
            if not results:
                evaluation.cocoDt.dataset = {"annotations": []}
                evaluation.cocoDt.createIndex()
            evaluation.evaluate()
            evaluation.accumulate()
            precision = evaluation.eval["precision"][:, :, :, 0, -1]  # (10 IoU, 101 recalls, K)
            precision = np.where(precision < 0, np.nan, precision)  # -1: no truths
            names = ["class ignored"] if agnostic else [classes[code] for code in evaluation.params.catIds]
            rows += [(name, *_means(precision[:, :, k])) for k, name in enumerate(names)]
            if not agnostic:
                rows.append(("mean of classes", *_means(precision)))
    return pd.DataFrame(rows, columns=["class", "AP", "AP50", "AP75"])


def _boxes(table: pd.DataFrame, code: str) -> list[dict]:
    boxes = table[BOX].to_numpy(dtype=float)
    return [
        {"id": k, "image_id": int(patch), "category_id": int(label), "bbox": [x1, y1, x2 - x1, y2 - y1],
         "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
        for k, (patch, label, (x1, y1, x2, y2)) in enumerate(zip(table["patch"], table[code], boxes, strict=True), 1)
    ]  # fmt: skip


def _means(precision: np.ndarray) -> tuple[float, float, float]:
    with np.errstate(invalid="ignore"):
        chosen = (precision, precision[:1], precision[5:6])
        return tuple(float(np.nanmean(p)) if np.isfinite(p).any() else float("nan") for p in chosen)  # type: ignore[return-value]

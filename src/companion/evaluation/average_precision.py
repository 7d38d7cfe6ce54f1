"""COCO's average precision, by pycocotools, for comparison with everyone else's detectors."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from companion.evaluation.formats import BOX
from companion.evaluation.runs import Run

IGNORED = "class ignored"


def precision_runs(found: Sequence[Run]) -> pd.DataFrame:
    """`coco_average_precision` of every run, with split, n_train, arm, seed."""
    tables = []
    for run in found:
        truth = run.truth
        table = coco_average_precision(run.predictions, truth.table, truth.patches, truth.classes)
        tables.append(table.assign(**run.keys))
    return pd.concat(tables, ignore_index=True)


def mean_precision(table: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """mAP, mAP50 and mAP75 by the columns `by`: means over all rows of classes that have truths."""
    return table[table["class"] != IGNORED].groupby(list(by))[["AP", "AP50", "AP75"]].mean().add_prefix("m")


def coco_average_precision(
    predictions: pd.DataFrame, truths: pd.DataFrame, patches: Sequence[int], classes: Mapping[int, str]
) -> pd.DataFrame:
    """AP over box IoU 0.50 to 0.95, at 0.50 and at 0.75, per class, and with class ignored.

    Parameters
    ----------
    predictions : patch, x1, y1, x2, y2 (px), score, label
    truths : patch, x1, y1, x2, y2 (px), class
    patches : every evaluated patch
    classes : class code -> name

    Returns
    -------
    class (name, or "class ignored"), AP, AP50, AP75; NaN for a class without truths
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    rows = []
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports progress by printing
        sets = []
        for annotations in (_boxes(truths, truths["class"]), _boxes(predictions, predictions["label"])):
            sets.append(COCO())
            sets[-1].dataset = {
                "images": [{"id": int(patch)} for patch in patches], "annotations": annotations,
                "categories": [{"id": int(code), "name": name} for code, name in classes.items()],
            }  # fmt: skip
            sets[-1].createIndex()
        for annotation, score in zip(sets[1].dataset["annotations"], predictions["score"], strict=True):
            annotation["score"] = float(score)
        for use_classes in (1, 0):
            evaluation = COCOeval(*sets, "bbox")
            evaluation.params.useCats, evaluation.params.maxDets = use_classes, [1, 10, 1000]
            evaluation.evaluate()
            evaluation.accumulate()
            precision = evaluation.eval["precision"][:, :, :, 0, -1]  # (10 IoU, 101 recalls, K); -1: no truths
            over_recall = np.where(precision < 0, np.nan, precision).mean(axis=1)  # (10, K)
            names = [classes[code] for code in evaluation.params.catIds] if use_classes else [IGNORED]
            rows += [(name, ap.mean(), ap[0], ap[5]) for name, ap in zip(names, over_recall.T, strict=True)]
    return pd.DataFrame(rows, columns=["class", "AP", "AP50", "AP75"])


def _boxes(table: pd.DataFrame, codes: pd.Series) -> list[dict]:
    boxes = table[BOX].to_numpy(dtype=float)
    return [
        {"id": k, "image_id": int(patch), "category_id": int(code), "bbox": [x1, y1, x2 - x1, y2 - y1],
         "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
        for k, (patch, code, (x1, y1, x2, y2)) in enumerate(zip(table["patch"], codes, boxes, strict=True), 1)
    ]  # fmt: skip

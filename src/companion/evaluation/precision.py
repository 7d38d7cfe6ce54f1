"""COCO's average precision, which depends on no threshold and compares with everyone else's detectors (pycocotools)."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pandas as pd

from companion.evaluation.formats import BOX, Truth

IGNORED = "class ignored"  # average precision of the detection alone


def average_precision(predictions: pd.DataFrame, truth: Truth) -> pd.DataFrame:
    """AP over box IoU 0.50 to 0.95, AP50 and AP75, by class (name, or "class ignored"); NaN for one without truths."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    sets, rows = [], []
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports progress by printing
        for table in (truth.table.assign(score=1.0), predictions.rename(columns={"label": "class"})):
            boxes = np.array(table[BOX], dtype=float)
            boxes[:, 2:] -= boxes[:, :2]  # COCO has width and height
            named = table[["patch", "class", "score"]].set_axis(["image_id", "category_id", "score"], axis=1)
            entries = named.assign(id=range(1, 1 + len(table)), bbox=boxes.tolist(), area=boxes[:, 2:].prod(axis=1))
            sets.append(COCO())
            sets[-1].dataset = {
                "images": [{"id": patch} for patch in truth.patches],
                "categories": [{"id": code} for code in truth.classes],
                "annotations": entries.assign(iscrowd=0).to_dict("records"),
            }
            sets[-1].createIndex()
        for use_classes in (1, 0):
            evaluation = COCOeval(*sets, "bbox")
            evaluation.params.useCats, evaluation.params.maxDets = use_classes, [1000]
            evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]  # no groups by area
            evaluation.evaluate()
            evaluation.accumulate()
            precision = evaluation.eval["precision"][:, :, :, 0, -1]  # (10 IoU, 101 recalls, K); -1: no truths
            over_recall = np.where(precision < 0, np.nan, precision).mean(axis=1)  # (10, K)
            names = [truth.classes[code] for code in evaluation.params.catIds] if use_classes else [IGNORED]
            rows += [(name, ap.mean(), ap[0], ap[5]) for name, ap in zip(names, over_recall.T, strict=True)]
    return pd.DataFrame(rows, columns=["class", "AP", "AP50", "AP75"])


def mean_precision(table: pd.DataFrame) -> pd.DataFrame:
    """Of `average_precision` with the columns that name a run: a row per run with map50 (mean over the classes of the
    truth) and ap50_1, ap50_2, ... by class code."""
    classes = table[table["class"] != IGNORED]
    keys, names = list(table.columns.drop(["class", "AP", "AP50", "AP75"])), classes["class"].unique()
    wide = classes.pivot(index=keys, columns="class", values="AP50")[names]
    wide = wide.set_axis([f"ap50_{code}" for code in range(1, len(names) + 1)], axis=1)
    return wide.assign(map50=wide.mean(axis=1)).reset_index()

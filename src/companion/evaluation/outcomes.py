"""What became of every truth and every prediction: found, found under another class, missed, or invented."""

from __future__ import annotations

import numpy as np
import pandas as pd

from companion.geometry import box_iou

HIT, MISLABELLED, MISSED, INVENTED = "hit", "other class", "missed", "false positive"
OUTCOMES = (HIT, MISLABELLED, MISSED, INVENTED)
_BOX = ["x1", "y1", "x2", "y2"]


def fates(predictions: pd.DataFrame, truths: pd.DataFrame, iou: float, confidence: float) -> pd.DataFrame:
    """Fate of every truth and of every prediction that matches none.

    Parameters
    ----------
    predictions : columns patch, x1, y1, x2, y2 (px), score, label
    truths : columns patch, x1, y1, x2, y2, class
    iou : smallest box overlap of a match
    confidence : smallest score of a prediction

    Returns
    -------
    One row each: patch, box x1 y1 x2 y2 (the truth's, or the prediction's where it matches none), class (of the
    truth, or the predicted one), outcome (one of `OUTCOMES`), size_px (long side of the box).
    """
    rows = []
    predictions = predictions[predictions["score"] >= confidence]
    by_patch = dict(tuple(predictions.groupby("patch")))
    truths_by_patch = dict(tuple(truths.groupby("patch")))
    for patch in sorted(by_patch.keys() | truths_by_patch.keys()):
        found = by_patch.get(patch, predictions[:0])
        truth = truths_by_patch.get(patch, truths[:0])
        overlap = box_iou(truth[_BOX].to_numpy(), found[_BOX].to_numpy())  # (T, M)
        free = np.ones(len(found), dtype=bool)
        for t, (box, code) in enumerate(zip(truth[_BOX].to_numpy(), truth["class"], strict=True)):
            candidates = np.where(free, overlap[t], -1.0)
            best = int(candidates.argmax()) if len(candidates) else -1
            if best < 0 or candidates[best] < iou:
                rows.append((patch, *box, code, MISSED))
                continue
            free[best] = False
            rows.append((patch, *box, code, HIT if found["label"].iloc[best] == code else MISLABELLED))
        rows += [
            (patch, *box, code, INVENTED)
            for box, code in zip(found[_BOX].to_numpy()[free], found["label"].to_numpy()[free], strict=True)
        ]
    table = pd.DataFrame(rows, columns=["patch", *_BOX, "class", "outcome"])
    table["size_px"] = np.maximum(table["x2"] - table["x1"], table["y2"] - table["y1"]).astype(float)
    return table

"""What became of every truth and every prediction: found, found under another class, missed, or invented."""

from __future__ import annotations

import numpy as np
import pandas as pd

from companion.evaluation.matching import Matching, kept, match, score_order
from companion.geometry import box_iou

HIT, MISLABELLED, MISSED, INVENTED = "hit", "other class", "missed", "false positive"
OUTCOMES = (HIT, MISLABELLED, MISSED, INVENTED)
_BOX = ["x1", "y1", "x2", "y2"]


def fates(
    predictions: pd.DataFrame,
    truths: pd.DataFrame,
    iou: float,
    confidence: float,
    matching: Matching = "truth-greedy",
) -> pd.DataFrame:
    """Fate of every truth and of every prediction that matches none, patch by patch.

    Parameters
    ----------
    predictions : columns patch, x1, y1, x2, y2 (px), score, label
    truths : columns patch, x1, y1, x2, y2, class
    iou : smallest box overlap of a match
    confidence : smallest score of a prediction
    matching : rule of `companion.evaluation.matching`

    Returns
    -------
    One row each: patch, box x1 y1 x2 y2 (the truth's, or the prediction's where it matches none), class (of the
    truth, or the predicted one), outcome (one of `OUTCOMES`), size_px (long side of the box).
    """
    rows = []
    by_patch, truths_by_patch = (dict(tuple(table.groupby("patch"))) for table in (predictions, truths))
    for patch in sorted(by_patch.keys() | truths_by_patch.keys()):
        found, truth = by_patch.get(patch, predictions[:0]), truths_by_patch.get(patch, truths[:0])
        found = found.iloc[score_order(found["score"].to_numpy(), found[_BOX].to_numpy())]
        count = kept(found["score"].to_numpy(), [confidence])
        overlap = box_iou(truth[_BOX].to_numpy(), found[_BOX].to_numpy())  # (T, M)
        pairs = match(overlap, count, [iou], matching)[0, 0]
        labels = found["label"].to_numpy()
        for box, code, pair in zip(truth[_BOX].to_numpy(), truth["class"], pairs, strict=True):
            outcome = MISSED if pair < 0 else HIT if labels[pair] == code else MISLABELLED
            rows.append((patch, *box, code, outcome))
        free = np.setdiff1d(np.arange(count[0]), pairs)
        rows += [
            (patch, *box, code, INVENTED) for box, code in zip(found[_BOX].to_numpy()[free], labels[free], strict=True)
        ]
    table = pd.DataFrame(rows, columns=["patch", *_BOX, "class", "outcome"])
    table["size_px"] = np.maximum(table["x2"] - table["x1"], table["y2"] - table["y1"]).astype(float)
    return table

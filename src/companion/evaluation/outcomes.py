"""What became of every truth and every prediction: found, found under another class, missed, or invented."""

from __future__ import annotations

import numpy as np
import pandas as pd

from companion.evaluation import errors
from companion.evaluation.matching import Matching

HIT, MISLABELLED, MISSED, INVENTED = "hit", "other class", "missed", "false positive"
OUTCOMES = (HIT, MISLABELLED, MISSED, INVENTED)


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
    patches = sorted({*predictions["patch"], *truths["patch"]})
    index = pd.DataFrame({"patch": patches, "image": "", "pixel_size_nm": np.nan})
    found, known = errors.audit(predictions, truths, index, iou, confidence, matching)
    invented = found[~found["error"].isin((errors.CORRECT, errors.CLASS))].assign(outcome=INVENTED)
    names = {errors.CORRECT: HIT, errors.CLASS: MISLABELLED, errors.MISSED: MISSED}
    table = pd.concat([known.assign(outcome=known["error"].map(names)), invented])
    return table.sort_values("patch", kind="stable", ignore_index=True)[
        ["patch", *errors.BOX, "class", "outcome", "size_px"]
    ]

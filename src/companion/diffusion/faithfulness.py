"""Do generated images show what their masks ask for, as a detector trained on real images alone sees it?

The detector comes from a later stage, so nothing is detected here: give the predictions that an EXP detector makes
on generated patches. The answer, defect by defect, measures the generator (recall and class agreement, per class and
size), and can filter the pairs before EXP+GEN is trained.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment

from companion.data.patches import Patches
from companion.errors import CompanionError
from companion.geometry import box_iou

BOX = ["x1", "y1", "x2", "y2"]
PREDICTION_COLUMNS = ["patch", *BOX, "score", "label"]


def found_defects(
    generated: Patches, predictions: pd.DataFrame, *, iou: float = 0.5, confidence: float = 0.5
) -> pd.DataFrame:
    """Which defects of the masks the detector finds.

    Boxes are matched one to one, as many as possible with the largest overlaps; classes are ignored in matching.

    Parameters
    ----------
    generated : patches whose masks were asked for
    predictions : columns patch, x1, y1, x2, y2, score, label (see ``predictions.parquet``)
    iou : overlap from which a box counts, in 0-1
    confidence : score from which a prediction counts

    Returns
    -------
    One row per defect: patch, instance, class, area_px, found, label (what it was taken for; 0 if not found).

    Raises
    ------
    CompanionError
        When a column is missing.
    """
    if missing := [column for column in PREDICTION_COLUMNS if column not in predictions]:
        raise CompanionError(f"predictions lack the column(s) {', '.join(missing)}")
    sure = dict(list(predictions[predictions["score"] >= confidence].groupby("patch")))
    table = generated.table[["patch", "instance", "class", "area_px"]].reset_index(drop=True)
    labels = np.zeros(len(table), dtype=int)
    for patch, rows in generated.table.reset_index(drop=True).groupby("patch"):
        if patch not in sure:
            continue
        overlap = box_iou(rows[BOX].to_numpy(), sure[patch][BOX].to_numpy())  # [defects, predictions]
        # Each pair that counts is worth more than all overlaps together, so that no match is given up for overlap.
        worth = np.where(overlap >= iou, overlap + len(rows) + 1, 0)
        defects, chosen = linear_sum_assignment(worth, maximize=True)
        matched = overlap[defects, chosen] >= iou
        labels[rows.index[defects[matched]]] = sure[patch]["label"].to_numpy()[chosen[matched]]
    return table.assign(found=labels > 0, label=labels)


def summary(found: pd.DataFrame, classes: tuple[str, ...]) -> pd.DataFrame:
    """Recall and class agreement by class, from `found_defects`.

    Returns
    -------
    One row per class: class, defects, recall (share found), agreement (share of the found taken for their class;
    NaN where none is found, or where the data set has one class and there is nothing to confuse).
    """
    rows = []
    for code, name in enumerate(classes, start=1):
        here = found[found["class"] == code]
        seen = here[here["found"]]
        agreement = (seen["label"] == code).mean() if len(seen) and len(classes) > 1 else np.nan
        rows.append((name, len(here), here["found"].mean() if len(here) else np.nan, agreement))
    return pd.DataFrame(rows, columns=["class", "defects", "recall", "agreement"])


def consistent(generated: Patches, found: pd.DataFrame, least: float) -> Patches:
    """The generated patches in which the detector confirms at least a share of the defects; empty masks stay.

    Parameters
    ----------
    generated : patches with images
    found : `found_defects` of them
    least : share of a patch's defects that must be found with their own class, in 0-1

    Returns
    -------
    Patches renumbered from 0
    """
    confirmed = (found["label"] == found["class"]).groupby(found["patch"]).mean()
    kept = np.flatnonzero(confirmed.reindex(range(len(generated)), fill_value=1.0).to_numpy() >= least)
    number = dict(zip(kept.tolist(), range(len(kept)), strict=True))
    index = generated.index.iloc[kept].assign(patch=range(len(kept))).reset_index(drop=True)
    table = generated.table[generated.table["patch"].isin(kept)].reset_index(drop=True)
    table = table.assign(patch=table["patch"].map(number).astype(table["patch"].dtype))
    images = None if generated.images is None else generated.images[kept]
    return replace(generated, images=images, instances=generated.instances[kept], index=index, table=table)

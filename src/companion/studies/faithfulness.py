"""Do generated images show what their masks ask for, as a detector trained on labelled images alone sees it?

The detector cannot tell a bad image from its own blindness, so everything is measured on held-out micrographs, too.
Its answer, pair by pair, is also a label-consistency filter: see `consistent`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from companion.config.sections import Faithfulness
from companion.evaluation.errors import CLASS, CORRECT, audit, recall_by
from companion.micrographs.patches import Patches

Judged = Mapping[str, tuple[Patches, pd.DataFrame]]  # patches and what the detector says of them, by name


def found_defects(judged: Judged, settings: Faithfulness) -> pd.DataFrame:
    """Which defects of the masks the detector finds, and whether under their class.

    A row per defect: images (name of the set) and the columns of `errors.audit`, where class is a name. `settings` say
    from which overlap and score a prediction (patch, x1, y1, x2, y2, score, label) counts.
    """
    tables = []
    for name, (patches, predictions) in judged.items():
        index = patches.index
        if index["image"].nunique() == 1:  # generated patches are of no micrograph, so each is its own
            index = index.assign(image=index["patch"])
        counted = predictions[predictions["score"] >= settings.confidence]
        _, truths = audit(counted, patches.table, index, settings.iou)
        names = dict(enumerate(patches.classes, start=1))
        tables.append(truths.assign(images=name, **{"class": truths["class"].map(names)}))
    return pd.concat(tables, ignore_index=True)


def shares(found: pd.DataFrame, by: str, rng: np.random.Generator, resamples: int, level: float) -> pd.DataFrame:
    """Recall and class agreement per set and group (`by`: "class" or "size"), from `found_defects`.

    Columns images, group, truths (defects), recall, low, high (over micrographs; generated ones: over patches),
    agreement (share of the found ones under their class; NaN where none is found, or where there is one class).
    """
    tables = []
    for name, rows in found.groupby("images", sort=False):
        hit = rows[rows["error"].isin((CORRECT, CLASS))]
        right = (hit["error"] == CORRECT).groupby(hit[by], observed=True).mean()
        table = recall_by(rows, by, rng, resamples, level)
        agreement = table[by].map(right).astype(float) if found["class"].nunique() > 1 else np.nan
        tables.append(table.assign(images=name, agreement=agreement).rename(columns={by: "group"}))
    columns = ["images", "group", "truths", "recall", "low", "high", "agreement"]
    return pd.concat(tables, ignore_index=True)[columns]


def consistent(generated: Patches, found: pd.DataFrame, least: float) -> Patches:
    """The generated pairs that the detector does not contradict, renumbered from 0; empty masks stay.

    `found`: `found_defects` of them alone; `least`: share, in 0-1, of a patch's defects to be found under their class.
    """
    confirmed = (found["error"] == CORRECT).groupby(found["patch"]).mean()
    known = confirmed.reindex(range(len(generated)), fill_value=1.0)
    return generated.only(np.flatnonzero(known.to_numpy() >= least))

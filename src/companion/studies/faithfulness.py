"""Do generated images show what their masks ask for, as a detector trained on labelled images alone sees it?

The detector cannot tell a bad image from its own blindness, so everything is measured on held-out micrographs, too.
Its answer, pair by pair, is also a label-consistency filter: see `consistent`. Without a detector: a mask is
edited, and drawn again from the same noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage

from companion.config.sections import Faithfulness
from companion.diffusion.measures import across_outlines
from companion.evaluation.errors import CLASS, CORRECT, audit, recall_by
from companion.micrographs.patches import Patches, instance_table
from companion.stats import ratio_interval

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


Shape = NDArray[np.bool_]  # [S, S]


def _aside(shape: Shape) -> Shape:
    """A quarter of the patch nearer to its other side."""
    step = len(shape) // 4
    return np.roll(shape, step if ndimage.center_of_mass(shape)[1] < len(shape) / 2 else -step, axis=1)


def _turned(shape: Shape) -> Shape:
    """By 90 degrees about its own centre."""
    to_middle = [len(shape) // 2 - round(place) for place in ndimage.center_of_mass(shape)]
    return np.roll(np.rot90(np.roll(shape, to_middle, (0, 1))), [-step for step in to_middle], (0, 1))


EDITS: dict[str, Callable[[Shape], Shape]] = {  # what becomes of a defect of a mask
    "as simulated": np.copy, "moved": _aside, "turned": _turned,
    "grown": lambda shape: ndimage.binary_dilation(shape, iterations=len(shape) // 32), "removed": np.zeros_like,
}  # fmt: skip


def edited(masks: Patches, defects: pd.DataFrame, change: Callable[[Shape], Shape]) -> Patches:
    """Masks without images in which one defect of a patch, a row of `defects` (patch, instance), is changed."""
    instances = np.array(masks.instances)
    for patch, instance in defects[["patch", "instance"]].itertuples(index=False):
        shape = instances[patch] == instance
        instances[patch][shape] = 0
        instances[patch][change(shape)] = instance
    return replace(masks, images=None, instances=instances, table=instance_table(instances, masks.table))


def contrast_kept(
    drawn: Mapping[str, Patches], defects: pd.DataFrame, rng: np.random.Generator, resamples: int, level: float
) -> pd.DataFrame:
    """Contrast (see `measures.across_outlines`) of edited defects in images of the same noise, beside that of the same
    defects as simulated; where one is removed, of the place where it was.

    `drawn`: patches by the name of their edit. A row per edit: defects, contrast (mean), kept (by that as simulated),
    low, high (over patches).
    """
    found, before = {}, drawn["as simulated"]
    for name, patches in drawn.items():
        seen = replace(before, images=patches.images) if name == "removed" else patches
        own = seen.table.merge(defects[["patch", "instance"]])
        found[name] = across_outlines(replace(seen, table=own))[0].set_index("patch")["contrast"]
    table, rows = pd.DataFrame(found).dropna(), []
    for name, contrast in table.items():
        kept = ratio_interval(contrast, table[["as simulated"]], table.index, rng, resamples, level)
        rows.append((name, len(table), contrast.mean(), *(edge.item() for edge in kept)))
    return pd.DataFrame(rows, columns=["edit", "defects", "contrast", "kept", "low", "high"])

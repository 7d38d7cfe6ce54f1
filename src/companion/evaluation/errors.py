"""Kinds of errors of a detector, for which classes and sizes; and what a materials scientist reads off it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from companion.config.sections import Patches as Cut
from companion.evaluation.formats import BOX
from companion.evaluation.matching import Matching, match_once
from companion.evaluation.runs import Run, cut_again
from companion.evaluation.scores import rows_of
from companion.evaluation.wording import ARM, RUN
from companion.geometry import box_iou
from companion.micrographs.dataset import ANNOTATIONS
from companion.micrographs.patches import Patches
from companion.phantom.render import TRUTH
from companion.stats import ratio_interval

CORRECT, CLASS, DUPLICATE, SLIVER, OVERLOOKED, LOCALISATION, BACKGROUND, MISSED = (
    "correct", "class", "duplicate", "sliver", "overlooked", "localisation", "background", "missed")  # fmt: skip
ERRORS = (CLASS, DUPLICATE, SLIVER, OVERLOOKED, LOCALISATION, BACKGROUND, MISSED)
SIZES = ("small (≤ 16 px)", "medium (≤ 32 px)", "large (> 32 px)")
GROUPINGS = ("class", "size", "pixel size")
BACKGROUND_IOU = 0.1  # below it a box lies on nothing, as in TIDE (Bolya et al. 2020)


def audit(
    predictions: pd.DataFrame, truths: pd.DataFrame, index: pd.DataFrame, iou: float,
    matching: Matching = "truth-greedy", unlabelled: Mapping[str, pd.DataFrame] = {},
) -> tuple[pd.DataFrame, pd.DataFrame]:  # fmt: skip
    """What became of every prediction and of every truth.

    A prediction is correct, or of the wrong class (matched, other class), a duplicate (it overlaps a truth that
    another prediction has), on something that is there and not among the truths (a sliver of a defect that the patch's
    border cuts, or a defect that the annotator overlooked), badly localised (best overlap between 0.1 and `iou`), or on
    background. A truth is correct, of the wrong class, or missed.

    Parameters
    ----------
    predictions : those that count: patch, x1, y1, x2, y2 (px), score, label
    truths : patch, x1, y1, x2, y2 (px), class
    index : patch, image, pixel_size_nm
    unlabelled : boxes (patch, x1, y1, x2, y2) of what is there and not among the truths, by the kind of error

    Returns
    -------
    predictions, truths : row (in the table it came from), patch, image, pixel_size_nm, class, error, size_px (long
    side of the box), size (its group), x1, y1, x2, y2, score (NaN for truths); of a truth pair (its prediction or -1)
    """
    boxes, truth_boxes = predictions[BOX].to_numpy(dtype=float), truths[BOX].to_numpy(dtype=float)
    scores, labels, codes = predictions["score"].to_numpy(), predictions["label"].to_numpy(), truths["class"].to_numpy()
    error, truth_error = np.full(len(boxes), BACKGROUND, dtype=object), np.full(len(truths), MISSED, dtype=object)
    pair = np.full(len(truths), -1)
    patches = index["patch"].tolist()
    others = [(kind, table[BOX].to_numpy(dtype=float), rows_of(table, patches)) for kind, table in unlabelled.items()]
    for p, (rows, own) in enumerate(zip(*(rows_of(table, patches) for table in (predictions, truths)), strict=True)):
        overlap = box_iou(truth_boxes[own], boxes[rows])  # (T, M)
        best = overlap.max(axis=0, initial=0)
        error[rows] = np.where(best >= BACKGROUND_IOU, LOCALISATION, BACKGROUND)
        for kind, sides, places in others:
            there = box_iou(sides[places[p]], boxes[rows])
            error[rows[there.max(axis=0, initial=0) >= iou]] = kind
        error[rows[best >= iou]] = DUPLICATE
        pairs = match_once(overlap, scores[rows], boxes[rows], iou, matching)
        own, rows = own[pairs >= 0], rows[pairs[pairs >= 0]]
        pair[own], error[rows] = rows, np.where(labels[rows] == codes[own], CORRECT, CLASS)
        truth_error[own] = error[rows]
    tables = []
    for table, sides, code, what in ((predictions, boxes, labels, error), (truths, truth_boxes, codes, truth_error)):
        size_px = (sides[:, 2:] - sides[:, :2]).max(axis=1, initial=0)
        known = {"row": np.arange(len(table)), "class": code, "error": what, "size_px": size_px}
        described = table.reindex(columns=["patch", *BOX, "score"]).reset_index(drop=True).assign(**known)
        described["size"] = pd.cut(size_px, [0, 16, 32, np.inf], labels=list(SIZES), include_lowest=True)
        tables.append(described.merge(index[["patch", "image", "pixel_size_nm"]], on="patch", how="left"))
    return tables[0], tables[1].assign(pair=pair)


def slivers(folder: Path, patches: Patches, cut: Cut, exact: bool = False) -> pd.DataFrame:
    """Boxes of what a border left of defects in patches, and is too little to be labelled there.

    `patches` are of the data set `folder` and were cut as `cut` says; `exact`: with the truth for labels.
    """
    files, every = list(patches.index["image"].unique()), cut.model_copy(update={"min_visible": 0.0})
    whole = cut_again(folder, files, every, TRUTH if exact else ANNOTATIONS).table[["patch", *BOX]]
    labelled = pd.MultiIndex.from_frame(patches.table[["patch", *BOX]])
    return whole[~pd.MultiIndex.from_frame(whole).isin(labelled)].reset_index(drop=True)


def overlooked(labels: Patches, exact: Patches, iou: float) -> pd.DataFrame:
    """Rows of the table of `exact` patches that no label of the same patches matches."""
    drawn = labels.table.rename(columns={"class": "label"}).assign(score=1.0)
    _, truths = audit(drawn, exact.table, exact.index, iou)
    return exact.table[(truths["error"] == MISSED).to_numpy()]


def audit_runs(
    found: Sequence[Run], points: pd.DataFrame, iou: float, matching: Matching = "truth-greedy",
    unlabelled: Mapping[str, Mapping[str, pd.DataFrame]] = {},
) -> tuple[pd.DataFrame, pd.DataFrame]:  # fmt: skip
    """`audit` of every run, each arm at its own confidence (see `thresholds.choices`); `unlabelled` by split.

    Its tables with split, n_train, arm, seed and the group pixel size; class is a name.
    """
    tables, classes = ([], []), found[0].truth.classes
    for run in found:
        there = unlabelled.get(run.keys["split"], {})
        audited = audit(run.confident(points), run.patches.table, run.patches.index, iou, matching, there)
        for side, table in zip(tables, audited, strict=True):
            names = pd.Categorical(table["class"].map(classes), list(classes.values()))
            size = table["pixel_size_nm"].map("{:g} nm".format)
            side.append(table.assign(**run.keys, **{"class": names, "pixel size": size}))
    return pd.concat(tables[0], ignore_index=True), pd.concat(tables[1], ignore_index=True)


def error_counts(predictions: pd.DataFrame, truths: pd.DataFrame, by: Sequence[str] = ()) -> pd.DataFrame:
    """Errors of each kind per run, and inside groups, from the tables of `audit_runs`.

    Columns split, n_train, arm, seed, `by`, error, count, truths, per_truth (count over truths; NaN without any). A
    missed defect counts in the group of the defect; every other error, those on background too, in the group of the
    prediction: the class that it says and the size of its own box.
    """
    keys = [*RUN, *by]
    wrong = pd.concat([predictions[predictions["error"] != CORRECT], truths[truths["error"] == MISSED]])
    counts = wrong.groupby([*keys, "error"], observed=True).size().unstack("error").reindex(columns=list(ERRORS))
    n = truths.groupby(keys, observed=True).size().rename("truths")
    counts = counts.reindex(counts.index.union(n.index)).fillna(0).astype(int)
    table = counts.stack().rename("count").reset_index().merge(n.reset_index(), how="left").fillna({"truths": 0})
    return table.assign(per_truth=table["count"] / table["truths"].where(table["truths"] > 0))


def recall_by(truths: pd.DataFrame, by: str, rng: np.random.Generator, resamples: int, level: float) -> pd.DataFrame:
    """Share of the truths of `audit` that are found (whatever class was said), with an interval over micrographs.

    A row per group of the column `by`, with truths (distinct ones, however many runs of one split looked for them),
    images, recall (over all runs), low, high.
    """
    table = truths.groupby(by, observed=True).agg(truths=("row", "nunique"), images=("image", "nunique"))
    own = truths[by].to_numpy()[:, None] == table.index.to_numpy()  # (truths, groups)
    found = own & truths["error"].ne(MISSED).to_numpy()[:, None]
    recall, *interval = ratio_interval(found, own, truths["image"], rng, resamples, level)
    table["recall"], several = recall, table["images"] > 1  # of one micrograph nothing varies
    low, high = (np.where(several, edge, np.nan) for edge in interval)
    return table.assign(low=low, high=high).reset_index()


def recall_table(truths: pd.DataFrame, rng: np.random.Generator, resamples: int, level: float) -> pd.DataFrame:
    """`recall_by` each of `GROUPINGS` in which defects differ: by, split, n_train, arm, group, then its columns."""
    tables = {}
    for by in (by for by in GROUPINGS if by == "class" or truths[by].nunique() > 1):
        groups = truths.groupby(ARM)[["row", "image", "error", by]]
        table = groups.apply(recall_by, by, rng, resamples, level).droplevel(-1).reset_index()
        tables[by] = table.rename(columns={by: "group"}).astype({"group": str})
    return pd.concat(tables, names=["by", None]).reset_index("by").reset_index(drop=True)


def image_errors(predictions: pd.DataFrame, truths: pd.DataFrame, size_px: int) -> pd.DataFrame:
    """Errors of defect size and areal density, image by image, from the tables of `audit_runs`, without any matching.

    Size is the mean long side of the boxes that no border of the patches (side `size_px`) cuts; density is the number
    per area, cut ones included. Both are what a reader of the micrograph would tabulate. Columns split, n_train, arm,
    seed, image, class (name, or "all"), truths, found, density_error and size_error (relative, signed; NaN where
    either has no uncut box); a row for each image and class that the truth has.
    """
    tables = []
    for name, table in (("truths", truths), ("found", predictions)):
        cut = (table[["x1", "y1"]] < 1).any(axis=1) | (table[["x2", "y2"]] > size_px - 1).any(axis=1)
        own = table.assign(nm=(table["size_px"] * table["pixel_size_nm"]).where(~cut))
        several = [own.astype({"class": str})] if len(table["class"].cat.categories) > 1 else []
        every = pd.concat([own.assign(**{"class": "all"}), *several])
        groups = every.groupby([*RUN, "image", "class"], sort=False)["nm"]
        tables.append(pd.DataFrame({name: groups.size(), f"{name}_nm": groups.mean()}))
    table = tables[0].join(tables[1]).fillna({"found": 0})
    density, size = (table[f"found{unit}"] / table[f"truths{unit}"] - 1 for unit in ("", "_nm"))
    return table[["truths", "found"]].assign(density_error=density, size_error=size).reset_index()


def materials_table(errors: pd.DataFrame, rng: np.random.Generator, resamples: int, level: float) -> pd.DataFrame:
    """Means of `image_errors` over images, with bootstrap intervals; an image counts once, as the mean of its seeds.

    Columns split, n_train, arm, class, quantity ("density", "size"), images, error, low, high, bias (signed).
    """
    by = [*ARM, "class", "quantity"]
    long = errors.melt([*by[:-1], "image"], ["density_error", "size_error"], "quantity", "bias")
    long = long.assign(error=long["bias"].abs(), quantity=long["quantity"].str.removesuffix("_error"))
    rows = []
    for keys, table in long.groupby([*by, "image"], sort=False)[["error", "bias"]].mean().groupby(by, sort=False):
        own = table.dropna()
        ones, images = np.ones((len(own), 1)), own.index
        mean, *interval = ratio_interval(own[["error"]], ones, images.get_level_values("image"), rng, resamples, level)
        low, high = interval if len(own) > 1 else (mean * np.nan,) * 2
        rows.append((*keys, len(own), own["error"].mean(), *low, *high, own["bias"].mean()))
    return pd.DataFrame(rows, columns=[*by, "images", "error", "low", "high", "bias"])

"""What kind of errors a detector makes, for which classes and sizes, and what a materials scientist reads off it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from companion.evaluation.formats import BOX
from companion.evaluation.matching import Matching, kept, match, score_order
from companion.evaluation.resampling import mean_interval, ratio_interval
from companion.geometry import box_iou

CORRECT, CLASS, DUPLICATE, LOCALISATION, BACKGROUND, MISSED = (
    "correct", "class", "duplicate", "localisation", "background", "missed")  # fmt: skip
ERRORS = (CLASS, DUPLICATE, LOCALISATION, BACKGROUND, MISSED)
SIZES = ("small (≤ 16 px)", "medium (≤ 32 px)", "large (> 32 px)")
BACKGROUND_IOU = 0.1  # below it a box lies on nothing, as in TIDE (Bolya et al. 2020)


def audit(
    predictions: pd.DataFrame,
    truths: pd.DataFrame,
    index: pd.DataFrame,
    iou: float,
    confidence: float,
    matching: Matching = "truth-greedy",
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What became of every prediction and of every truth.

    A prediction is correct, or of the wrong class (matched, other class), a duplicate (it overlaps a truth that
    another prediction has), badly localised (best overlap between 0.1 and `iou`), or on background. A truth is
    correct, of the wrong class, or missed.

    Parameters
    ----------
    predictions : patch, x1, y1, x2, y2 (px), score, label
    truths : patch, x1, y1, x2, y2 (px), class
    index : patch, image, pixel_size_nm

    Returns
    -------
    predictions, truths : row (in the table it came from; for predictions among those that count), patch, image,
    pixel_size_nm, class, error, size_px (long side of the box), x1, y1, x2, y2
    """
    chosen = predictions[predictions["score"] >= confidence].reset_index(drop=True)
    boxes, truth_boxes = chosen[BOX].to_numpy(dtype=float), truths[BOX].to_numpy(dtype=float)
    labels, codes = chosen["label"].to_numpy(), truths["class"].to_numpy()
    fate, truth_fate = np.full(len(chosen), BACKGROUND, dtype=object), np.full(len(truths), MISSED, dtype=object)
    groups, truth_groups = chosen.groupby("patch").indices, truths.reset_index(drop=True).groupby("patch").indices
    for patch in groups.keys() & truth_groups.keys():
        rows, own = groups[patch], truth_groups[patch]
        rows = rows[score_order(chosen["score"].to_numpy()[rows], boxes[rows])]
        overlap = box_iou(truth_boxes[own], boxes[rows])  # (T, M)
        best = overlap.max(axis=0)
        fate[rows] = np.where(best >= iou, DUPLICATE, np.where(best >= BACKGROUND_IOU, LOCALISATION, BACKGROUND))
        found = match(overlap, kept(np.ones(len(rows)), [0.0]), [iou], matching)[0, 0]
        for truth, prediction in zip(own[found >= 0], rows[found[found >= 0]], strict=True):
            fate[prediction] = truth_fate[truth] = CORRECT if labels[prediction] == codes[truth] else CLASS
    named = index[["patch", "image", "pixel_size_nm"]]
    return _described(chosen, labels, fate, named), _described(truths, codes, truth_fate, named)


def _described(table: pd.DataFrame, codes: NDArray, fate: NDArray, index: pd.DataFrame) -> pd.DataFrame:
    size = (table[["x2", "y2"]].to_numpy(dtype=float) - table[["x1", "y1"]].to_numpy(dtype=float)).max(
        axis=1, initial=0
    )
    columns = {"row": np.arange(len(table)), "patch": table["patch"].to_numpy()}
    columns |= {"class": codes, "error": fate, "size_px": size}
    boxes = {name: table[name].to_numpy() for name in BOX}
    return pd.DataFrame({**columns, **boxes}).merge(index, on="patch", how="left")


def error_shares(predictions: pd.DataFrame, truths: pd.DataFrame) -> dict[str, int]:
    """How many errors of each kind (`ERRORS`); errors of class are counted once, at the prediction."""
    wrong = predictions["error"].value_counts()
    return {**{e: int(wrong.get(e, 0)) for e in ERRORS[:-1]}, MISSED: int((truths["error"] == MISSED).sum())}


def recall_by(truths: pd.DataFrame, by: str, rng: np.random.Generator, resamples: int, level: float) -> pd.DataFrame:
    """Share of the truths found (whatever class was said), per group, with an interval over whole micrographs.

    Parameters
    ----------
    truths : as `audit` gives them, with a column `by`; of one split, where those of several runs are given together

    Returns
    -------
    by, truths (distinct ones, however many runs looked for them), images, recall (over all runs), low, high
    """
    rows = []
    for group, table in truths.groupby(by, sort=True, observed=True):
        per_image = table.assign(found=table["error"] != MISSED).groupby("image")["found"].agg(["sum", "count"])
        value, low, high = ratio_interval(per_image["sum"], per_image["count"], rng, resamples, level)
        rows.append((group, table["row"].nunique(), len(per_image), value, low, high))
    return pd.DataFrame(rows, columns=[by, "truths", "images", "recall", "low", "high"])


def size_bins(size_px: Iterable[float]) -> pd.Series:
    """COCO's idea at the size of defects: small up to 16 px, medium up to 32 px, large above (long side of the box)."""
    return pd.Series(pd.cut(list(size_px), [0, 16, 32, np.inf], labels=list(SIZES), include_lowest=True))


def image_errors(
    predictions: pd.DataFrame,
    truths: pd.DataFrame,
    index: pd.DataFrame,
    classes: dict[int, str],
    confidence: float,
    size: int,
) -> pd.DataFrame:
    """Errors of defect size and areal density, image by image, without any matching.

    Size is the mean long side of the boxes that no patch border cuts; density is the number per area, cut ones
    included. Both are what a reader of the micrograph would tabulate.

    Parameters
    ----------
    size : side of a patch, px

    Returns
    -------
    image, class (name, or "all"), truths, found, density_error and size_error (relative, signed; NaN where the truth
    has none of the class, or either has no uncut box)
    """  # fmt: skip
    chosen = predictions[predictions["score"] >= confidence].rename(columns={"label": "class"})
    tables = [_measured(t, index, size) for t in (truths, chosen)]
    groups = {"all": list(classes), **{name: [code] for code, name in classes.items()}}
    if len(classes) == 1:
        groups = {"all": list(classes)}
    rows = []
    for image in index["image"].unique():
        for name, codes in groups.items():
            true, found = (t[(t["image"] == image) & t["class"].isin(codes)] for t in tables)
            size_true, size_found = (t.loc[~t["cut"], "size_nm"].mean() for t in (true, found))
            density = (len(found) - len(true)) / len(true) if len(true) else np.nan
            rows.append((image, name, len(true), len(found), density, (size_found - size_true) / size_true))
    return pd.DataFrame(rows, columns=["image", "class", "truths", "found", "density_error", "size_error"])


def _measured(table: pd.DataFrame, index: pd.DataFrame, size: int) -> pd.DataFrame:
    boxes = table[BOX].to_numpy(dtype=float)
    cut = (boxes[:, :2] < 1).any(axis=1) | (boxes[:, 2:] > size - 1).any(axis=1)
    long_side = (boxes[:, 2:] - boxes[:, :2]).max(axis=1, initial=0)
    own = (
        table[["patch", "class"]]
        .assign(cut=cut)
        .merge(index[["patch", "image", "pixel_size_nm"]], on="patch", how="left")
    )
    return own.assign(size_nm=long_side * own["pixel_size_nm"].to_numpy())


def materials_table(
    errors: pd.DataFrame,
    rng: np.random.Generator,
    resamples: int,
    level: float,
    by: Sequence[str] = ("split", "n_train", "arm", "class"),
) -> pd.DataFrame:
    """Mean absolute and signed relative errors over images, with bootstrap intervals over images.

    Parameters
    ----------
    errors : rows of `image_errors`, with the columns `by`; an image that several runs scored counts once, as their mean

    Returns
    -------
    by..., quantity ("density", "size"), images, error, low, high (mean absolute), bias (mean signed)
    """
    rows = []
    for keys, table in errors.groupby(list(by), sort=True):
        for quantity in ("density", "size"):
            values = table.dropna(subset=[f"{quantity}_error"])
            per_image = values.assign(absolute=values[f"{quantity}_error"].abs()).groupby("image")
            absolute, signed = per_image["absolute"].mean(), per_image[f"{quantity}_error"].mean()
            value, low, high = mean_interval(absolute, rng, resamples, level)
            rows.append((*keys, quantity, len(absolute), value, low, high, float(signed.mean())))
    return pd.DataFrame(rows, columns=[*by, "quantity", "images", "error", "low", "high", "bias"])

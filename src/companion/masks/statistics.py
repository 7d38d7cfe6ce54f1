"""Size, shape, place and number of labelled defects: what the masks are simulated from.

The paper fits an ellipse to the contour of every instance (cv2.fitEllipse) and counts instances per patch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from companion.micrographs.patches import Patches, instance_table
from companion.masks.spatial import inclusion_weights

Fit = Literal["contour", "arc", "moments"]
Ellipse = tuple[float, float, float, float, float]  # x, y, major_px, minor_px, angle_deg
ELLIPSE_COLUMNS = ["x", "y", "major_px", "minor_px", "angle_deg"]
STATISTICS_COLUMNS = [
    "image", "patch", "class", *ELLIPSE_COLUMNS, "area_px", "long_px", "touches_border", "pixel_size_nm",
]  # fmt: skip
CONTOUR_POINTS, ARC_POINTS = 5, 10  # an ellipse has five parameters; part of one needs more points
CONTOUR_PX = 1.0  # OpenCV's contours run through the centres of the outermost pixels: the region is this much wider
# A fit outside these bounds has failed (a line of pixels has no ellipse).
SMALLEST_MINOR_PX, LARGEST_MAJOR = 0.5, 2.0  # the latter in diagonals of the instance's box


def measure(patches: Patches, fit: Fit = "contour") -> pd.DataFrame:
    """One row per instance: its ellipse, area and border contact.

    Parameters
    ----------
    patches : patches with instance maps
    fit : ``"contour"``: cv2.fitEllipse of the longest outer contour, the paper's way, with `ellipse_of_moments`
        where the contour has fewer than five points or the fit fails; ``"arc"``: the same, but of an instance cut by
        the border only the part of the contour inside the patch is fitted, which continues the ellipse beyond the
        border; ``"moments"``: `ellipse_of_moments` for all

    Returns
    -------
    Table in the order of ``patches.table`` with image, patch, class, x, y (px, centre), major_px, minor_px
    (full axes), angle_deg (of the major axis, counter-clockwise as displayed, [0, 180)), area_px (visible), long_px
    (long side of its box), touches_border, pixel_size_nm. Lengths of instances that touch the border are those of
    the visible part, except for ``"arc"``.

    Notes
    -----
    Contour fits come out about `CONTOUR_PX` shorter than the region; moments have no such bias. A mask drawn
    from a contour fit must be as much wider than it, which cv2.ellipse does by itself.
    """
    table = patches.table
    ellipses = np.empty((len(table), len(ELLIPSE_COLUMNS)))
    boxes = table[["x1", "y1", "x2", "y2"]].to_numpy().astype(int)
    ids = zip(table["patch"].to_numpy(), table["instance"].to_numpy(), boxes.tolist(), strict=True)
    for row, (patch, instance, (x1, y1, x2, y2)) in enumerate(ids):
        mask = np.asarray(patches.instances[patch, y1:y2, x1:x2]) == instance
        if fit == "moments":
            x, y, *rest = ellipse_of_moments(mask)
        elif fit == "arc" and (x1 == 0 or y1 == 0 or x2 == patches.size or y2 == patches.size):
            x, y, *rest = ellipse_of_contour(mask, (1 - x1, 1 - y1, patches.size - 2 - x1, patches.size - 2 - y1))
        else:
            x, y, *rest = ellipse_of_contour(mask)
        ellipses[row] = x + x1, y + y1, *rest
    numbers = table["patch"].to_numpy()
    return pd.DataFrame({
        "image": patches.index["image"].to_numpy()[numbers], "patch": numbers, "class": table["class"].to_numpy(),
        **{column: ellipses[:, k] for k, column in enumerate(ELLIPSE_COLUMNS)},
        "area_px": table["area_px"].to_numpy(), "long_px": (boxes[:, 2:] - boxes[:, :2]).max(axis=1, initial=0),
        "touches_border": table["touches_border"].to_numpy(),
        "pixel_size_nm": patches.index["pixel_size_nm"].to_numpy()[numbers],
    })[STATISTICS_COLUMNS]  # fmt: skip


def counts(patches: Patches) -> pd.DataFrame:
    """Instances per patch and class: image, patch, class, count, pixel_size_nm; a row for each, zeros included."""
    shape = (len(patches), len(patches.classes))
    number = np.zeros(shape, dtype=np.int64)
    np.add.at(number, (patches.table["patch"].to_numpy(), patches.table["class"].to_numpy() - 1), 1)
    patch, code = np.indices(shape)
    image, scale = (patches.index[column].to_numpy()[patch.ravel()] for column in ("image", "pixel_size_nm"))
    return pd.DataFrame({"image": image, "patch": patch.ravel(), "class": code.ravel() + 1, "count": number.ravel(),
                         "pixel_size_nm": scale})  # fmt: skip


def ellipse_of_contour(mask: NDArray[np.bool_], inside: tuple[int, int, int, int] | None = None) -> Ellipse:
    """Ellipse through the longest outer contour of a mask [h, w], by cv2.fitEllipse (least squares).

    Parameters
    ----------
    inside : fit only the contour's points with x1 <= x <= x2 and y1 <= y <= y2 (pixel numbers in the mask), unless
        fewer than `ARC_POINTS` are left or the fit fails

    Falls back on `ellipse_of_moments` for contours of fewer than five points and for failed fits.
    """
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    contour = max(contours, key=len)
    if inside is not None:
        points = contour[:, 0]
        arc = contour[((points >= inside[:2]) & (points <= inside[2:])).all(axis=1)]
        found = _fit(arc, mask.shape) if len(arc) >= ARC_POINTS else None
        if found is not None:
            return found
    found = _fit(contour, mask.shape) if len(contour) >= CONTOUR_POINTS else None
    return ellipse_of_moments(mask) if found is None else found


def _fit(points: NDArray[np.int32], shape: tuple[int, ...]) -> Ellipse | None:
    """cv2.fitEllipse in this package's conventions; None if it failed."""
    (x, y), (width, height), turned = cv2.fitEllipse(points)
    sides = np.array([width, height])
    failed = not np.isfinite(sides).all() or sides.min() < SMALLEST_MINOR_PX
    if failed or sides.max() > LARGEST_MAJOR * np.hypot(*shape):
        return None
    # OpenCV turns clockwise as displayed, and its angle is that of the first side; pixel 0 is centred at 0.
    angle = -turned if width >= height else 90.0 - turned
    return x + 0.5, y + 0.5, float(sides.max()), float(sides.min()), angle % 180.0


def ellipse_of_moments(mask: NDArray[np.bool_]) -> Ellipse:
    """Ellipse with the centroid and the second moments of a mask [h, w], each pixel a unit square."""
    rows, columns = np.nonzero(mask)
    x, y = columns.mean(), rows.mean()
    dx, dy = columns - x, y - rows  # y upwards, so that angles are counter-clockwise as displayed
    # A uniform ellipse with semi-axis a has variance a^2 / 4 along it; a unit square adds 1/12 to its centre's.
    xx, yy, xy = (dx * dx).mean() + 1 / 12, (dy * dy).mean() + 1 / 12, (dx * dy).mean()
    middle, spread = (xx + yy) / 2, np.hypot((xx - yy) / 2, xy)
    angle = np.degrees(np.arctan2(2 * xy, xx - yy)) / 2 % 180.0
    return (float(x + 0.5), float(y + 0.5), float(4 * np.sqrt(middle + spread)),
            float(4 * np.sqrt(max(middle - spread, 1 / 12))), float(angle % 180.0))  # fmt: skip


def merge_touching(patches: Patches, out: NDArray[np.integer] | None = None) -> Patches:
    """Patches as read back from label maps: touching instances of one class become one.

    The paper keeps its masks as label maps and finds instances again as contours, so instances of one class
    that touch, also diagonally, merge. Instances cut in two by one on top of them come apart.

    Parameters
    ----------
    out : array that receives the new ids, may be ``patches.instances``; by default a copy
    """
    meeting = np.unique(touching_boxes(patches.table)["patch"].to_numpy())
    if len(meeting) == 0:
        return patches
    instances, labels = np.array(patches.instances) if out is None else out, {}
    for row, (patch, label_map) in enumerate(zip(meeting.tolist(), patches.label_maps(meeting), strict=True)):
        new, number = np.zeros(label_map.shape, np.int32), 0
        for code in np.unique(label_map[label_map > 0]).tolist():
            found, components = cv2.connectedComponents((label_map == code).astype(np.uint8), connectivity=8)
            new[components > 0] = components[components > 0] + number
            labels.update({(row, number + k): code for k in range(1, found)})
            number += found - 1
        if number > np.iinfo(instances.dtype).max:
            instances = instances.astype(np.uint16)
        instances[patch] = new
    merged = instance_table(instances[meeting], labels)
    merged["patch"] = meeting[merged["patch"].to_numpy()].astype("int32")
    untouched = patches.table[~patches.table["patch"].isin(meeting)]
    table = pd.concat([untouched, merged]).sort_values(["patch", "instance"], ignore_index=True)
    return replace(patches, instances=instances, table=table)


def touching_boxes(table: pd.DataFrame) -> pd.DataFrame:
    """Pairs of instances of one patch whose boxes share a pixel or a corner: patch, instance_a < instance_b."""
    boxes = table[["patch", "instance", "x1", "y1", "x2", "y2"]]
    pairs = boxes.merge(boxes, on="patch", suffixes=("_a", "_b"))
    pairs = pairs[pairs["instance_a"] < pairs["instance_b"]]
    meet = np.ones(len(pairs), dtype=bool)
    for low, high in (("x1", "x2"), ("y1", "y2")):
        meet &= (pairs[f"{low}_a"] <= pairs[f"{high}_b"]) & (pairs[f"{low}_b"] <= pairs[f"{high}_a"])
    return pairs.loc[meet, ["patch", "instance_a", "instance_b"]].reset_index(drop=True)


def summary(statistics: pd.DataFrame, counts: pd.DataFrame, classes: tuple[str, ...], size: int) -> pd.DataFrame:
    """One row per class and one for all: number, share, mean per patch, and means over all defects of the plane.

    Means are those of the uncut instances with `spatial.inclusion_weights`, since large ones are cut more often.

    Parameters
    ----------
    size : side of a patch, px

    Returns
    -------
    Table with class (name), instances, share, per_patch, cut_share (of instances that touch the border), and the
    weighted means box_long_nm (long side of the box), major_px, major_nm, aspect (undefined where there is no
    uncut instance).
    """
    rows = []
    n_patches = counts["patch"].nunique()
    weights = inclusion_weights(statistics, size)
    nm = statistics["pixel_size_nm"]
    measures = {
        "box_long_nm": statistics["long_px"] * nm, "major_px": statistics["major_px"],
        "major_nm": statistics["major_px"] * nm, "aspect": statistics["major_px"] / statistics["minor_px"],
    }  # fmt: skip
    for code, name in [*enumerate(classes, start=1), (None, "all")]:
        own = np.ones(len(statistics), dtype=bool) if code is None else (statistics["class"] == code).to_numpy()
        weight = weights * own
        rows.append({
            "class": name, "instances": int(own.sum()), "share": own.sum() / max(1, len(statistics)),
            "per_patch": own.sum() / max(1, n_patches), "cut_share": statistics["touches_border"][own].mean(),
            **{what: (weight * v).sum() / weight.sum() if weight.sum() else np.nan for what, v in measures.items()},
        })  # fmt: skip
    return pd.DataFrame(rows)


def by_magnification(
    statistics: pd.DataFrame, counts: pd.DataFrame, classes: tuple[str, ...], size: int
) -> pd.DataFrame:
    """`summary` for the patches of every pixel size, those without a defect included; first column "nm/px"."""
    tables = [
        summary(statistics[statistics["pixel_size_nm"] == scale], own, classes, size).assign(**{"nm/px": scale})
        for scale, own in counts.groupby("pixel_size_nm")
    ]
    found = pd.concat(tables, ignore_index=True)
    return found[["nm/px", *found.columns.drop("nm/px")]]


def border_bias(patches: Patches, micrographs: Patches) -> pd.DataFrame:
    """Mean major axis and share per class, estimated from patches in four ways, against whole micrographs.

    Parameters
    ----------
    patches : patches that cut some instances
    micrographs : the same micrographs uncut (patches as large as a micrograph), as labelled or, where it is known,
        the exact truth; their own border is corrected for

    Returns
    -------
    Table with class, micrographs_nm (the reference), and per way the relative error of the mean: pieces (every visible
    piece as an instance, the paper's way), arcs (the same with the ellipse continued beyond the border), uncut (whole
    instances only), weighted (the same with `spatial.inclusion_weights`); then micrographs_share, and the class's
    share of all instances as pieces_share and weighted_share.
    """
    contour, arc, whole = measure(patches), measure(patches, fit="arc"), measure(micrographs)
    uncut = ~contour["touches_border"].to_numpy()
    ways = {
        "pieces": (contour, np.ones(len(contour))), "arcs": (arc, np.ones(len(arc))), "uncut": (contour, uncut * 1.0),
        "weighted": (contour, inclusion_weights(contour, patches.size)),
    }  # fmt: skip

    def mean_nm(table: pd.DataFrame, weights: NDArray[np.float64], code: int) -> float:
        weight = weights * (table["class"] == code)
        length = (table["major_px"] + CONTOUR_PX) * table["pixel_size_nm"]
        return float((weight * length).sum() / weight.sum()) if weight.sum() > 0 else float("nan")

    def share(table: pd.DataFrame, weights: NDArray[np.float64], code: int) -> float:
        return float(weights[table["class"] == code].sum() / weights.sum()) if weights.sum() > 0 else float("nan")

    reference = (whole, inclusion_weights(whole, micrographs.size))
    rows = []
    for code, name in enumerate(patches.classes, start=1):
        true = mean_nm(*reference, code)
        rows.append({
            "class": name, "micrographs_nm": true, **{way: mean_nm(*ways[way], code) / true - 1 for way in ways},
            "micrographs_share": share(*reference, code), "pieces_share": share(*ways["pieces"], code),
            "weighted_share": share(*ways["weighted"], code),
        })  # fmt: skip
    return pd.DataFrame(rows)

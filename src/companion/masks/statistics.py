"""Size, shape, place and number of labelled defects: what the masks are simulated from.

The paper fits an ellipse to the contour of every instance (cv2.fitEllipse) and counts instances per patch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import cv2
import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from companion.masks.spatial import inclusion_weights, pairs_within
from companion.micrographs.patches import Patches, instance_table
from companion.stats import cluster_weights, percentile_interval

Fit = Literal["contour", "moments"]
Ellipse = tuple[float, float, float, float, float]  # x, y, major_px, minor_px, angle_deg
ELLIPSE_COLUMNS = ["x", "y", "major_px", "minor_px", "angle_deg"]
STATISTICS_COLUMNS = [
    "image", "patch", "class", *ELLIPSE_COLUMNS, "area_px", "long_px", "touches_border", "pixel_size_nm",
]  # fmt: skip
CONTOUR_POINTS = 5  # an ellipse has five parameters
CONTOUR_PX = 1.0  # OpenCV's contours run through the centres of the outermost pixels: the region is this much wider
# A fit outside these bounds has failed (a line of pixels has no ellipse).
SMALLEST_MINOR_PX, LARGEST_MAJOR = 0.5, 2.0  # the latter in diagonals of the instance's box
RESAMPLES = 500  # behind a curve's interval


def measure(patches: Patches, fit: Fit = "contour") -> pd.DataFrame:
    """One row per instance: its ellipse, area and border contact.

    Parameters
    ----------
    patches : patches with instance maps
    fit : ``"contour"``: cv2.fitEllipse of the longest outer contour, the paper's way, with `ellipse_of_moments`
        where the contour has fewer than five points or the fit fails; ``"moments"``: `ellipse_of_moments` for all

    Returns
    -------
    Table in the order of ``patches.table`` with image, patch, class, x, y (px, centre), major_px, minor_px
    (full axes), angle_deg (of the major axis, counter-clockwise as displayed, [0, 180)), area_px (visible), long_px
    (long side of its box), touches_border, pixel_size_nm. Lengths of instances that touch the border are those of
    the visible part.

    Notes
    -----
    Contour fits come out about `CONTOUR_PX` shorter than the region; moments have no such bias. A mask drawn
    from a contour fit must be as much wider than it, which cv2.ellipse does by itself.
    """
    table, ellipse = patches.table, ellipse_of_moments if fit == "moments" else ellipse_of_contour
    ellipses = np.empty((len(table), len(ELLIPSE_COLUMNS)))
    boxes = table[["x1", "y1", "x2", "y2"]].to_numpy().astype(int)
    ids = zip(table["patch"].to_numpy(), table["instance"].to_numpy(), boxes.tolist(), strict=True)
    for row, (patch, instance, (x1, y1, x2, y2)) in enumerate(ids):
        x, y, *shape = ellipse(np.asarray(patches.instances[patch, y1:y2, x1:x2]) == instance)
        ellipses[row] = x + x1, y + y1, *shape
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
    cells = pd.MultiIndex.from_product([range(len(patches)), range(1, len(patches.classes) + 1)])
    number = patches.table.groupby(["patch", "class"]).size().reindex(cells, fill_value=0)
    patch = cells.get_level_values(0)
    image, scale = (patches.index[column].to_numpy()[patch] for column in ("image", "pixel_size_nm"))
    return pd.DataFrame({"image": image, "patch": patch, "class": cells.get_level_values(1),
                         "count": number.to_numpy(), "pixel_size_nm": scale})  # fmt: skip


def ellipse_of_contour(mask: NDArray[np.bool_]) -> Ellipse:
    """Ellipse through the longest outer contour of a mask [h, w], by cv2.fitEllipse (least squares).

    Falls back on `ellipse_of_moments` for contours of fewer than five points and for failed fits.
    """
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    contour = max(contours, key=len)
    if len(contour) < CONTOUR_POINTS:
        return ellipse_of_moments(mask)
    (x, y), sides, turned = cv2.fitEllipse(contour)
    minor, major = sorted(sides)
    if not np.isfinite(sides).all() or minor < SMALLEST_MINOR_PX or major > LARGEST_MAJOR * np.hypot(*mask.shape):
        return ellipse_of_moments(mask)
    # OpenCV turns clockwise as displayed, and its angle is that of the first side; pixel 0 is centred at 0.
    angle = -turned if sides[0] == major else 90.0 - turned
    return x + 0.5, y + 0.5, major, minor, angle % 180.0


def ellipse_of_moments(mask: NDArray[np.bool_]) -> Ellipse:
    """Ellipse with the centroid and the second moments of a mask [h, w], each pixel a unit square."""
    rows, columns = np.nonzero(mask)
    x, y = columns.mean(), rows.mean()
    dx, dy = columns - x, y - rows  # y upwards, so that angles are counter-clockwise as displayed
    # A uniform ellipse with semi-axis a has variance a^2 / 4 along it; a unit square adds 1/12 to its centre's.
    xx, yy, xy = (dx * dx).mean() + 1 / 12, (dy * dy).mean() + 1 / 12, (dx * dy).mean()
    middle, spread = (xx + yy) / 2, np.hypot((xx - yy) / 2, xy)
    major, minor = 4 * np.sqrt(middle + spread), 4 * np.sqrt(max(middle - spread, 1 / 12))
    angle = np.degrees(np.arctan2(2 * xy, xx - yy)) / 2 % 180.0
    return float(x + 0.5), float(y + 0.5), float(major), float(minor), float(angle % 180.0)


def merge_touching(patches: Patches) -> Patches:
    """Patches as read back from label maps: touching instances of one class become one.

    The paper keeps its masks as label maps and finds instances again as contours, so instances of one class
    that touch, also diagonally, merge. Instances cut in two by one on top of them come apart. The new ids overwrite
    ``patches.instances`` (a copy of ten thousand masks takes seconds), unless its type is too small for them.
    """
    table = patches.table
    i, j = pairs_within(table["patch"].to_numpy())
    low, high = table[["x1", "y1"]].to_numpy(), table[["x2", "y2"]].to_numpy()
    meet = ((low[i] <= high[j]) & (low[j] <= high[i])).all(axis=1)  # boxes that share a pixel or a corner
    meeting = np.unique(table["patch"].to_numpy()[i[meet]])
    if len(meeting) == 0:
        return patches
    labels, new = {}, np.zeros((len(meeting), patches.size, patches.size), np.uint16)
    for row, label_map in enumerate(patches.label_maps(meeting)):
        number = 0
        for code in np.unique(label_map[label_map > 0]).tolist():
            found, components = cv2.connectedComponents((label_map == code).astype(np.uint8), connectivity=8)
            new[row] += np.where(components > 0, components + number, 0).astype(np.uint16)
            labels.update({(row, number + k): code for k in range(1, found)})
            number += found - 1
    dtype = np.promote_types(patches.instances.dtype, np.min_scalar_type(int(new.max())))
    instances = patches.instances.astype(dtype, copy=False)
    instances[meeting] = new
    merged = instance_table(new, labels)
    merged["patch"] = meeting[merged["patch"].to_numpy()].astype("int32")
    table = pd.concat([table[~table["patch"].isin(meeting)], merged])
    return replace(patches, instances=instances, table=table.sort_values(["patch", "instance"], ignore_index=True))


def summary(statistics: pd.DataFrame, counts: pd.DataFrame, classes: tuple[str, ...], size: int) -> pd.DataFrame:
    """A row per pixel size and class; patches without a defect count.

    Means are those of the uncut instances with `spatial.inclusion_weights`, since large ones are cut more often.

    Parameters
    ----------
    size : side of a patch, px

    Returns
    -------
    Table with nm/px, class (name), instances, per_patch, share, cut_share (of instances that touch the border), and the
    weighted means box_long_nm (long side of the box), major_px, major_nm, aspect (undefined where there is no
    uncut instance).
    """
    nm, weights = statistics["pixel_size_nm"], inclusion_weights(statistics, size)
    major, long = statistics["major_px"], statistics["long_px"]
    means = {
        "box_long_nm": long * nm,
        "major_px": major,
        "major_nm": major * nm,
        "aspect": major / statistics["minor_px"],
    }
    rows = []
    for (scale, code), cell in counts.groupby(["pixel_size_nm", "class"]):
        own = ((nm == scale) & (statistics["class"] == code)).to_numpy()
        rows.append({
            "nm/px": scale, "class": classes[code - 1], "instances": int(own.sum()), "per_patch": cell["count"].mean(),
            "share": own.sum() / max(1, (nm == scale).sum()), "cut_share": statistics["touches_border"][own].mean(),
            **{name: weighted_mean(values[own], weights[own]) for name, values in means.items()},
        })  # fmt: skip
    return pd.DataFrame(rows)


def weighted_mean(values: ArrayLike, weights: ArrayLike) -> float:
    """Mean of `values` [M] with `weights` [M]; NaN where nothing has a weight."""
    weights = np.asarray(weights, dtype=float)
    return float(np.average(np.asarray(values), weights=weights)) if weights.sum() > 0 else float("nan")


def share_curve(
    above: NDArray, below: NDArray, groups: ArrayLike, grid: NDArray, rng: np.random.Generator
) -> pd.DataFrame:
    """Sum of `above` by sum of `below` at every point of a grid, with what resampled micrographs make of it.

    Defects of one micrograph share density, size and orientation: resampling defects would make the interval far too
    narrow. A cumulative distribution has ``above = w * (values <= grid)`` and ``below = w``.

    Parameters
    ----------
    above, below : [M, G]; or [M, 1] where it is the same at every point
    groups : [M] micrograph of each value
    grid : [G]

    Returns
    -------
    Table with value (`grid`), share (undefined where the sum of `below` is 0), low, high (pointwise 95 % percentile
    bootstrap intervals over micrographs).
    """
    names, weights = cluster_weights(groups, rng, RESAMPLES)
    member = (np.asarray(groups)[:, None] == names).astype(float)  # [M, groups]
    sums = [np.broadcast_to(member.T @ part, (len(names), len(grid))) for part in (above, below)]
    above, below = (np.vstack([part.sum(axis=0), weights @ part]) for part in sums)  # [1 + R, G]
    curves = np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)
    low, high = percentile_interval(curves[1:])
    return pd.DataFrame({"value": grid, "share": curves[0], "low": low, "high": high})

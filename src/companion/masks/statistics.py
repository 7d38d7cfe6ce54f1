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
from skimage.measure import label

from companion.masks.spatial import inclusion_weights, pairs_within
from companion.micrographs.patches import Patches, instance_table
from companion.stats import ratio_interval

Ellipse = tuple[float, float, float, float, float]  # x, y, major_px, minor_px, angle_deg
ELLIPSE_COLUMNS = ["x", "y", "major_px", "minor_px", "angle_deg"]
STATISTICS_COLUMNS = [
    "image", "patch", "class", *ELLIPSE_COLUMNS, "area_px", "long_px", "touches_border", "pixel_size_nm",
]  # fmt: skip
# OpenCV's contours run through the centres of the outermost pixels: a region is this much wider than the fit to its
# contour (moments have no such bias), and so must be what is drawn from it.
CONTOUR_PX = 1.0
# A fit outside these bounds has failed (a line of pixels has no ellipse).
SMALLEST_MINOR_PX, LARGEST_MAJOR = 0.5, 2.0  # the latter in diagonals of the instance's box
RESAMPLES = 500  # behind a curve's interval


def measure(patches: Patches, fit: Literal["contour", "moments"] = "contour") -> pd.DataFrame:
    """One row per instance: its ellipse (`ellipse_of_contour`, the paper's, or `ellipse_of_moments`), area and border.

    In the order of ``patches.table``, with `STATISTICS_COLUMNS`: x, y (px, centre), major_px, minor_px (full axes),
    angle_deg (of the major axis, counter-clockwise as displayed, [0, 180)), area_px, long_px (long side of its box).
    Lengths of instances that touch the border are those of the visible part.
    """
    table, ellipse = patches.table, ellipse_of_moments if fit == "moments" else ellipse_of_contour
    boxes = table[["patch", "instance", "x1", "y1", "x2", "y2"]].to_numpy().astype(int)
    ellipses = np.empty((len(table), len(ELLIPSE_COLUMNS)))
    for row, (patch, instance, x1, y1, x2, y2) in enumerate(boxes.tolist()):
        x, y, *shape = ellipse(np.asarray(patches.instances[patch, y1:y2, x1:x2]) == instance)
        ellipses[row] = x + x1, y + y1, *shape
    long_px = (boxes[:, 4:] - boxes[:, 2:4]).max(axis=1, initial=0)
    table = table.assign(long_px=long_px, **dict(zip(ELLIPSE_COLUMNS, ellipses.T, strict=True)))
    return table.join(patches.index.set_index("patch")[["image", "pixel_size_nm"]], on="patch")[STATISTICS_COLUMNS]


def cells(patches: Patches) -> pd.MultiIndex:
    """Every patch with every class code."""
    codes = range(1, len(patches.classes) + 1)
    return pd.MultiIndex.from_product([range(len(patches)), codes], names=["patch", "class"])


def counts(patches: Patches) -> pd.DataFrame:
    """Instances per patch and class: image, patch, class, count, pixel_size_nm; a row for each, zeros included."""
    number = patches.table.groupby(["patch", "class"]).size().reindex(cells(patches), fill_value=0)
    number = number.rename("count").reset_index()
    number = number.join(patches.index.set_index("patch")[["image", "pixel_size_nm"]], on="patch")
    return number[["image", "patch", "class", "count", "pixel_size_nm"]]


def ellipse_of_contour(mask: NDArray[np.bool_]) -> Ellipse:
    """Ellipse through the longest outer contour of a mask [h, w], by cv2.fitEllipse (least squares).

    That of its moments for contours of fewer than five points and for failed fits.
    """
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    contour = max(contours, key=len)
    if len(contour) < 5:  # an ellipse has five parameters
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
    that touch, also diagonally, merge. Instances cut in two by one on top of them come apart.
    """
    table = patches.table
    i, j = pairs_within(table["patch"].to_numpy())
    low, high = table[["x1", "y1"]].to_numpy(), table[["x2", "y2"]].to_numpy()
    meet = ((low[i] <= high[j]) & (low[j] <= high[i])).all(axis=1)  # boxes that share a pixel or a corner
    meeting = np.unique(table["patch"].to_numpy()[i[meet]])
    if len(meeting) == 0:
        return patches
    label_maps = patches.label_maps(meeting)
    new = np.stack([label(label_map, connectivity=2) for label_map in label_maps]).astype(np.uint16)
    codes = np.zeros((len(meeting), int(new.max()) + 1), dtype=np.uint8)  # class of every component
    codes[np.arange(len(meeting))[:, None, None], new] = label_maps
    merged = instance_table(new, dict(np.ndenumerate(codes)))
    merged["patch"] = meeting[merged["patch"].to_numpy()].astype("int32")
    instances = patches.instances.astype(np.promote_types(patches.instances.dtype, np.min_scalar_type(new.max())))
    instances[meeting] = new
    table = pd.concat([table[~table["patch"].isin(meeting)], merged])
    return replace(patches, instances=instances, table=table.sort_values(["patch", "instance"], ignore_index=True))


def summary(statistics: pd.DataFrame, counts: pd.DataFrame, classes: tuple[str, ...], size: int) -> pd.DataFrame:
    """A row per pixel size and class, of patches of `size` px; those without a defect count.

    Columns nm/px, class (name), instances, per_patch, share, cut_share (of instances that touch the border), and the
    means of the uncut instances with `spatial.inclusion_weights`, since large ones are cut more often: box_long_nm
    (long side of the box), major_nm, aspect (undefined where there is no uncut instance).
    """
    cell, weight, nm = ["pixel_size_nm", "class"], inclusion_weights(statistics, size), statistics["pixel_size_nm"]
    major, minor = statistics["major_px"], statistics["minor_px"]
    means = {"box_long_nm": statistics["long_px"] * nm, "major_nm": major * nm, "aspect": major / minor}
    table = counts.groupby(cell)["count"].agg(instances="sum", per_patch="mean")
    table["share"] = table["instances"] / table.groupby("pixel_size_nm")["instances"].transform("sum").clip(lower=1)
    table["cut_share"] = statistics.groupby(cell)["touches_border"].mean()
    weighted = {name: values * weight for name, values in means.items()}
    sums = statistics[cell].assign(weight=weight, **weighted).groupby(cell).sum().replace({"weight": {0.0: np.nan}})
    table[list(means)] = sums[list(means)].div(sums["weight"], axis=0)
    names = dict(enumerate(classes, start=1))
    return table.reset_index().replace({"class": names}).rename(columns={"pixel_size_nm": "nm/px"})


def share_curve(
    above: NDArray, below: NDArray, groups: ArrayLike, grid: NDArray, rng: np.random.Generator
) -> pd.DataFrame:
    """`stats.ratio_interval` at every point of a grid [G]: value (this), share, low and high (95 %).

    `groups` [M] are the micrographs of the values. A cumulative distribution has ``above = w * (values <= grid)``
    [M, G] and ``below = w`` [M, 1].
    """
    share, low, high = ratio_interval(above, below, groups, rng, RESAMPLES)
    return pd.DataFrame({"value": grid, "share": share, "low": low, "high": high})

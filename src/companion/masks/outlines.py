"""Instance maps from drawn ellipses: filled ellipses, as in the paper, or the outlines of real instances, turned."""

from __future__ import annotations

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from companion.geometry import ellipse_radius
from companion.masks.statistics import CONTOUR_PX, ELLIPSE_COLUMNS
from companion.micrographs.patches import Patches


def draw_instances(
    drawn: pd.DataFrame, n_patches: int, size: int, real: Patches | None = None, statistics: pd.DataFrame | None = None
) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Instance ids [n_patches, size, size], the later on top; where a centre lies in the patch, at least its pixel.

    Parameters
    ----------
    drawn : patch, instance (id), x, y, major_px, minor_px, angle_deg, source (row of `statistics`, -1 for none)
    real, statistics : where given, an instance has the outline of the real one that its ellipse was fitted to, moved,
        turned and scaled as its ellipse was; the ellipse itself where the real one is cut by a border. Rows of
        `statistics` are in the order of ``real.table``.
    """
    maps = np.zeros((n_patches, size, size), np.uint16 if drawn["instance"].max() > 255 else np.uint8)
    whole = [] if statistics is None else ~statistics["touches_border"].to_numpy()
    if real is not None and statistics is not None:
        boxes = real.table[["patch", "instance", "x1", "y1", "x2", "y2"]].to_numpy().astype(int)
        ellipses = statistics[ELLIPSE_COLUMNS].to_numpy()
    rows = drawn[["patch", "instance", "source", *ELLIPSE_COLUMNS]].itertuples(index=False, name=None)
    for patch, instance, source, x, y, *shape in rows:
        if 0 <= source < len(whole) and whole[source]:
            from_patch, number, x1, y1, x2, y2 = boxes[source]
            outline = np.asarray(real.instances[from_patch, y1:y2, x1:x2]) == number
            filled, window = _moved(outline, ellipses[source] - [x1, y1, 0, 0, 0], size, x, y, *shape)
        else:
            radius, window = ellipse_radius((size, size), x, y, *shape)
            filled = radius <= 1
        maps[patch][window][filled] = instance
        if 0 <= x < size and 0 <= y < size:
            maps[patch, int(y), int(x)] = instance
    return maps


def _moved(
    outline: NDArray[np.bool_],
    ellipse: NDArray,
    size: int,
    x: float,
    y: float,
    major: float,
    minor: float,
    angle: float,
) -> tuple[NDArray[np.bool_], tuple[slice, slice]]:
    """The mask of a real instance, moved as its ellipse was to another, and its window of the patch (may be empty)."""
    cx, cy, real_major, _, real_angle = ellipse
    scale = major / (real_major + CONTOUR_PX)
    reach = scale * np.hypot(*outline.shape) + 1
    left, top = (min(max(0, int(centre - reach)), size) for centre in (x, y))
    right, bottom = (max(min(size, int(centre + reach) + 1), low) for centre, low in ((x, left), (y, top)))
    window = slice(top, bottom), slice(left, right)
    if right == left or bottom == top:
        return np.zeros((bottom - top, right - left), bool), window
    # OpenCV turns counter-clockwise as displayed, and puts pixel centres at whole numbers.
    turn = cv2.getRotationMatrix2D((cx - 0.5, cy - 0.5), angle - real_angle, scale)
    turn[:, 2] += x - left - cx, y - top - cy
    filled = cv2.warpAffine(outline.astype(np.uint8) * 255, turn, (right - left, bottom - top), flags=cv2.INTER_LINEAR)
    return filled > 127, window

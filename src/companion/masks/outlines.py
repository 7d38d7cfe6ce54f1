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
        turned and scaled as its ellipse was; the ellipse itself where the real one is cut by a border
    """
    maps = np.zeros((n_patches, size, size), np.uint16 if drawn["instance"].max() > 255 else np.uint8)
    traced = np.zeros(len(drawn), bool)
    if statistics is not None:  # its rows are in the order of the table's
        boxes = real.table[["patch", "instance", "x1", "y1", "x2", "y2"]].to_numpy().astype(int)
        ellipses, cut = statistics[ELLIPSE_COLUMNS].to_numpy(), statistics["touches_border"].to_numpy()
        traced = (drawn["source"] >= 0).to_numpy() & ~cut[drawn["source"]]
    rows = drawn[["patch", "instance", "source", *ELLIPSE_COLUMNS]].itertuples(index=False, name=None)
    for (patch, instance, source, x, y, major, minor, angle), real_outline in zip(rows, traced, strict=True):
        if real_outline:
            home, number, x1, y1, x2, y2 = boxes[source]
            outline = np.asarray(real.instances[home, y1:y2, x1:x2]) == number
            cx, cy, real_major, _, real_angle = ellipses[source] - [x1, y1, 0, 0, 0]
            # OpenCV turns counter-clockwise as displayed, and puts pixel centres at whole numbers.
            scale = major / (real_major + CONTOUR_PX)
            moved = cv2.getRotationMatrix2D((cx - 0.5, cy - 0.5), angle - real_angle, scale)
            moved[:, 2] += x - cx, y - cy
            maps[patch][cv2.warpAffine(outline.astype(np.uint8) * 255, moved, (size, size)) > 127] = instance
        else:
            radius, window = ellipse_radius((size, size), x, y, major, minor, angle)
            maps[patch][window][radius <= 1] = instance
        if 0 <= x < size and 0 <= y < size:
            maps[patch, int(y), int(x)] = instance
    return maps

"""Instance maps from drawn ellipses: filled ellipses, as in the paper, or the outlines of real instances, turned."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from companion.micrographs.patches import TABLE_COLUMNS, Patches
from companion.geometry import box_of, ellipse_radius
from companion.masks.statistics import CONTOUR_PX, ELLIPSE_COLUMNS

Maps = NDArray[np.uint8] | NDArray[np.uint16]  # [P, S, S] instance ids
Window = tuple[slice, slice]  # rows and columns of a patch


def draw_ellipses(drawn: pd.DataFrame, n_patches: int, size: int) -> tuple[Maps, list[Window]]:
    """Filled ellipses, the later on top; one whose centre lies in the patch has at least the pixel there.

    Parameters
    ----------
    drawn : patch, instance (id), x, y, major_px, minor_px, angle_deg

    Returns
    -------
    maps : instance ids [n_patches, size, size]
    windows : for each row of `drawn` the part of its patch that holds it
    """
    maps, windows = _blank(drawn, n_patches, size), []
    rows = drawn[["patch", "instance", *ELLIPSE_COLUMNS]].itertuples(index=False, name=None)
    for patch, instance, x, y, *shape in rows:
        radius, window = ellipse_radius((size, size), x, y, *shape)
        maps[patch][window][radius <= 1] = instance
        if 0 <= x < size and 0 <= y < size:
            maps[patch, int(y), int(x)] = instance
        windows.append(window)
    return maps, windows


def visible_table(maps: Maps, windows: list[Window], drawn: pd.DataFrame) -> pd.DataFrame:
    """`Patches.table` of drawn instances; looks only where they were drawn, which whole-patch tables cannot."""
    rows, size = [], maps.shape[-1]
    ids = drawn[["patch", "instance", "class"]].itertuples(index=False, name=None)
    for (patch, instance, code), (down, across) in zip(ids, windows, strict=True):
        seen = maps[patch, down, across] == instance
        area = np.count_nonzero(seen)
        if area == 0:
            continue
        x1, y1, x2, y2 = box_of(seen)
        x1, y1, x2, y2 = x1 + across.start, y1 + down.start, x2 + across.start, y2 + down.start
        touches = x1 == 0 or y1 == 0 or x2 == size or y2 == size
        rows.append((patch, instance, code, x1, y1, x2, y2, area, touches))
    types = {column: "float32" if column in ("x1", "y1", "x2", "y2") else "int32" for column in TABLE_COLUMNS}
    return pd.DataFrame(rows, columns=TABLE_COLUMNS).astype({**types, "touches_border": bool})


def draw_instances(
    real: Patches, statistics: pd.DataFrame
) -> Callable[[pd.DataFrame, int, int], tuple[Maps, list[Window]]]:
    """A function like `draw_ellipses` that fills the outline of the real instance an ellipse was fitted to.

    The outline is moved, turned and scaled as its ellipse was. Where there is none (no source, or cut by a border)
    the ellipse is drawn.

    Parameters
    ----------
    statistics : rows in the order of ``real.table``; ``drawn["source"]`` counts in them
    """
    boxes = real.table[["patch", "instance", "x1", "y1", "x2", "y2"]].to_numpy().astype(int)
    whole = ~statistics["touches_border"].to_numpy()
    ellipses = statistics[ELLIPSE_COLUMNS].to_numpy()

    def draw(drawn: pd.DataFrame, n_patches: int, size: int) -> tuple[Maps, list[Window]]:
        source = drawn["source"].to_numpy()
        traced = (source >= 0) & whole[source]
        maps, windows = _blank(drawn, n_patches, size), []
        rows = drawn[["patch", "instance", *ELLIPSE_COLUMNS]].itertuples(index=False, name=None)
        for (patch, instance, x, y, major, minor, angle), row, known in zip(rows, source, traced, strict=True):
            if not known:
                radius, window = ellipse_radius((size, size), x, y, major, minor, angle)
                maps[patch][window][radius <= 1] = instance
                windows.append(window)
                continue
            from_patch, number, x1, y1, x2, y2 = boxes[row]
            outline = (np.asarray(real.instances[from_patch, y1:y2, x1:x2]) == number).astype(np.uint8) * 255
            cx, cy, real_major, _, real_angle = ellipses[row]
            scale = major / (real_major + CONTOUR_PX)
            reach = int(np.ceil(scale * np.hypot(*outline.shape))) + 2
            left, top = int(np.floor(x)) - reach, int(np.floor(y)) - reach
            # OpenCV turns counter-clockwise as displayed, and puts pixel centres at whole numbers.
            turn = cv2.getRotationMatrix2D((cx - x1 - 0.5, cy - y1 - 0.5), angle - real_angle, scale)
            turn[:, 2] += x - left - (cx - x1), y - top - (cy - y1)
            filled = cv2.warpAffine(outline, turn, (2 * reach + 1, 2 * reach + 1), flags=cv2.INTER_LINEAR) > 127
            windows.append(_paste(maps[patch], filled, left, top, instance))
        return maps, windows

    return draw


def _blank(drawn: pd.DataFrame, n_patches: int, size: int) -> Maps:
    many = drawn["instance"].max() > np.iinfo(np.uint8).max
    return np.zeros((n_patches, size, size), dtype=np.uint16 if many else np.uint8)


def _paste(ids: NDArray, filled: NDArray[np.bool_], left: int, top: int, instance: int) -> Window:
    height, width = filled.shape
    y1, x1 = (min(max(0, low), side) for low, side in zip((top, left), ids.shape, strict=True))
    y2, x2 = max(y1, min(ids.shape[0], top + height)), max(x1, min(ids.shape[1], left + width))
    window = slice(y1, y2), slice(x1, x2)
    ids[window][filled[y1 - top : y2 - top, x1 - left : x2 - left]] = instance
    return window

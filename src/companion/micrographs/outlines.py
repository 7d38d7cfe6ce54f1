"""COCO segmentations: polygons and run lengths as masks and back, and the one rule for outlines that leave an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from companion.errors import CompanionError
from companion.geometry import box_of

OUTSIDE_SHARE = 0.1  # of its pixels, that an outline may have outside its image: there it is cut off
TOLERANCE_PX = 1.0  # annotation tools round outwards, so an outline may end this far outside without being noted

Window = tuple[slice, slice]  # (rows, columns)


def lengths(text: str) -> list[int]:
    """Run lengths in COCO's compressed text: six bits a character, the third and later less the last but one.

    A ValueError says what is wrong with it.
    """
    lengths, value, shift = [], 0, 0
    for code in text.encode():
        if not 0 <= code - 48 < 64:
            raise ValueError(f"its run lengths have the character {chr(code)!r}, which is none of COCO's")
        value |= (code - 48 & 31) << shift
        shift += 5
        if not code - 48 & 32:
            value -= (code - 48 & 16 and 1) << shift
            lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("its run lengths end within a number")
    return lengths


def outline_problem(given: Any, height: int, width: int) -> str:
    """Why a segmentation is none of an image of that size, px; empty where it is one."""
    if isinstance(given, Mapping):
        try:  # the library decodes damaged text to whatever lies in memory
            counts = lengths(given["counts"]) if isinstance(given["counts"], str) else given["counts"]
        except ValueError as error:
            return str(error)
        if given["size"] != [height, width]:
            return f"its run lengths are of {given['size'][1]} x {given['size'][0]} px, not {width} x {height}"
        right = min(counts, default=0) >= 0 and sum(counts) == height * width
        return "" if right else f"its run lengths are not counts that add up to {width} x {height} px"
    if not given or any(len(ring) < 6 or len(ring) % 2 or not np.isfinite(ring).all() for ring in given):
        return "segmentation should be run lengths, or polygons of three or more x, y pairs (no box alone)"
    share = 0.0
    if leaves(given, height, width):
        margin = int(max(np.abs(ring).max() for ring in given)) + 1
        # An outline as far away as a whole image is none of it.
        moved = [(np.asarray(ring) + margin).tolist() for ring in given] if margin < 2 * max(height, width) else []
        whole = _area(moved, height + 2 * margin, width + 2 * margin) if moved else 0
        share = 1 - _area(given, height, width) / whole if whole else 1.0
    if share <= OUTSIDE_SHARE:
        return ""
    said = f"a polygon reaches outside the {width} x {height} px image with {share:.0%} of its area"
    return f"{said} (up to {OUTSIDE_SHARE:.0%} is cut off): redraw it, or is it another image's?"


def leaves(rings: Sequence[Sequence[float]], height: int, width: int) -> bool:
    """Whether polygons x1, y1, x2, y2, ... reach farther out of an image than tools round."""
    x, y = (np.concatenate([ring[axis::2] for ring in rings]) for axis in (0, 1))
    return bool(max(-x.min(), x.max() - width, -y.min(), y.max() - height) > TOLERANCE_PX)


def _area(rings: list[list[float]], height: int, width: int) -> int:
    return int(coco.area(coco.merge(coco.frPyObjects(rings, height, width))))


def run_lengths(mask: NDArray[np.bool_], window: Window, height: int, width: int) -> dict[str, Any]:
    """Compressed run lengths of a mask [h, w], not empty, that lies in a window of an image of that size, px."""
    columns, rows = np.nonzero(mask.T)
    pixels = (columns + window[1].start) * height + rows + window[0].start  # down the columns
    gaps = np.flatnonzero(np.diff(pixels) != 1)
    ends = np.stack([pixels[np.r_[0, gaps + 1]], pixels[np.r_[gaps, -1]] + 1], axis=1).ravel()
    plain = {"size": [height, width], "counts": np.diff(np.r_[0, ends, height * width]).tolist()}
    return {**plain, "counts": coco.frPyObjects(plain, height, width)["counts"].decode("ascii")}


def segmentation_mask(segmentation: Any, height: int, width: int) -> tuple[NDArray[np.bool_], Window]:
    """Pixels of a COCO segmentation: polygons (their union) or run lengths, compressed or not.

    Returns
    -------
    mask : bool [h, w] in the window that holds it; may be empty
    window : (row, column) slices of the image
    """
    if isinstance(segmentation, Mapping):
        plain = isinstance(segmentation["counts"], list)
        try:
            mask = coco.decode(coco.frPyObjects(segmentation, height, width) if plain else segmentation).astype(bool)
        except ValueError:
            raise CompanionError("its run lengths are damaged") from None
        x1, y1, x2, y2 = box_of(mask)
        return mask[y1:y2, x1:x2], (slice(y1, y2), slice(x1, x2))
    # Polygons are drawn in their own window: a 4096 px micrograph has hundreds of small ones.
    xs, ys = (np.concatenate([ring[axis::2] for ring in segmentation]) for axis in (0, 1))
    x1, y1 = (int(np.clip(np.floor(v.min()) - 1, 0, side)) for v, side in ((xs, width), (ys, height)))
    x2, y2 = (int(np.clip(np.ceil(v.max()) + 1, 0, side)) for v, side in ((xs, width), (ys, height)))
    if x2 <= x1 or y2 <= y1:
        return np.zeros((0, 0), dtype=bool), (slice(0, 0), slice(0, 0))
    shifted = [(np.reshape(ring, (-1, 2)) - (x1, y1)).ravel().tolist() for ring in segmentation]
    rings = coco.frPyObjects(shifted, y2 - y1, x2 - x1)
    return coco.decode(coco.merge(rings)).astype(bool), (slice(y1, y2), slice(x1, x2))

"""Ellipses, boxes, symmetries and run-length masks: the geometry every stage shares.

Coordinates are pixels, origin top left, x right, y down; boxes (x1, y1, x2, y2) are half-open, so that
``x2 - x1`` is a width in pixels; angles are degrees, counter-clockwise from +x as displayed, in [0, 180).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

Boxes = NDArray[np.floating]  # [N, 4]: x1, y1, x2, y2 in px
SYMMETRIES = 8  # 0-3: counter-clockwise turns by 90 degrees; 4-7: the same after a left-right flip


def symmetry(array: NDArray, code: int) -> NDArray:
    """One of the eight symmetries of the square on the last two axes, as a view.

    Parameters
    ----------
    array : [..., S, S]
    code : 0-7; ``code % 4`` counter-clockwise quarter turns (as displayed), after a left-right flip if ``code >= 4``

    Raises
    ------
    ValueError
        If `code` is not in 0-7.
    """
    if not 0 <= code < SYMMETRIES:
        raise ValueError(f"symmetry {code} is not in 0-7")
    flipped = array[..., ::-1] if code >= 4 else array
    return np.rot90(flipped, code % 4, axes=(-2, -1))


def symmetry_boxes(boxes: Boxes, code: int, size: int) -> Boxes:
    """Boxes of a square patch of side `size` px after `symmetry` with the same code."""
    x1, y1, x2, y2 = np.asarray(boxes, dtype=float).reshape(-1, 4).T
    if code >= 4:
        x1, x2 = size - x2, size - x1
    for _ in range(code % 4):  # one counter-clockwise turn takes (x, y) to (y, size - x)
        x1, y1, x2, y2 = y1, size - x2, y2, size - x1
    return np.stack([x1, y1, x2, y2], axis=1)


def symmetry_angle(angle_deg: NDArray, code: NDArray | int) -> NDArray:
    """Angles in degrees, in [0, 180), after `symmetry` with the same code, or with one code for each."""
    return (np.where(np.asarray(code) >= 4, -1, 1) * angle_deg + 90.0 * (np.asarray(code) % 4)) % 180.0


def box_of(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Half-open bounding box of a mask [H, W]; (0, 0, 0, 0) if it is empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if rows.size == 0:
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def box_iou(a: Boxes, b: Boxes) -> NDArray[np.float64]:
    """Intersection over union of boxes [N, 4] and [M, 4] -> [N, M]; two empty boxes give 0."""
    a, b = np.asarray(a, dtype=float).reshape(-1, 4), np.asarray(b, dtype=float).reshape(-1, 4)
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    inter = np.clip(high - low, 0, None).prod(axis=2)
    area = [np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=1) for boxes in (a, b)]
    union = area[0][:, None] + area[1][None, :] - inter
    return np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)


def ellipse_radius(
    shape: tuple[int, int], x: float, y: float, major_px: float, minor_px: float, angle_deg: float
) -> tuple[NDArray[np.float32], tuple[slice, slice]]:
    """Normalised elliptical radius around a centre, in the window that holds the ellipse of these full axes.

    Returns
    -------
    radius : float32 [h, w], 1 on the outline, below 1 inside
    window : the (row, column) slices of the image of `shape` that it covers, clipped; may be empty
    """
    a, b, t = major_px / 2, minor_px / 2, np.deg2rad(angle_deg)
    half_w, half_h = np.hypot(a * np.cos(t), b * np.sin(t)), np.hypot(a * np.sin(t), b * np.cos(t))
    rows, columns = (
        slice(max(0, int(np.floor(centre - half)) - 1), max(0, min(side, int(np.ceil(centre + half)) + 2)))
        for centre, half, side in ((y, half_h, shape[0]), (x, half_w, shape[1]))
    )
    # Pixel centres lie at half-integers: pixel 0 covers [0, 1).
    dy = np.arange(rows.start, max(rows.start, rows.stop), dtype=np.float32)[:, None] + 0.5 - y
    dx = np.arange(columns.start, max(columns.start, columns.stop), dtype=np.float32)[None, :] + 0.5 - x
    along, across = dx * np.cos(t) - dy * np.sin(t), dx * np.sin(t) + dy * np.cos(t)
    radius = np.hypot(along / a, across / b)
    return radius.astype(np.float32), (rows, columns)


def encode_rle(masks: NDArray[np.bool_]) -> list[bytes]:
    """COCO compressed run-length bytes of masks [N, H, W]; read back with `decode_rle`."""
    if len(masks) == 0:
        return []
    stacked = np.asfortranarray(np.moveaxis(np.asarray(masks, dtype=np.uint8), 0, -1))
    return [rle["counts"] for rle in coco.encode(stacked)]


def decode_rle(counts: list[bytes], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Masks [N, H, W] from COCO compressed run-length bytes for an image of `shape` (H, W)."""
    if len(counts) == 0:
        return np.zeros((0, *shape), dtype=bool)
    decoded = coco.decode([{"size": list(shape), "counts": c} for c in counts])
    return np.moveaxis(decoded, -1, 0).astype(bool)

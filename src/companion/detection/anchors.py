"""Anchors: boxes of fixed sides and aspect ratios on a grid, which the network corrects, and how well they fit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.models.detection.anchor_utils import AnchorGenerator

from companion.errors import CompanionError
from companion.geometry import Boxes
from companion.config.profile import Detection

ASPECT_RATIOS = (0.5, 1.0, 2.0)  # height / width of anchors
STRIDES = {
    "tiny": (4, 8, 16),
    "compact": (4, 8, 16),
    "r50-fpn": (4, 8, 16, 32, 64),
}  # px per cell of each feature level


def per_level(sizes: Sequence[int | list[int]]) -> list[tuple[int, ...]]:
    """Anchor sides of every level, given one or several for each."""
    return [(size,) if isinstance(size, int) else tuple(size) for size in sizes]


def generator(settings: Detection) -> AnchorGenerator:
    """torchvision's generator of the settings' anchors.

    Raises
    ------
    CompanionError
        The settings have more or fewer sizes than the network has feature levels.
    """
    sizes, levels = settings.anchor_sizes_px, len(STRIDES[settings.network])
    if len(sizes) != levels:
        raise CompanionError(
            f"detection.anchor_sizes_px {sizes}: network '{settings.network}' has {levels} feature levels "
            "and needs one anchor size for each"
        )
    return AnchorGenerator(tuple(per_level(sizes)), (ASPECT_RATIOS,) * levels)


def anchor_boxes(settings: Detection, size: int) -> list[NDArray[np.float32]]:
    """Anchors of every feature level for patches of side `size`, each float32 [rows, columns, shapes, 4] in px."""
    strides, seen = STRIDES[settings.network], settings.resize_px or size
    grids = [[-(-seen // stride)] * 2 for stride in strides]
    made = generator(settings).grid_anchors(grids, [[torch.tensor(stride)] * 2 for stride in strides])
    made = [boxes * (size / seen) for boxes in made]
    return [boxes.reshape(*grid, -1, 4).numpy() for boxes, grid in zip(made, grids, strict=True)]


def best_anchors(boxes: Boxes, levels: Sequence[NDArray[np.float32]]) -> tuple[NDArray, NDArray]:
    """The anchor with the largest IoU with each box, without comparing it with a million of them.

    Of anchors of one shape on a regular grid, the one whose centre is nearest to the box's overlaps it most in x and
    in y, hence has the largest IoU: one candidate per level and shape is enough.

    Parameters
    ----------
    boxes : [N, 4] px, with an area
    levels : of `anchor_boxes`

    Returns
    -------
    anchors : float64 [N, 4] px
    iou : float64 [N], 0 where no anchor overlaps the box
    """
    boxes = np.asarray(boxes, dtype=float).reshape(-1, 1, 4)
    centres = boxes[..., :2] + boxes[..., 2:]  # twice the centres, as are the others here
    candidates = []
    for level in levels:
        grid = level.astype(float)
        first = grid[0, 0, :, :2] + grid[0, 0, :, 2:]  # (shapes, 2)
        places = []
        for axis, count in ((0, grid.shape[1]), (1, grid.shape[0])):
            last = grid[-1, -1, 0, axis] + grid[-1, -1, 0, axis + 2]
            step = (last - first[0, axis]) / max(1, count - 1) or 1.0
            places.append(((centres[..., axis] - first[:, axis]) / step).round().astype(int).clip(0, count - 1))
        columns, rows = places  # (N, shapes)
        candidates.append(grid[rows, columns, np.arange(grid.shape[2])])
    found = np.concatenate(candidates, axis=1)  # (N, all shapes, 4)
    sides = np.minimum(boxes[..., 2:], found[..., 2:]) - np.maximum(boxes[..., :2], found[..., :2])
    inter = sides.clip(min=0).prod(axis=2)
    iou = inter / (
        (boxes[..., 2:] - boxes[..., :2]).prod(axis=2) + (found[..., 2:] - found[..., :2]).prod(axis=2) - inter
    )
    best = iou.argmax(axis=1)
    rows = np.arange(len(boxes))
    return found[rows, best], iou[rows, best]

"""Editing a mask: take a defect away, or put it elsewhere, to see what the denoiser makes of it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


def remove(instances: NDArray[np.integer], label_map: NDArray[np.uint8], instance: int) -> NDArray[np.uint8]:
    """The label map [S, S] without one instance, background in its place.

    Parameters
    ----------
    instances : [S, S] instance ids
    label_map : uint8 [S, S] class codes
    instance : id; one that is not there changes nothing
    """
    return np.where(instances == instance, 0, label_map) if instance else label_map.copy()


def move(
    instances: NDArray[np.integer], label_map: NDArray[np.uint8], instance: int, dx: int, dy: int, turn_deg: float = 0.0
) -> NDArray[np.uint8]:
    """The label map [S, S] with one instance turned about its centre and shifted, on top of what is there.

    Parameters
    ----------
    instances, label_map, instance : as for `remove`
    dx, dy : shift to the right and downwards, px; what leaves the patch comes back on the opposite side
    turn_deg : turn, degrees counter-clockwise as displayed
    """
    shape = instances == instance
    if not instance or not shape.any():
        return label_map.copy()
    code = label_map[shape].max()
    if turn_deg:
        shape = _turned(shape, turn_deg)
    return np.where(np.roll(shape, (dy, dx), axis=(0, 1)), code, remove(instances, label_map, instance))


def _turned(shape: NDArray[np.bool_], turn_deg: float) -> NDArray[np.bool_]:
    # affine_transform asks, for each pixel of the result, where it comes from: the inverse turn about the centre.
    centre = np.array(ndimage.center_of_mass(shape))
    cos, sin = np.cos(np.deg2rad(turn_deg)), np.sin(np.deg2rad(turn_deg))
    inverse = np.array([[cos, sin], [-sin, cos]])  # on (row, column), rows downwards
    return ndimage.affine_transform(shape.astype(np.uint8), inverse, centre - inverse @ centre, order=0) > 0

"""Pixels of the one format: grey images, and COCO segmentations as masks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

from companion.errors import CompanionError
from companion.geometry import box_of
from companion.provenance import atomic

PERCENTILES = (0.5, 99.5)  # grey levels of a 16-bit micrograph that become 0 and 255
CHANNEL_DIFFERENCE = 3  # grey levels between the channels of a grey picture that was stored in colour (JPEG)
SUFFIXES = (".png", ".tif", ".tiff")  # of the one format
Window = tuple[slice, slice]  # (rows, columns)


def read_grey(path: Path) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Grey levels [H, W] of an 8 or 16-bit image file; a colour file counts if its channels are equal."""
    try:
        with Image.open(path) as opened:
            if (frames := getattr(opened, "n_frames", 1)) > 1:
                raise CompanionError(f"{path} is a stack of {frames} pictures; save the one that counts as a file")
            pixels = np.asarray(opened.convert("RGB") if opened.mode in ("P", "RGBA", "LA", "1") else opened)
    except (OSError, ValueError, SyntaxError) as error:
        raise CompanionError(f"{path} is not a readable image: {error}") from None
    if pixels.ndim == 3:
        if int(np.ptp(pixels[..., :3].astype(np.int16), axis=2).max()) > CHANNEL_DIFFERENCE:
            raise CompanionError(f"{path} is a colour picture; micrographs and label maps are grey")
        pixels = pixels[..., 1]
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype.kind not in "iu" or pixels.min() < 0 or pixels.max() > 65535:
        raise CompanionError(f"{path} holds {pixels.dtype} values; micrographs are 8 or 16-bit grey")
    return pixels.astype(np.uint16)


def to_uint8(pixels: NDArray[np.uint8] | NDArray[np.uint16]) -> NDArray[np.uint8]:
    """8-bit images as they are; 16-bit ones scaled linearly, 0.5th percentile to 0 and 99.5th to 255."""
    if pixels.dtype == np.uint8:
        return pixels
    low, high = np.percentile(pixels, PERCENTILES)
    scaled = (pixels.astype(np.float64) - low) * (255.0 / max(high - low, 1.0))
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def write_grey(path: Path, pixels: NDArray[np.uint8] | NDArray[np.uint16]) -> None:
    """Write a grey image [H, W] as PNG, atomically."""
    with atomic(path) as temporary:
        Image.fromarray(pixels).save(temporary)


def segmentation_mask(segmentation: Any, height: int, width: int) -> tuple[NDArray[np.bool_], Window]:
    """Pixels of a COCO segmentation: polygons (their union) or run lengths, compressed or not.

    Returns
    -------
    mask : bool [h, w] in the window that holds it; may be empty
    window : (row, column) slices of the image
    """
    if isinstance(segmentation, Mapping):
        plain = isinstance(segmentation["counts"], list)
        mask = coco.decode(coco.frPyObjects(segmentation, height, width) if plain else segmentation).astype(bool)
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

"""Measures of patches with images: contrast of defects, texture, the nearest training patch.

Nothing here compares with a yardstick; `companion.diffusion.quality` does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage
from skimage.transform import downscale_local_mean
from sklearn.neighbors import NearestNeighbors

from companion import geometry
from companion.errors import CompanionError
from companion.micrographs.patches import Patches

RING_PX = 4  # width of the ring around a defect that its inside is compared with
THUMBNAIL_PX = 32  # side at which patches are compared for copies: the noise is averaged away, the defects are not
PROFILE_PX = 8  # how far inside and outside an outline the grey level is followed
Floats = NDArray[np.float64]


def mask_contrast(patches: Patches) -> pd.DataFrame:
    """Grey level inside each defect's mask against a ring around it.

    The ring is `RING_PX` wide and leaves out every other defect; a defect without any ring pixel gets no row.

    Returns
    -------
    One row per instance: patch, instance, class, inside and around (mean grey levels), contrast
    ((around - inside) / around, positive where the defect is darker).
    """
    rows = []
    for patch, instance, code, ids, grey in _defects(patches, RING_PX):
        inside = ids == instance
        ring = ndimage.binary_dilation(inside, iterations=RING_PX) & (ids == 0)
        if ring.any():
            rows.append((patch, instance, code, grey[inside].mean(), grey[ring].mean()))
    table = pd.DataFrame(rows, columns=["patch", "instance", "class", "inside", "around"])
    return table.assign(contrast=(table["around"] - table["inside"]) / table["around"].clip(lower=1))


def contrast_profiles(patches: Patches) -> tuple[Floats, Floats]:
    """Grey level across the outlines of defects, against distance from the outline, per patch and class.

    Grey levels are divided by the mean of the defect's surroundings (between 4 px and `PROFILE_PX` off its outline);
    pixels of other defects are left out.

    Returns
    -------
    total, count : [P, K, 2 * `PROFILE_PX`], sums of relative grey levels and numbers of pixels at distances from
        ``-PROFILE_PX + 0.5`` (inside) to ``PROFILE_PX - 0.5`` px (outside); divide sums over patches of the two
    """
    total = np.zeros((len(patches), len(patches.classes), 2 * PROFILE_PX))
    count = np.zeros_like(total)
    for patch, instance, code, ids, grey in _defects(patches, PROFILE_PX):
        # The frame is neither inside nor outside: nothing is known of what lies beyond the border.
        inside, depth = ids == instance, ndimage.distance_transform_edt
        if inside.all():
            continue
        # Whole pixels off the outline: 0 is the first one outside, -1 the first one inside.
        off = np.where(inside, -np.ceil(depth(inside)), np.floor(depth(~inside) - 1e-9)).astype(int)
        own = (inside | (ids == 0)) & (np.abs(off + 0.5) < PROFILE_PX)
        if (around := own & (off >= RING_PX)).any():
            bins, relative = off[own] + PROFILE_PX, grey[own] / max(1.0, grey[around].mean())
            total[patch, code - 1] += np.bincount(bins, relative, minlength=2 * PROFILE_PX)
            count[patch, code - 1] += np.bincount(bins, minlength=2 * PROFILE_PX)
    return total, count


def power_spectra(images: NDArray[np.uint8]) -> tuple[Floats, Floats]:
    """Radially averaged power spectrum of each patch uint8 [P, S, S], under a Hann window.

    Returns
    -------
    frequency : [S/2], cycles per px, from 1/S to 0.5
    power : [P, S/2], squared grey levels
    """
    size = images.shape[-1]
    window, along = np.outer(np.hanning(size), np.hanning(size)), np.fft.fftfreq(size)
    radius = np.rint(np.hypot(along[:, None], along[None, :]) * size).astype(int)
    rings = np.arange(1, size // 2 + 1)
    spectra = (np.abs(np.fft.fft2((image - image.mean(dtype=float)) * window)) ** 2 for image in np.asarray(images))
    power = [ndimage.mean(spectrum / (window**2).sum(), radius, rings) for spectrum in spectra]
    return rings / size, np.array(power)


def histograms(images: NDArray[np.uint8]) -> Floats:
    """Share of pixels at each grey level, [P, 256], of patches uint8 [P, S, S]."""
    return np.stack([np.bincount(image.ravel(), minlength=256) / image.size for image in np.asarray(images)])


def nearest_training(images: NDArray[np.uint8], train: Patches) -> pd.DataFrame:
    """The most similar training patch of each image [P, S, S], over all symmetries that training applied.

    Images are averaged down to `THUMBNAIL_PX` and centred, so that neither noise nor brightness hides a copy.

    Returns
    -------
    One row per image: patch, nearest (training patch), symmetry, distance (root mean square, grey levels).
    """
    queries = _thumbnails(images)
    known = np.concatenate([_thumbnails(geometry.symmetry(images_of(train), code)) for code in train.symmetries])
    distance, found = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(known).kneighbors(queries)
    turn, nearest = np.divmod(found[:, 0], len(train))
    return pd.DataFrame({
        "patch": range(len(queries)), "nearest": nearest, "symmetry": np.asarray(train.symmetries)[turn],
        "distance": distance[:, 0] / np.sqrt(queries.shape[1]),
    })  # fmt: skip


def turned(patches: Patches, numbers: Sequence[int], codes: Sequence[int]) -> NDArray[np.uint8]:
    """Images [n, S, S] of the given patches, each under its own symmetry."""
    images = images_of(patches)
    return np.stack([geometry.symmetry(images[number], code) for number, code in zip(numbers, codes, strict=True)])


def images_of(patches: Patches) -> NDArray[np.uint8]:
    """The images of patches, or an error that says that there are none."""
    if patches.images is None or len(patches) == 0:
        raise CompanionError("image quality needs patches with images, but got none; run notebook 05 first")
    return np.asarray(patches.images)


def _thumbnails(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    step = max(1, images.shape[-1] // THUMBNAIL_PX)
    small = downscale_local_mean(images, (1, step, step)).reshape(len(images), -1)  # (P, 32^2)
    return (small - small.mean(axis=1, keepdims=True)).astype(np.float32)


def _defects(patches: Patches, margin: int) -> Iterator[tuple[int, int, int, NDArray, NDArray]]:
    """Every instance: patch, id, class, and the instance ids and grey levels of its box with a margin."""
    images = images_of(patches)
    columns = ["patch", "instance", "class", "x1", "y1", "x2", "y2"]
    for patch, instance, code, *box in patches.table[columns].astype(int).itertuples(index=False):
        x1, y1, x2, y2 = box
        window = np.s_[max(0, y1 - margin) : y2 + margin, max(0, x1 - margin) : x2 + margin]
        yield patch, instance, code, patches.instances[patch][window], images[patch][window]

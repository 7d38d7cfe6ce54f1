"""What is measured on patches with images: defects against their surroundings, texture, the nearest training patch."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage
from skimage.transform import downscale_local_mean
from sklearn.neighbors import NearestNeighbors

from companion import geometry
from companion.micrographs.patches import Patches

RING_PX = 4  # width of the ring around a defect that its inside is compared with
PROFILE_PX = 8  # how far inside and outside an outline the grey level is followed
THUMBNAIL_PX = 32  # side at which patches are compared for copies: the noise is averaged away, the defects are not
Floats = NDArray[np.float64]


def across_outlines(patches: Patches) -> tuple[pd.DataFrame, Floats, Floats]:
    """Grey level inside and around every defect; pixels of other defects are left out.

    Returns
    -------
    contrast : one row per defect that has a ring of `RING_PX` around it: patch, class, contrast ((around - inside) /
        around, of mean grey levels; positive where the defect is darker)
    total, count : [P, K, 2 * `PROFILE_PX`] by patch and class, sums of grey levels divided by those of the surroundings
        (more than `RING_PX` off the outline) and numbers of pixels, at distances from the outline of
        ``-PROFILE_PX + 0.5`` (inside) to ``PROFILE_PX - 0.5`` px (outside)
    """
    rows, total = [], np.zeros((len(patches), len(patches.classes), 2 * PROFILE_PX))
    count, depth = np.zeros_like(total), ndimage.distance_transform_edt
    for defect in patches.table.astype(int).itertuples(index=False):
        y, x = (slice(max(0, low - PROFILE_PX), high + PROFILE_PX) for low, high in
                ((defect.y1, defect.y2), (defect.x1, defect.x2)))  # fmt: skip
        ids, grey = patches.instances[defect.patch, y, x], patches.images[defect.patch, y, x]
        inside = ids == defect.instance
        ring = ndimage.binary_dilation(inside, iterations=RING_PX) & (ids == 0)
        if ring.any():
            around = grey[ring].mean()
            rows.append((defect.patch, defect[2], (around - grey[inside].mean()) / max(around, 1.0)))
        # Whole pixels off the outline: 0 is the first one outside, -1 the first one inside.
        off = np.where(inside, -np.ceil(depth(inside)), np.floor(depth(~inside) - 1e-9)).astype(int)
        own = (inside | (ids == 0)) & (np.abs(off + 0.5) < PROFILE_PX)
        if (far := own & (off >= RING_PX)).any():
            place, bins = (defect.patch, defect[2] - 1), off[own] + PROFILE_PX
            total[place] += np.bincount(bins, grey[own] / max(1.0, grey[far].mean()), minlength=2 * PROFILE_PX)
            count[place] += np.bincount(bins, minlength=2 * PROFILE_PX)
    return pd.DataFrame(rows, columns=["patch", "class", "contrast"]), total, count


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
    spectra = (np.abs(np.fft.fft2((image - image.mean(dtype=float)) * window)) ** 2 for image in images)
    return rings / size, np.array([ndimage.mean(power / (window**2).sum(), radius, rings) for power in spectra])


def histograms(images: NDArray[np.uint8]) -> Floats:
    """Share of pixels at each grey level, [P, 256], of patches uint8 [P, S, S]."""
    return np.stack([np.bincount(image.ravel(), minlength=256) / image.size for image in images])


def nearest_training(images: NDArray[np.uint8], train: Patches) -> pd.DataFrame:
    """The most similar training patch of each image [P, S, S], over all symmetries that training applied.

    Images are averaged down to `THUMBNAIL_PX` and centred, so that neither noise nor brightness hides a copy. One row
    per image: patch, nearest (training patch), symmetry, distance (root mean square, grey levels).
    """

    def thumbnails(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        step = max(1, images.shape[-1] // THUMBNAIL_PX)
        small = downscale_local_mean(images, (1, step, step)).reshape(len(images), -1)  # (P, 32^2)
        return (small - small.mean(axis=1, keepdims=True)).astype(np.float32)

    queries = thumbnails(images)
    known = np.concatenate([thumbnails(geometry.symmetry(train.images, code)) for code in train.symmetries])
    distance, found = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(known).kneighbors(queries)
    turn, nearest = np.divmod(found[:, 0], len(train))
    return pd.DataFrame({
        "patch": range(len(queries)), "nearest": nearest, "symmetry": np.asarray(train.symmetries)[turn],
        "distance": distance[:, 0] / np.sqrt(queries.shape[1]),
    })  # fmt: skip

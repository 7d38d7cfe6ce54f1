"""Measures on patches with images: contrast of defects, texture, distances between sets, copies.

Nothing here compares with a yardstick; `companion.diffusion.quality` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage, stats

from companion import geometry
from companion.micrographs.patches import Patches
from companion.errors import CompanionError

RING_PX = 4  # width of the ring around a defect that its inside is compared with
THUMBNAIL_PX = 32  # side at which patches are compared for copies: the noise is averaged away, the defects are not
GREY_LEVELS = 256
PROFILE_PX = 8  # how far inside and outside an outline the grey level is followed
LAGS = 6  # px
SMOOTH_PX = 3.0  # what varies more slowly is not noise
Weights = NDArray[np.float64]  # [P]: how often each patch counts


def mask_contrast(patches: Patches) -> pd.DataFrame:
    """Grey level inside each defect's mask against a ring around it.

    The ring is `RING_PX` wide and leaves out every other defect; a defect without any ring pixel gets no row.

    Returns
    -------
    One row per instance: patch, instance, class, inside and around (mean grey levels), contrast
    ((around - inside) / around, positive where the defect is darker).
    """
    images = images_of(patches)
    rows = []
    for row in patches.table.itertuples():
        window = tuple(
            slice(max(0, int(low) - RING_PX), int(high) + RING_PX) for low, high in ((row.y1, row.y2), (row.x1, row.x2))
        )
        ids, grey = patches.instances[row.patch][window], images[row.patch][window]
        inside = ids == row.instance
        ring = ndimage.binary_dilation(inside, iterations=RING_PX) & (ids == 0)
        if ring.any():
            rows.append((row.patch, row.instance, int(row[3]), grey[inside].mean(), grey[ring].mean()))
    table = pd.DataFrame(rows, columns=["patch", "instance", "class", "inside", "around"])
    return table.assign(contrast=(table["around"] - table["inside"]) / table["around"].clip(lower=1))


def contrast_profiles(patches: Patches) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Grey level across the outlines of defects, against distance from the outline, per patch and class.

    Grey levels are divided by the mean of the defect's surroundings (between 4 px and `PROFILE_PX` off its outline);
    pixels of other defects are left out.

    Returns
    -------
    total, count : [P, C, 2 * `PROFILE_PX`], sums of relative grey levels and numbers of pixels at distances from
        ``-PROFILE_PX + 0.5`` (inside) to ``PROFILE_PX - 0.5`` px (outside); divide sums over patches of the two
    """
    images = images_of(patches)
    total = np.zeros((len(patches), len(patches.classes), 2 * PROFILE_PX))
    count = np.zeros_like(total)
    for row in patches.table.itertuples():
        window = tuple(
            slice(max(0, int(low) - PROFILE_PX), int(high) + PROFILE_PX)
            for low, high in ((row.y1, row.y2), (row.x1, row.x2))
        )
        ids, grey = patches.instances[row.patch][window], images[row.patch][window]
        inside = ids == row.instance
        # Whole pixels off the outline: 0 is the first one outside, -1 the first one inside.
        off = np.where(inside, -np.ceil(_depth(inside)), np.floor(_depth(~inside) - 1e-9)).astype(int)
        own = (inside | (ids == 0)) & (np.abs(off + 0.5) < PROFILE_PX)
        around = own & (off >= RING_PX)
        if around.any():
            bins = off[own] + PROFILE_PX
            relative = grey[own] / max(1.0, grey[around].mean())
            total[row.patch, int(row[3]) - 1] += np.bincount(bins, relative, minlength=2 * PROFILE_PX)
            count[row.patch, int(row[3]) - 1] += np.bincount(bins, minlength=2 * PROFILE_PX)
    return total, count


def _depth(inside: NDArray[np.bool_]) -> NDArray[np.float64]:
    return ndimage.distance_transform_edt(inside) if not inside.all() else np.full(inside.shape, np.inf)


def autocorrelations(patches: Patches) -> NDArray[np.float64]:
    """Autocorrelation of the noise in the background, at lags of 1 to `LAGS` px along rows and then along columns.

    Noise is what is left after a Gaussian of `SMOOTH_PX` is taken away.

    Returns
    -------
    [P, 2 * `LAGS`], -1 to 1; NaN for a patch without background
    """
    rows = np.full((len(patches), 2, LAGS), np.nan)
    for k, image in enumerate(images_of(patches)):
        free = patches.instances[k] == 0
        noise = (image - ndimage.gaussian_filter(image.astype(float), SMOOTH_PX)) * free
        variance = (noise**2).sum() / max(1, free.sum())
        for axis, (n, f) in enumerate(((noise, free), (noise.T, free.T))):
            for lag in range(1, LAGS + 1):
                pairs = (f[:, lag:] & f[:, :-lag]).sum()
                if pairs and variance:
                    rows[k, axis, lag - 1] = (n[:, lag:] * n[:, :-lag]).sum() / pairs / variance
    return rows.reshape(len(rows), -1)


def power_spectra(images: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Radially averaged power spectrum of each patch, under a Hann window.

    Parameters
    ----------
    images : uint8 [P, S, S]

    Returns
    -------
    frequency : [S/2], cycles per px, from 1/S to 0.5
    power : [P, S/2], squared grey levels
    """
    size = images.shape[-1]
    window = np.hanning(size)[:, None] * np.hanning(size)[None, :]
    along = np.fft.fftfreq(size)
    radius = np.rint(np.hypot(along[:, None], along[None, :]) * size).astype(int)
    rings = np.arange(1, size // 2 + 1)
    power = np.empty((len(images), len(rings)))
    for k, image in enumerate(np.asarray(images)):
        spectrum = np.abs(np.fft.fft2((image - image.mean(dtype=float)) * window)) ** 2 / (window**2).sum()
        power[k] = ndimage.mean(spectrum, radius, rings)
    return rings / size, power


def histograms(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Share of pixels at each grey level, [P, 256], of patches uint8 [P, S, S]."""
    flat = np.asarray(images).reshape(len(images), -1)
    return np.stack([np.bincount(image, minlength=GREY_LEVELS) for image in flat]) / flat.shape[1]


def kernel_distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Unbiased squared maximum mean discrepancy with the cubic kernel of KID (Bińkowski et al. 2018).

    Parameters
    ----------
    a, b : features [P, D] and [Q, D], both with at least two rows

    Returns
    -------
    0 in the mean for two samples of one distribution (single values can be negative), larger for others.
    """
    kernels = cubic_kernel(a, a), cubic_kernel(b, b), cubic_kernel(a, b)
    return weighted_kernel_distance(*kernels, np.ones(len(a)), np.ones(len(b)))


def told_apart(
    a: NDArray[np.float64],
    b: NDArray[np.float64],
    groups_a: NDArray[Any],
    groups_b: NDArray[Any],
    rng: np.random.Generator,
    folds: int = 5,
    ridge: float = 10.0,
) -> float:
    """Classifier two-sample test (Lopez-Paz and Oquab 2017): area under the ROC curve, 0.5 if nothing tells a from b.

    A linear discriminant with ridge penalty, judged on folds that it has not seen; patches of one group (one
    micrograph) are in one fold.

    Parameters
    ----------
    a, b : features [P, D] and [Q, D]
    groups_a, groups_b : [P] and [Q]
    rng : deals the groups to the folds

    Returns
    -------
    AUC in 0-1, the mean over folds that hold both sets; NaN where there is none.
    """
    x = np.concatenate([a, b])
    is_a = np.arange(len(x)) < len(a)
    fold = np.concatenate([_deal(groups_a, folds, rng), _deal(groups_b, folds, rng)])
    areas = []
    for k in range(folds):
        seen, held = fold != k, fold == k
        if min(is_a[seen].sum(), (~is_a[seen]).sum(), is_a[held].sum(), (~is_a[held]).sum()) == 0:
            continue
        centre, scale = x[seen].mean(axis=0), x[seen].std(axis=0) + 1e-9
        z = (x - centre) / scale
        # Weighted so that the larger set does not win by its number.
        weight = np.where(is_a, 0.5 / is_a[seen].sum(), 0.5 / (~is_a[seen]).sum())[seen, None] * seen.sum()
        target = np.where(is_a[seen], 1.0, -1.0)
        direction = np.linalg.solve(
            z[seen].T @ (weight * z[seen]) + ridge * np.eye(z.shape[1]), z[seen].T @ (weight[:, 0] * target)
        )
        score = z[held] @ direction
        pairs = is_a[held].sum() * (~is_a[held]).sum()
        areas.append(stats.mannwhitneyu(score[is_a[held]], score[~is_a[held]]).statistic / pairs)
    return float(np.mean(areas)) if areas else np.nan


def auc_interval(auc: float, n_a: int, n_b: int, level: float) -> tuple[float, float]:
    """Interval of an AUC by the standard error of Hanley and McNeil (1982), for n_a and n_b independent cases."""
    if not np.isfinite(auc):
        return np.nan, np.nan
    one, two = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = (auc * (1 - auc) + (n_a - 1) * (one - auc**2) + (n_b - 1) * (two - auc**2)) / (n_a * n_b)
    half = stats.norm.ppf((1 + level) / 2) * np.sqrt(max(0.0, variance))
    return float(max(0.0, auc - half)), float(min(1.0, auc + half))


def nearest_training(images: NDArray[np.uint8], train: Patches) -> pd.DataFrame:
    """The most similar training patch of each image, over all symmetries that training applied.

    Images are averaged down to `THUMBNAIL_PX` and centred, so that neither noise nor brightness hides a copy.

    Returns
    -------
    One row per image: patch, nearest (training patch), symmetry, distance (root mean square, grey levels).
    """
    queries = _thumbnails(images)
    known = [_thumbnails(geometry.symmetry(images_of(train), code)) for code in train.symmetries]
    references = np.concatenate(known)  # (symmetries x patches, 1024)
    lengths = (references**2).sum(axis=1)
    found, distance = np.zeros(len(queries), dtype=int), np.zeros(len(queries))
    for k, query in enumerate(queries):
        squared = lengths - 2 * (references @ query) + (query**2).sum()
        found[k] = squared.argmin()
        distance[k] = np.sqrt(max(0.0, squared[found[k]]) / query.size)
    return pd.DataFrame({
        "patch": np.arange(len(queries)),
        "nearest": found % len(train),
        "symmetry": np.asarray(train.symmetries)[found // len(train)],
        "distance": distance,
    })  # fmt: skip


def turned(patches: Patches, numbers: Sequence[int], codes: Sequence[int]) -> NDArray[np.uint8]:
    """Images [n, S, S] of the given patches, each under its own symmetry."""
    images = images_of(patches)
    return np.stack([geometry.symmetry(images[number], code) for number, code in zip(numbers, codes, strict=True)])


def images_of(patches: Patches) -> NDArray[np.uint8]:
    """The images of patches, or an error that says that there are none."""
    if patches.images is None or len(patches) == 0:
        raise CompanionError("image quality needs patches with images, but got none; run stage 05 first")
    return np.asarray(patches.images)


def _thumbnails(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    step = max(1, images.shape[-1] // THUMBNAIL_PX)
    side = images.shape[-1] // step
    blocks = np.asarray(images)[:, : side * step, : side * step].reshape(len(images), side, step, side, step)
    small = blocks.mean(axis=(2, 4), dtype=np.float32).reshape(len(images), -1)  # (P, side^2)
    return small - small.mean(axis=1, keepdims=True)


def cubic_kernel(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Kernel of KID, [P, Q], between features [P, D] and [Q, D]."""
    return (a @ b.T / a.shape[1] + 1) ** 3


def gaussian_kernel(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Kernel of CMMD (Jayasumana et al. 2024), [P, Q], between features [P, D] and [Q, D] of unit scatter.

    Its width is the root mean square distance of two draws of unit scatter, the square root of 2 D.
    """
    squared = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None, :] - 2 * a @ b.T
    return np.exp(-squared / (4 * a.shape[1]))


def weighted_kernel_distance(aa: NDArray, bb: NDArray, ab: NDArray, w: Weights, v: Weights) -> float:
    """`kernel_distance` from the kernels within a, within b and between, of patches that count w and v times."""

    # Weights are how often a patch was drawn. A patch paired with itself tells nothing of the distribution, so the
    # diagonal is left out, also where a resample holds a patch twice.
    def within(kernel: NDArray, weight: Weights) -> float:
        pairs = weight.sum() ** 2 - (weight**2).sum()
        return (weight @ kernel @ weight - (weight**2) @ np.diag(kernel)) / pairs if pairs > 0 else np.nan

    return float(within(aa, w) + within(bb, v) - 2 * (w @ ab @ v) / (w.sum() * v.sum()))


def _deal(groups: NDArray[Any], folds: int, rng: np.random.Generator) -> NDArray[np.int64]:
    names, member = np.unique(groups, return_inverse=True)
    return (rng.permutation(len(names)) % folds)[member]

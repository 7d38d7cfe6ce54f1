"""Judging generated images: do they follow their masks, do they look like held-out real images, are they copies?

Every measure comes with the same measure on real images as its yardstick, and with an interval from resampling
whole micrographs (real) or patches (generated), because patches of one micrograph are not independent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage, stats

from companion import geometry
from companion.data.patches import Patches
from companion.errors import CompanionError

RING_PX = 4  # width of the ring around a defect that its inside is compared with
THUMBNAIL_PX = 32  # side at which patches are compared for copies: the noise is averaged away, the defects are not
GREY_LEVELS = 256
Weights = NDArray[np.float64]


def mask_contrast(patches: Patches) -> pd.DataFrame:
    """Grey level inside each defect's mask against a ring around it.

    The ring is `RING_PX` wide and leaves out every other defect; a defect without any ring pixel gets no row.

    Returns
    -------
    One row per instance: patch, instance, class, inside and around (mean grey levels), contrast
    ((around - inside) / around, positive where the defect is darker).
    """
    images = _images(patches)
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
    kernels = _cubic(a, a), _cubic(b, b), _cubic(a, b)
    return _kernel_distance(*kernels, np.ones(len(a)), np.ones(len(b)))


def nearest_training(images: NDArray[np.uint8], train: Patches) -> pd.DataFrame:
    """The most similar training patch of each image, over all symmetries that training applied.

    Images are averaged down to `THUMBNAIL_PX` and centred, so that neither noise nor brightness hides a copy.

    Returns
    -------
    One row per image: patch, nearest (training patch), symmetry, distance (root mean square, grey levels).
    """
    queries = _thumbnails(images)
    known = [_thumbnails(geometry.symmetry(_images(train), code)) for code in train.symmetries]
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
    images = _images(patches)
    return np.stack([geometry.symmetry(images[number], code) for number, code in zip(numbers, codes, strict=True)])


@dataclass(frozen=True)
class _Measured:
    """Everything that the measures need of one set of patches, computed once."""

    groups: NDArray[Any]  # [P]: what is resampled as a whole
    contrast: pd.DataFrame
    power: NDArray[np.float64]
    histogram: NDArray[np.float64]
    features: NDArray[np.float64]
    nearest: NDArray[np.float64]


def judge(
    generated: Patches,
    train: Patches,
    test: Patches,
    features: dict[str, NDArray[np.float64]],
    rng: np.random.Generator,
    *,
    resamples: int = 200,
    level: float = 0.95,
) -> pd.DataFrame:
    """All measures with interval and yardstick.

    Parameters
    ----------
    generated, train, test : patches with images; `test` is real and held out
    features : [P, D] of each set, by the names "generated", "train" and "test"
    rng : draws the resamples
    resamples : bootstrap resamples behind each interval
    level : of the intervals

    Returns
    -------
    One row per measure: measure, unit, value, low, high, n (patches, or defects), yardstick, yardstick_of.
    Undefined values (no defect, a single patch) are NaN.
    """
    sets = {"generated": generated, "train": train, "test": test}
    measured = {name: _measure(name, patches, features[name], train) for name, patches in sets.items()}
    gen, real, held = measured["generated"], measured["train"], measured["test"]
    kernels = {name: _cubic(m.features, held.features) for name, m in measured.items()}
    own = {name: _cubic(m.features, m.features) for name, m in measured.items()}

    def darker(m: _Measured, w: Weights) -> float:
        return _mean(m.contrast["contrast"] > 0, w[m.contrast["patch"]])

    def contrast(m: _Measured, w: Weights) -> float:
        return _mean(m.contrast["contrast"], w[m.contrast["patch"]])

    def nearest(m: _Measured, w: Weights) -> float:
        return float(np.median(np.repeat(m.nearest, w.astype(int)))) if w.any() else np.nan

    def spectrum(m: _Measured, w: Weights, v: Weights) -> float:
        difference = np.log10(_average(m.power, w) + 1e-9) - np.log10(_average(held.power, v) + 1e-9)
        return float(np.abs(difference).mean())

    def grey(m: _Measured, w: Weights, v: Weights) -> float:
        levels = np.arange(GREY_LEVELS)
        return stats.wasserstein_distance(levels, levels, _average(m.histogram, w), _average(held.histogram, v))

    def kid(m: _Measured, w: Weights, v: Weights) -> float:
        name = next(key for key, value in measured.items() if value is m)
        return _kernel_distance(own[name], own["test"], kernels[name], w, v)

    draws = [(_resample(gen.groups, rng), _resample(held.groups, rng)) for _ in range(resamples)]
    everything = np.ones(len(gen.groups)), np.ones(len(real.groups)), np.ones(len(held.groups))
    n_defects = len(gen.contrast)
    rows = []

    def add(measure: str, unit: str, value: float, values: list[float], n: int, yardstick: float, of: str) -> None:
        low, high = _interval(values, level)
        rows.append((measure, unit, value, low, high, n, yardstick, of))

    alone: list[tuple[str, str, Callable[[_Measured, Weights], float], int]] = [
        ("darker inside its mask", "share of defects", darker, n_defects),
        ("contrast of defects", "share of the surroundings' grey level", contrast, n_defects),
        ("distance to the nearest training patch", "grey levels", nearest, len(gen.groups)),
    ]
    for name, unit, one, n in alone:
        add(name, unit, one(gen, everything[0]), [one(gen, w) for w, _ in draws], n, one(held, everything[2]),
            "real held-out images")  # fmt: skip
    between: list[tuple[str, str, Callable[[_Measured, Weights, Weights], float]]] = [
        ("power spectrum, distance to held-out", "decades", spectrum),
        ("grey levels, distance to held-out", "grey levels", grey),
        ("features, kernel distance to held-out", "KID, encoder features", kid),
    ]
    for name, unit, two in between:
        add(name, unit, two(gen, everything[0], everything[2]), [two(gen, w, v) for w, v in draws], len(gen.groups),
            two(real, everything[1], everything[2]), "real training against held-out images")  # fmt: skip
    columns = ["measure", "unit", "value", "low", "high", "n", "yardstick", "yardstick_of"]
    return pd.DataFrame(rows, columns=columns)


def _measure(name: str, patches: Patches, features: NDArray[np.float64], train: Patches) -> _Measured:
    images = _images(patches)
    groups = np.arange(len(patches)) if name == "generated" else patches.index["image"].to_numpy()
    nearest = np.full(len(patches), np.nan) if name == "train" else nearest_training(images, train)["distance"]
    return _Measured(
        groups, mask_contrast(patches), power_spectra(images)[1], histograms(images), features, np.asarray(nearest)
    )


def _images(patches: Patches) -> NDArray[np.uint8]:
    if patches.images is None or len(patches) == 0:
        raise CompanionError("image quality needs patches with images, but got none; run stage 05 first")
    return np.asarray(patches.images)


def _thumbnails(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    step = max(1, images.shape[-1] // THUMBNAIL_PX)
    side = images.shape[-1] // step
    blocks = np.asarray(images)[:, : side * step, : side * step].reshape(len(images), side, step, side, step)
    small = blocks.mean(axis=(2, 4), dtype=np.float32).reshape(len(images), -1)  # (P, side^2)
    return small - small.mean(axis=1, keepdims=True)


def _cubic(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _kernel_distance(aa: NDArray, bb: NDArray, ab: NDArray, w: Weights, v: Weights) -> float:
    # Weights are how often a patch was drawn. A patch paired with itself tells nothing of the distribution, so the
    # diagonal is left out, also where a resample holds a patch twice.
    def within(kernel: NDArray, weight: Weights) -> float:
        pairs = weight.sum() ** 2 - (weight**2).sum()
        return (weight @ kernel @ weight - (weight**2) @ np.diag(kernel)) / pairs if pairs > 0 else np.nan

    return float(within(aa, w) + within(bb, v) - 2 * (w @ ab @ v) / (w.sum() * v.sum()))


def _resample(groups: NDArray[Any], rng: np.random.Generator) -> Weights:
    names, member = np.unique(groups, return_inverse=True)
    return np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))[member].astype(float)


def _average(rows: NDArray[np.float64], weights: Weights) -> NDArray[np.float64]:
    return weights @ rows / weights.sum()


def _mean(values: pd.Series, weights: Weights) -> float:
    return float(weights @ values.to_numpy(dtype=float) / weights.sum()) if weights.sum() > 0 else np.nan


def _interval(values: list[float], level: float) -> tuple[float, float]:
    finite = np.asarray(values)[np.isfinite(values)]
    if finite.size == 0:
        return np.nan, np.nan
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)

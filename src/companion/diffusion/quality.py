"""Judging generated images: do they follow their masks, do they look like held-out real images, are they copies?

Every measure comes with the same measure on real images as its yardstick, and with an interval from resampling
whole micrographs (real) or patches (generated), because patches of one micrograph are not independent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from companion.micrographs.patches import Patches
from companion.diffusion.measures import (
    GREY_LEVELS,
    Weights,
    auc_interval,
    autocorrelations,
    contrast_profiles,
    cubic_kernel,
    gaussian_kernel,
    histograms,
    images_of,
    mask_contrast,
    nearest_training,
    power_spectra,
    told_apart,
    turned,
    weighted_kernel_distance,
)

MOST = 1000  # patches of a set that are judged: distances need no more, and kernels grow with the square


@dataclass(frozen=True)
class _Measured:
    """Everything that the measures need of one set of patches, computed once."""

    groups: NDArray[Any]  # [P]: what is resampled as a whole
    contrast: pd.DataFrame
    power: NDArray[np.float64]
    histogram: NDArray[np.float64]
    correlation: NDArray[np.float64]
    profile: tuple[NDArray[np.float64], NDArray[np.float64]]
    features: NDArray[np.float64]
    nearest: NDArray[np.float64]

    @property
    def texture(self) -> NDArray[np.float64]:
        """What the classifier sees: encoder features and the logarithm of the power spectrum, [P, D]."""
        return np.concatenate([self.features, np.log10(self.power + 1e-9)], axis=1)


def judge(
    generated: Patches,
    train: Patches,
    test: Patches,
    encode: Callable[[NDArray[np.uint8]], NDArray[np.float64]],
    rng: np.random.Generator,
    *,
    others: Mapping[str, Patches] | None = None,
    resamples: int = 200,
    level: float = 0.95,
    features_of: str = "encoder features",
) -> pd.DataFrame:
    """All measures with interval and yardsticks.

    Parameters
    ----------
    generated, train, test : patches with images; `test` is real and held out
    encode : features [P, D] of images uint8 [P, S, S]
    rng : draws the resamples, and the `MOST` patches of larger sets
    others : more sets that are measured as `generated` is, by name
    resamples : bootstrap resamples behind each interval
    level : of the intervals
    features_of : what `encode` gives, in words

    Returns
    -------
    One row per measure: measure, unit, value, low, high, n (patches, or defects), yardstick, yardstick_of, and a
    column per name in `others`. Undefined values (no defect, a single patch) are NaN.
    """
    sets = {"generated": generated, "train": train, "test": test, **(others or {})}
    sets = {name: few(patches, rng) for name, patches in sets.items()}
    features = {name: encode(patches.images) for name, patches in sets.items()}
    # Each feature in units of its scatter over the training patches: else the largest ones decide the kernel alone.
    centre, scale = features["train"].mean(axis=0), features["train"].std(axis=0) + 1e-9
    micrographs = {*train.index["image"], *test.index["image"]}
    measured = {
        name: _measure(name, patches, (features[name] - centre) / scale, train, micrographs)
        for name, patches in sets.items()
    }
    gen, held = measured["generated"], measured["test"]
    whole = {id(m): np.ones(len(m.groups)) for m in measured.values()}
    kernels = {
        kernel: {id(m): (kernel(m.features, m.features), kernel(m.features, held.features)) for m in measured.values()}
        for kernel in (cubic_kernel, gaussian_kernel)
    }
    closest = held.nearest.min()

    def darker(m: _Measured, w: Weights) -> float:
        return _mean(m.contrast["contrast"] > 0, w[m.contrast["patch"]])

    def contrast(m: _Measured, w: Weights) -> float:
        return _mean(m.contrast["contrast"], w[m.contrast["patch"]])

    def nearest(m: _Measured, w: Weights) -> float:
        return float(np.median(np.repeat(m.nearest, w.astype(int)))) if w.any() else np.nan

    def closer(m: _Measured, w: Weights) -> float:
        return _mean(m.nearest < closest, w)

    def spectrum(m: _Measured, w: Weights, v: Weights) -> float:
        return spectral_distance(_average(m.power, w), _average(held.power, v))

    def largest(m: _Measured, w: Weights, v: Weights) -> float:
        return largest_spectral_distance(_average(m.power, w), _average(held.power, v))

    def grey(m: _Measured, w: Weights, v: Weights) -> float:
        levels = np.arange(GREY_LEVELS)
        return stats.wasserstein_distance(levels, levels, _average(m.histogram, w), _average(held.histogram, v))

    def correlation(m: _Measured, w: Weights, v: Weights) -> float:
        return float(np.abs(_average(m.correlation, w) - _average(held.correlation, v)).mean())

    def profile(m: _Measured, w: Weights, v: Weights) -> float:
        difference = np.abs(_profile(m.profile, w) - _profile(held.profile, v))
        return float(np.nanmean(difference)) if np.isfinite(difference).any() else np.nan

    def distance(kernel: Callable) -> Callable[[_Measured, Weights, Weights], float]:
        def between(m: _Measured, w: Weights, v: Weights) -> float:
            within, across = kernels[kernel][id(m)]
            return weighted_kernel_distance(within, kernels[kernel][id(held)][0], across, w, v)

        return between

    draws = [(_resample(gen.groups, rng), _resample(held.groups, rng)) for _ in range(resamples)]
    rows = []

    def add(measure: str, unit: str, value: float, values: list[float], n: int, of: str, *beside: float) -> None:
        low, high = _interval(values, level)
        rows.append((measure, unit, value, low, high, n, beside[0], of, *beside[1:]))

    more = [measured[name] for name in others or {}]
    alone: list[tuple[str, str, Callable[[_Measured, Weights], float], int]] = [
        ("darker inside its mask", "share of defects", darker, len(gen.contrast)),
        ("contrast of defects", "share of the surroundings' grey level", contrast, len(gen.contrast)),
        ("distance to the nearest training patch", "grey levels", nearest, len(gen.groups)),
        ("closer to training than any held-out image", "share of images", closer, len(gen.groups)),
    ]
    for name, unit, one, n in alone:
        of = "real held-out images" + (", by definition" if one is closer else "")
        add(name, unit, one(gen, whole[id(gen)]), [one(gen, w) for w, _ in draws], n, of,
            *(one(m, whole[id(m)]) for m in (held, *more)))  # fmt: skip
    between: list[tuple[str, str, Callable[[_Measured, Weights, Weights], float]]] = [
        ("power spectrum, distance to held-out", "decades", spectrum),
        ("power spectrum, largest distance at any frequency", "decades", largest),
        ("grey levels, distance to held-out", "grey levels", grey),
        ("noise autocorrelation, distance to held-out", "correlation", correlation),
        ("profile across defects, distance to held-out", "share of the surroundings' grey level", profile),
        ("features, kernel distance to held-out", f"KID, {features_of}", distance(cubic_kernel)),
        ("features, Gaussian kernel distance to held-out", f"CMMD, {features_of}", distance(gaussian_kernel)),
    ]
    of = "real training against held-out images"
    for name, unit, two in between:
        values = [two(gen, w, v) for w, v in draws]
        beside = [two(m, whole[id(m)], whole[id(held)]) for m in (gen, measured["train"], *more)]
        add(name, unit, beside[0], values, len(gen.groups), of, *beside[1:])
    told = [told_apart(m.texture, held.texture, m.groups, held.groups, rng) for m in (gen, measured["train"], *more)]
    low, high = auc_interval(told[0], len(gen.groups), len(np.unique(held.groups)), level)
    rows.append(("told apart from held-out by a classifier", "AUC", told[0], low, high, len(gen.groups), told[1], of,
                 *told[2:]))  # fmt: skip
    columns = ["measure", "unit", "value", "low", "high", "n", "yardstick", "yardstick_of", *(others or {})]
    return pd.DataFrame(rows, columns=columns)


def copies(
    generated: Patches, train: Patches, test: Patches, latents: Callable[[NDArray[np.uint8]], NDArray], most: int = MOST
) -> pd.DataFrame:
    """The most similar training patch of each image, and whether it is nearer than any held-out real image comes.

    Neighbours are looked for in pixels; the `most` nearest pairs are compared in latents, too.

    Parameters
    ----------
    latents : latents [P, ...] of images uint8 [P, S, S]

    Returns
    -------
    One row per image, nearest first: patch, nearest, symmetry, distance (grey levels), closest_real (the smallest
    such distance of a held-out real image), copy (distance below it), and of the first `most` latent_distance,
    latent_closest_real and latent_copy
    """

    def neighbours(patches: Patches) -> tuple[pd.DataFrame, NDArray[np.float64]]:
        found = nearest_training(images_of(patches), train).sort_values("distance", kind="stable", ignore_index=True)
        first = found.iloc[:most]
        own, other = (
            latents(x) for x in (patches.images[first["patch"]], turned(train, first["nearest"], first["symmetry"]))
        )
        return found, np.sqrt(((own - other) ** 2).reshape(len(first), -1).mean(axis=1))

    (found, apart), (real, real_apart) = neighbours(generated), neighbours(test)
    closest = real["distance"].min()
    rows = {
        "latent_distance": apart, "latent_closest_real": real_apart.min(), "latent_copy": apart < real_apart.min(),
    }  # fmt: skip
    found = found.assign(closest_real=closest, copy=found["distance"] < closest)
    return found.join(pd.DataFrame(rows))


def spectral_distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Mean distance of two power spectra, decades."""
    return float(np.abs(np.log10(a + 1e-9) - np.log10(b + 1e-9)).mean())


def largest_spectral_distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Largest distance of two power spectra at any frequency, decades; within 0.1 everywhere is the aim."""
    return float(np.abs(np.log10(a + 1e-9) - np.log10(b + 1e-9)).max())


def few(patches: Patches, rng: np.random.Generator, most: int = MOST) -> Patches:
    """At most `most` of the patches, drawn at random."""
    return patches if len(patches) <= most else patches.only(np.sort(rng.permutation(len(patches))[:most]))


def _measure(
    name: str, patches: Patches, features: NDArray[np.float64], train: Patches, micrographs: set[str]
) -> _Measured:
    images, groups = images_of(patches), patches.index["image"].to_numpy()
    if not micrographs.issuperset(groups):  # patches of one micrograph are not independent; simulated ones are
        groups = np.arange(len(patches))
    nearest = np.full(len(patches), np.nan) if name == "train" else nearest_training(images, train)["distance"]
    return _Measured(
        groups, mask_contrast(patches), power_spectra(images)[1], histograms(images), autocorrelations(patches),
        contrast_profiles(patches), features, np.asarray(nearest),
    )  # fmt: skip


def _profile(profile: tuple[NDArray[np.float64], NDArray[np.float64]], weights: Weights) -> NDArray[np.float64]:
    total, count = (np.tensordot(weights, part, axes=1) for part in profile)  # (C, 2 * PROFILE_PX)
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


def _resample(groups: NDArray[Any], rng: np.random.Generator) -> Weights:
    names, member = np.unique(groups, return_inverse=True)
    return np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))[member].astype(float)


def _average(rows: NDArray[np.float64], weights: Weights) -> NDArray[np.float64]:
    known = np.isfinite(rows[:, 0])
    return weights[known] @ rows[known] / weights[known].sum()


def _mean(values: pd.Series | NDArray[Any], weights: Weights) -> float:
    return float(weights @ np.asarray(values, dtype=float) / weights.sum()) if weights.sum() > 0 else np.nan


def _interval(values: list[float], level: float) -> tuple[float, float]:
    finite = np.asarray(values)[np.isfinite(values)]
    if finite.size == 0:
        return np.nan, np.nan
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)

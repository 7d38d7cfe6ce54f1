"""Judging generated images: do they follow their masks, do they look like held-out real images, are they copies?

Every measure comes with the same measure on real images as its yardstick, and with an interval from resampling
whole micrographs (real) or patches (generated), because patches of one micrograph are not independent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from companion.data.patches import Patches
from companion.diffusion.measures import (
    GREY_LEVELS,
    Weights,
    auc_interval,
    cubic_kernel,
    histograms,
    images_of,
    mask_contrast,
    nearest_training,
    power_spectra,
    told_apart,
    weighted_kernel_distance,
)


@dataclass(frozen=True)
class _Measured:
    """Everything that the measures need of one set of patches, computed once."""

    groups: NDArray[Any]  # [P]: what is resampled as a whole
    contrast: pd.DataFrame
    power: NDArray[np.float64]
    histogram: NDArray[np.float64]
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
    # Each feature in units of its scatter over the training patches: else the largest ones decide the kernel alone.
    centre, scale = features["train"].mean(axis=0), features["train"].std(axis=0) + 1e-9
    measured = {
        name: _measure(name, patches, (features[name] - centre) / scale, train) for name, patches in sets.items()
    }
    gen, real, held = measured["generated"], measured["train"], measured["test"]
    kernels = {name: cubic_kernel(m.features, held.features) for name, m in measured.items()}
    own = {name: cubic_kernel(m.features, m.features) for name, m in measured.items()}

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
        return weighted_kernel_distance(own[name], own["test"], kernels[name], w, v)

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
    closest = held.nearest.min()
    closer = [_mean(gen.nearest < closest, w) for w in [everything[0], *(w for w, _ in draws)]]
    add("closer to training than any held-out image", "share of images", closer[0], closer[1:], len(gen.groups), 0.0,
        "real held-out images, by definition")  # fmt: skip
    told = [told_apart(a.texture, b.texture, a.groups, b.groups, rng) for a, b in ((gen, held), (real, held))]
    low, high = auc_interval(told[0], len(gen.groups), len(np.unique(held.groups)), level)
    rows.append(("told apart from held-out by a classifier", "AUC", told[0], low, high, len(gen.groups), told[1],
                 "real training against held-out images"))  # fmt: skip
    columns = ["measure", "unit", "value", "low", "high", "n", "yardstick", "yardstick_of"]
    return pd.DataFrame(rows, columns=columns)


def _measure(name: str, patches: Patches, features: NDArray[np.float64], train: Patches) -> _Measured:
    images = images_of(patches)
    groups = np.arange(len(patches)) if name == "generated" else patches.index["image"].to_numpy()
    nearest = np.full(len(patches), np.nan) if name == "train" else nearest_training(images, train)["distance"]
    return _Measured(
        groups, mask_contrast(patches), power_spectra(images)[1], histograms(images), features, np.asarray(nearest)
    )


def _resample(groups: NDArray[Any], rng: np.random.Generator) -> Weights:
    names, member = np.unique(groups, return_inverse=True)
    return np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))[member].astype(float)


def _average(rows: NDArray[np.float64], weights: Weights) -> NDArray[np.float64]:
    return weights @ rows / weights.sum()


def _mean(values: pd.Series | NDArray[Any], weights: Weights) -> float:
    return float(weights @ np.asarray(values, dtype=float) / weights.sum()) if weights.sum() > 0 else np.nan


def _interval(values: list[float], level: float) -> tuple[float, float]:
    finite = np.asarray(values)[np.isfinite(values)]
    if finite.size == 0:
        return np.nan, np.nan
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)

"""Judging generated images: do they follow their masks, do they look like held-out real images, are they copies?

Every measure comes with the same measure on real images as its yardstick, and with an interval from resampling
whole micrographs (real) or patches (generated), because patches of one micrograph are not independent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics.pairwise import polynomial_kernel, rbf_kernel

from companion.diffusion import measures
from companion.diffusion.measures import Floats
from companion.micrographs.patches import Patches
from companion.stats import c2st_auc, cluster_weights, percentile_interval

MOST = 1000  # images of a set that are judged: distances need no more, and kernels grow with the square
REAL, TRAINING = "real, held out", "real, training"
Encode = Callable[[NDArray[np.uint8]], Floats]
KERNELS = {  # Binkowski et al. 2018; Jayasumana et al. 2024, as wide as two draws of unit scatter lie apart
    "kid": lambda a, b: polynomial_kernel(a, b, degree=3),
    "cmmd": lambda a, b: rbf_kernel(a, b, gamma=1 / (4 * a.shape[1])),
}


@dataclass(frozen=True)
class _Described:
    """What the measures need of a set of P patches, computed once; kernels by name, `between` it and held-out ones."""

    groups: NDArray  # [P]: what is resampled as a whole
    contrast: pd.DataFrame
    power: Floats
    histogram: Floats
    profile: tuple[Floats, Floats]
    features: Floats
    nearest: Floats
    within: dict[str, Floats] = field(default_factory=dict)
    between: dict[str, Floats] = field(default_factory=dict)


def spectral_distance(a: Floats, b: Floats) -> Floats:
    """Distance of two power spectra at every frequency, decades."""
    return np.abs(np.log10(a + 1e-9) - np.log10(b + 1e-9))


def mmd(within_a: Floats, within_b: Floats, between: Floats, w: Floats, v: Floats) -> float:
    """Unbiased squared maximum mean discrepancy (Gretton et al. 2012); its mean is 0 for samples of one distribution.

    Parameters
    ----------
    within_a, within_b, between : kernels [P, P], [Q, Q] and [P, Q]
    w, v : [P] and [Q], how often each patch counts
    """

    # A patch paired with itself tells nothing of the distribution, also where a resample holds a patch twice.
    def within(kernel: Floats, u: Floats) -> float:
        pairs = u.sum() ** 2 - (u**2).sum()
        return (u @ kernel @ u - (u**2) @ np.diag(kernel)) / pairs if pairs > 0 else np.nan

    return float(within(within_a, w) + within(within_b, v) - 2 * (w @ between @ v) / (w.sum() * v.sum()))


def _mean(values: Any, w: Floats) -> float:
    return float(w @ np.asarray(values, dtype=float) / w.sum()) if w.sum() > 0 else np.nan


def _defined_mean(values: Floats) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else np.nan


def _average(rows: Floats, w: Floats) -> Floats:
    return w @ rows / w.sum()


def _across(profile: tuple[Floats, Floats], w: Floats) -> Floats:
    total, count = (np.tensordot(w, part, axes=1) for part in profile)  # (K, 2 * PROFILE_PX)
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


# Of a set `a` whose patches count w times, and held-out real images `b` whose patches count v times.
MEASURES: dict[str, tuple[str, str, Callable[[_Described, Floats, _Described, Floats], float]]] = {
    "darker inside its mask": ("share of defects", REAL,
        lambda a, w, b, v: _mean(a.contrast["contrast"] > 0, w[a.contrast["patch"]])),
    "contrast of defects": ("share of the surroundings' grey level", REAL,
        lambda a, w, b, v: _mean(a.contrast["contrast"], w[a.contrast["patch"]])),
    "distance to the nearest training patch": ("grey levels, median", REAL,
        lambda a, w, b, v: np.median(np.repeat(a.nearest, w.astype(int)))),
    "memorisation": ("share nearer to a training patch than any held-out image", REAL,
        lambda a, w, b, v: _mean(a.nearest < b.nearest.min(), w)),
    "power spectrum": ("decades, mean over frequencies", TRAINING,
        lambda a, w, b, v: spectral_distance(_average(a.power, w), _average(b.power, v)).mean()),
    "power spectrum, worst frequency": ("decades", TRAINING,
        lambda a, w, b, v: spectral_distance(_average(a.power, w), _average(b.power, v)).max()),
    "grey levels": ("grey levels, Wasserstein", TRAINING,
        lambda a, w, b, v: np.abs(np.cumsum(_average(a.histogram, w) - _average(b.histogram, v))).sum()),
    "profile across defects": ("share of the surroundings' grey level", TRAINING,
        lambda a, w, b, v: _defined_mean(np.abs(_across(a.profile, w) - _across(b.profile, v)))),
    "kid": ("encoder features", TRAINING,
        lambda a, w, b, v: mmd(a.within["kid"], b.within["kid"], a.between["kid"], w, v)),
    "cmmd": ("encoder features", TRAINING,
        lambda a, w, b, v: mmd(a.within["cmmd"], b.within["cmmd"], a.between["cmmd"], w, v)),
}  # fmt: skip


def judge(
    generated: Patches,
    train: Patches,
    test: Patches,
    encode: Encode,
    rng: np.random.Generator,
    *,
    others: Mapping[str, Patches] | None = None,
    resamples: int = 200,
    level: float = 0.95,
) -> pd.DataFrame:
    """All measures with interval and yardsticks.

    Parameters
    ----------
    generated, train, test : patches with images; `test` is real and held out
    encode : features [P, D] of images uint8 [P, S, S]
    rng : draws the resamples, and the `MOST` patches of larger sets
    others : more sets that are measured as `generated` is, by name
    resamples, level : bootstrap resamples behind each interval, and its level; c2st_auc has none

    Returns
    -------
    One row per measure (`MEASURES` and c2st_auc, the area under the ROC curve of a classifier that is asked to tell
    the set from held-out images): measure, unit, value, low, high, n (images), yardstick, yardstick_of, and a column
    for each of `others`.
    """
    sets = {"generated": generated, TRAINING: train, REAL: test, **(others or {})}
    made = _describe({name: few(patches, rng) for name, patches in sets.items()}, train, encode)
    ones, gen, held = {name: np.ones(len(a.groups)) for name, a in made.items()}, made["generated"], made[REAL]
    draws = list(zip(*(_resampled(a.groups, rng, resamples) for a in (gen, held)), strict=True))
    rows = []
    for name, (unit, of, measure) in MEASURES.items():
        found = {other: measure(a, ones[other], held, ones[REAL]) for other, a in made.items()}
        values = np.array([measure(gen, w, held, v) for w, v in draws])
        rows.append((name, unit, of, found, percentile_interval(values, level)))
    # What the classifier sees: features of the encoder and the logarithm of the power spectrum.
    texture = {name: np.hstack([a.features, np.log10(a.power + 1e-9)]) for name, a in made.items()}
    found = {name: c2st_auc(texture[name], texture[REAL], a.groups, held.groups, rng) for name, a in made.items()}
    rows.append(("c2st_auc", "area under the ROC curve", TRAINING, found, (np.nan, np.nan)))
    return pd.DataFrame([
        {"measure": name, "unit": unit, "value": found["generated"], "low": low, "high": high, "n": len(gen.groups),
         "yardstick": found[of], "yardstick_of": of if of == REAL else f"{of} against held out",
         **{other: found[other] for other in others or {}}}
        for name, unit, of, found, (low, high) in rows
    ])  # fmt: skip


def copies(
    generated: Patches, train: Patches, test: Patches, latents: Callable[[NDArray[np.uint8]], NDArray] | None = None
) -> pd.DataFrame:
    """The most similar training patch of each image, and whether it is nearer than any held-out real image comes.

    Neighbours are looked for in pixels; the pairs are compared in latents, too, where `latents` [P, ...] of images
    uint8 [P, S, S] are given.

    Returns
    -------
    One row per image, nearest first: patch, nearest, symmetry, distance (grey levels), closest_real (the smallest
    such distance of a held-out real image), copy (distance below it); with latents latent_distance,
    latent_closest_real and latent_copy
    """
    tables = [measures.nearest_training(measures.images_of(patches), train) for patches in (generated, test)]
    for table, patches in zip(tables, (generated, test), strict=True):
        if latents:
            own, other = latents(patches.images), latents(measures.turned(train, table["nearest"], table["symmetry"]))
            table["latent_distance"] = np.sqrt(((own - other) ** 2).reshape(len(own), -1).mean(axis=1))
    found, real = tables
    for name in ("", "latent_") if latents else ("",):
        found[f"{name}closest_real"] = real[f"{name}distance"].min()
        found[f"{name}copy"] = found[f"{name}distance"] < found[f"{name}closest_real"]
    return found.sort_values("distance", kind="stable", ignore_index=True)


def compare_settings(
    draw: Callable[[Any], NDArray[np.uint8]], settings: list[Any], masks: Patches, held: Patches, encode: Encode
) -> pd.DataFrame:
    """The same masks and noise drawn with each of some `settings` (sections of the profile), against held-out images.

    Parameters
    ----------
    draw : images [P, S, S] of `masks` with a setting

    Returns
    -------
    One row per setting: sampler, steps, power spectrum (decades), kid, and contrast (mean over defects)
    """
    power, features = measures.power_spectra(held.images)[1].mean(axis=0), encode(held.images)
    centre, scale = features.mean(axis=0), features.std(axis=0) + 1e-9
    rows = []
    for setting in settings:
        images = draw(setting)
        spectrum = spectral_distance(measures.power_spectra(images)[1].mean(axis=0), power).mean()
        a, b = (encode(images) - centre) / scale, (features - centre) / scale
        kid = mmd(*(KERNELS["kid"](*pair) for pair in ((a, a), (b, b), (a, b))), np.ones(len(a)), np.ones(len(b)))
        contrast = measures.mask_contrast(replace(masks, images=images))["contrast"].mean()
        rows.append((setting.sampler, setting.steps, spectrum, kid, contrast))
    return pd.DataFrame(rows, columns=["sampler", "steps", "power spectrum", "kid", "contrast"])


def few(patches: Patches, rng: np.random.Generator, most: int = MOST) -> Patches:
    """At most `most` of the patches, drawn at random."""
    return patches if len(patches) <= most else patches.only(np.sort(rng.permutation(len(patches))[:most]))


def _describe(sets: Mapping[str, Patches], train: Patches, encode: Encode) -> dict[str, _Described]:
    features = {name: encode(measures.images_of(patches)) for name, patches in sets.items()}
    centre, scale = features[TRAINING].mean(axis=0), features[TRAINING].std(axis=0) + 1e-9
    micrographs = {name for real in (TRAINING, REAL) for name in sets[real].index["image"]}
    made = {}
    for name, patches in sets.items():
        images, groups = measures.images_of(patches), patches.index["image"].to_numpy()
        if not micrographs.issuperset(groups):  # patches of one micrograph are not independent; simulated ones are
            groups = np.arange(len(patches))
        made[name] = _Described(
            groups, measures.mask_contrast(patches), measures.power_spectra(images)[1], measures.histograms(images),
            measures.contrast_profiles(patches), (features[name] - centre) / scale,
            measures.nearest_training(images, train)["distance"].to_numpy(),
        )  # fmt: skip
    for a in made.values():
        for name, kernel in KERNELS.items():
            a.within[name], a.between[name] = kernel(a.features, a.features), kernel(a.features, made[REAL].features)
    return made


def _resampled(groups: NDArray, rng: np.random.Generator, resamples: int) -> Floats:
    names, weights = cluster_weights(groups, rng, resamples)
    return weights[:, np.searchsorted(names, groups)].astype(float)

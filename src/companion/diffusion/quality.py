"""Judging generated images: do they follow their masks, do they look like held-out labelled ones, are they copies?

Every measure comes with the same measure on labelled images as its yardstick, and with an interval from resampling
whole micrographs (labelled) or patches (generated), because patches of one micrograph are not independent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics.pairwise import polynomial_kernel, rbf_kernel

from companion.diffusion.denoiser import outlined
from companion.diffusion.measures import Floats, across_outlines, histograms, nearest_training, power_spectra
from companion.diffusion.sample import LatentDiffusion
from companion.micrographs.patches import Patches
from companion.stats import c2st_auc, cluster_weights, percentile_interval

OF_ONE_SET = ("darker inside its mask", "contrast of defects")  # their yardstick looks at no held-out image
MOST = 1000  # images of a set that are judged: distances need no more, and kernels grow with the square
LABELLED, TRAINING = "labelled, held out", "labelled, training"
Encode = Callable[[NDArray[np.uint8]], Floats]
KERNELS = {  # Binkowski et al. 2018; Jayasumana et al. 2024, as wide as two draws of unit scatter lie apart
    "kid": lambda a, b: polynomial_kernel(a, b, degree=3),
    "cmmd": lambda a, b: rbf_kernel(a, b, gamma=1 / (4 * a.shape[1])),
}


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

    def within(kernel: Floats, u: Floats) -> float:  # without pairs of a patch and itself, even if it is drawn twice
        pairs = u.sum() ** 2 - (u**2).sum()
        return (u @ kernel @ u - (u**2) @ np.diag(kernel)) / pairs if pairs > 0 else np.nan

    return float(within(within_a, w) + within(within_b, v) - 2 * (w @ between @ v) / (w.sum() * v.sum()))


def _mean(rows: Floats, w: Floats) -> Floats:
    return w @ rows / w.sum() if w.sum() > 0 else np.nan


def _across(a: SimpleNamespace, w: Floats) -> Floats:
    total, count = (np.tensordot(w, part, axes=1) for part in (a.total, a.count))  # (K, 2 * PROFILE_PX)
    return total / np.where(count > 0, count, np.nan)


def _profile(a: SimpleNamespace, w: Floats, b: SimpleNamespace, v: Floats) -> float:
    apart = np.abs(_across(a, w) - _across(b, v))
    return apart[np.isfinite(apart)].mean() if np.isfinite(apart).any() else np.nan


# Of a set `a` (see `_describe`) whose patches count w times, and held-out images `b` whose patches count v times.
MEASURES: dict[str, tuple[str, str, Callable[[SimpleNamespace, Floats, SimpleNamespace, Floats], float]]] = {
    "darker inside its mask": ("share of defects", TRAINING,
        lambda a, w, b, v: _mean(a.contrast["contrast"].to_numpy() > 0, w[a.contrast["patch"]])),
    "contrast of defects": ("share of the surroundings' grey level", TRAINING,
        lambda a, w, b, v: _mean(a.contrast["contrast"].to_numpy(), w[a.contrast["patch"]])),
    "distance to the nearest training patch": ("grey levels, median", LABELLED,
        lambda a, w, b, v: np.median(np.repeat(a.nearest, w.astype(int)))),
    "memorisation": ("share nearer to a training patch than any held-out image", LABELLED,
        lambda a, w, b, v: _mean(a.nearest < b.nearest.min(), w)),
    "power spectrum": ("decades, mean over frequencies", TRAINING,
        lambda a, w, b, v: spectral_distance(_mean(a.power, w), _mean(b.power, v)).mean()),
    "power spectrum, worst frequency": ("decades", TRAINING,
        lambda a, w, b, v: spectral_distance(_mean(a.power, w), _mean(b.power, v)).max()),
    "grey levels": ("grey levels, Wasserstein", TRAINING,
        lambda a, w, b, v: np.abs(np.cumsum(_mean(a.histogram, w) - _mean(b.histogram, v))).sum()),
    "profile across defects": ("share of the surroundings' grey level", TRAINING, _profile),
    "kid": ("encoder features", TRAINING,
        lambda a, w, b, v: mmd(a.within["kid"], b.within["kid"], a.between["kid"], w, v)),
    "cmmd": ("encoder features", TRAINING,
        lambda a, w, b, v: mmd(a.within["cmmd"], b.within["cmmd"], a.between["cmmd"], w, v)),
}  # fmt: skip


def judge(
    generated: Patches, train: Patches, test: Patches, encode: Encode, rng: np.random.Generator, *,
    others: Mapping[str, Patches] = {}, resamples: int = 200, level: float = 0.95,
) -> pd.DataFrame:  # fmt: skip
    """All measures with interval and yardsticks.

    Parameters
    ----------
    test : labelled and held out, as no other set
    encode : features [P, D] of images uint8 [P, S, S]
    others : more sets that are measured as `generated` is, by name
    resamples, level : bootstrap resamples behind each interval, and its level; c2st_auc has none

    Returns
    -------
    One row per measure (`MEASURES`, and `stats.c2st_auc` of a set and held-out ones): measure, unit, value, low, high,
    n (images), yardstick, yardstick_of, excess_low and excess_high (interval of value minus yardstick, both resampled,
    less the bias of resampled distances), and a column for each of `others`.
    """
    sets = {"generated": generated, TRAINING: train, LABELLED: test, **others}
    made = _describe({name: few(patches, rng) for name, patches in sets.items()}, train, encode)
    ones, gen, held = {name: np.ones(len(a.groups)) for name, a in made.items()}, made["generated"], made[LABELLED]
    drawn = {name: cluster_weights(made[name].groups, rng, resamples).astype(float)
             for name in ("generated", TRAINING, LABELLED)}  # fmt: skip
    # What the classifier sees: features of the encoder and the logarithm of the power spectrum.
    seen = {name: np.hstack([a.features, np.log10(a.power + 1e-9)]) for name, a in made.items()}
    rows = []
    for name, (unit, of, measure) in MEASURES.items():
        found = {other: measure(a, ones[other], held, ones[LABELLED]) for other, a in made.items()}
        values, yardsticks = (
            np.array([measure(made[a], w, held, v) for w, v in zip(drawn[a], drawn[LABELLED], strict=True)])
            for a in ("generated", of)
        )
        excess = values - yardsticks
        excess += found["generated"] - found[of] - (np.nanmean(excess) if np.isfinite(excess).any() else 0.0)
        rows.append((name, unit, of, found, *percentile_interval(values, level), *percentile_interval(excess, level)))
    found = {name: c2st_auc(seen[name], seen[LABELLED], a.groups, held.groups, rng) for name, a in made.items()}
    rows.append(("c2st_auc", "area under the ROC curve", TRAINING, found, *[np.nan] * 4))
    return pd.DataFrame([
        {"measure": name, "unit": unit, "value": found["generated"], "low": low, "high": high, "n": len(gen.groups),
         "yardstick": found[of], "excess_low": excess_low, "excess_high": excess_high,
         "yardstick_of": of if of == LABELLED or name in OF_ONE_SET else f"{of} against held out",
         **{other: found[other] for other in others}}
        for name, unit, of, found, low, high, excess_low, excess_high in rows
    ])  # fmt: skip


CHOOSING = 100  # validation patches whose masks guidance is chosen on


def contrast_by_class(patches: Patches) -> pd.Series:
    """Mean contrast of the defects of each class (see `measures.across_outlines`), by its name; NaN where none is."""
    mean = across_outlines(patches)[0].groupby("class")["contrast"].mean()
    return mean.reindex(range(1, len(patches.classes) + 1)).set_axis(list(patches.classes))


def choose_guidance(
    models: Sequence[LatentDiffusion], validation: Patches, rng: np.random.Generator
) -> tuple[LatentDiffusion, pd.DataFrame]:
    """Of models that differ in guidance, the one whose defects have the contrast that labelled ones have.

    Each draws images for the masks of the same `CHOOSING` labelled `validation` patches (never of test ones). The mean
    contrast of every class is divided by that of the labelled defects; the ratios nearest to 1 win.

    Returns
    -------
    The model, and a row per model: guidance, the ratio of each class, and off (mean distance of the ratios from 1)
    """
    some, rows = few(validation, rng, CHOOSING), []
    for ldm in models:
        drawn = replace(some, images=ldm.sample(outlined(some), range(len(some))))
        ratios = contrast_by_class(drawn) / contrast_by_class(some)
        rows.append({"guidance": ldm.settings.guidance, **ratios, "off": (ratios - 1).abs().mean()})
    table = pd.DataFrame(rows)
    return models[int(table["off"].fillna(np.inf).argmin())], table


def few(patches: Patches, rng: np.random.Generator, most: int = MOST) -> Patches:
    """At most `most` of the patches, drawn at random."""
    return patches if len(patches) <= most else patches.only(np.sort(rng.permutation(len(patches))[:most]))


def _describe(sets: Mapping[str, Patches], train: Patches, encode: Encode) -> dict[str, SimpleNamespace]:
    """What the measures need of every set of P patches; features are standardised by those of training patches."""
    features = {name: encode(patches.images) for name, patches in sets.items()}
    centre, scale = features[TRAINING].mean(axis=0), features[TRAINING].std(axis=0) + 1e-9
    features = {name: (values - centre) / scale for name, values in features.items()}
    micrographs, made = {name for known in (TRAINING, LABELLED) for name in sets[known].index["image"]}, {}
    for name, patches in sets.items():
        own, groups = features[name], patches.index["image"].to_numpy()
        if not micrographs.issuperset(groups):  # patches of one micrograph are not independent; simulated ones are
            groups = np.arange(len(patches))
        contrast, total, count = across_outlines(patches)
        made[name] = SimpleNamespace(
            groups=groups,  # [P], what is resampled as a whole
            contrast=contrast, total=total, count=count,
            power=power_spectra(patches.images)[1],  # [P, S/2]
            histogram=histograms(patches.images),  # [P, 256]
            nearest=nearest_training(patches.images, train)["distance"].to_numpy(),  # [P]
            features=own,  # [P, D]
            within={kernel: k(own, own) for kernel, k in KERNELS.items()},  # [P, P]
            between={kernel: k(own, features[LABELLED]) for kernel, k in KERNELS.items()},  # [P, Q]
        )  # fmt: skip
    return made

"""How far simulated masks are from real ones: distances of distributions, and a classifier that tries to tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import mannwhitneyu, wasserstein_distance

from companion.micrographs.patches import Patches
from companion.masks.spatial import (
    Floats,
    coherence,
    directional_pairs,
    nearest_neighbours,
    nearest_share,
    pair_correlation,
)
from companion.masks.statistics import counts, measure

FOLDS = 5
RIDGE = 0.02  # penalty per observation on the squared coefficients of standardised features
G_BINS = 8
NEIGHBOUR_STEPS = 64
REAL = "real, other half"


@dataclass(frozen=True)
class Described:
    """Masks with everything that the judgement looks at.

    Attributes
    ----------
    size : side of a mask, px
    statistics : see `statistics.measure`
    per_patch : instances per patch [P]
    features : one row per mask, see `mask_features`
    groups : what masks belong together [P]: real ones and those drawn after them by micrograph
    """

    size: int
    statistics: pd.DataFrame
    per_patch: NDArray[np.int64]
    features: pd.DataFrame
    groups: NDArray


def describe(patches: Patches, fold: int, groups: NDArray | None = None) -> Described:
    """Measure masks for the judgement.

    Parameters
    ----------
    fold : symmetry of directions, see `spatial.find_crystals`
    groups : see `Described`; for simulated masks ``Simulation.origin``, for real ones their micrographs (the default)
    """
    statistics = measure(patches)
    per_patch = counts(patches).groupby("patch")["count"].sum().to_numpy()
    groups = patches.index["image"].to_numpy() if groups is None else groups
    return Described(patches.size, statistics, per_patch, mask_features(patches, statistics, fold), groups)


def mask_features(patches: Patches, statistics: pd.DataFrame, fold: int) -> pd.DataFrame:
    """Numbers that describe a mask as a whole, none of which changes when the mask is turned or mirrored.

    Per class: number, share of the area, sums over instances of log major axis, log aspect and border contact,
    departure from an ellipse; over all: nearest-neighbour distance (smallest and mean), spread of sizes; per pair
    of classes: likeness of directions; and the pixel size. [P, F], without undefined values.
    """
    n, size = len(patches), patches.size
    patch, code = statistics["patch"].to_numpy(), statistics["class"].to_numpy()
    major, minor = statistics["major_px"].to_numpy(), statistics["minor_px"].to_numpy()
    log_major = np.log(major)
    per_instance = {
        "number": np.ones(len(statistics)), "area": statistics["area_px"].to_numpy() / size**2,
        "log_major": log_major - np.log(size / 8), "log_aspect": np.log(major / minor),
        "cut": statistics["touches_border"].to_numpy(float),
        "raggedness": np.log(statistics["area_px"].to_numpy() / (np.pi / 4 * (major + 1) * (minor + 1))),
    }  # fmt: skip
    columns: dict[str, Floats] = {"log_pixel_size": np.log(patches.index["pixel_size_nm"].to_numpy(float))}
    for c, name in enumerate(patches.classes, start=1):
        for what, value in per_instance.items():
            columns[f"{what} {name}"] = np.bincount(patch[code == c], value[code == c], minlength=n)
    number = np.bincount(patch, minlength=n)
    squares = np.bincount(patch, log_major**2, n), np.bincount(patch, log_major, n) / np.maximum(number, 1)
    columns["size spread"] = np.sqrt(np.clip(squares[0] / np.maximum(number, 1) - squares[1] ** 2, 0, None))
    distance = np.minimum(nearest_neighbours(statistics, size)["distance_px"].to_numpy(), size) / size
    nearest = np.ones(n)
    np.minimum.at(nearest, patch, distance)
    columns["nearest"] = nearest
    columns["mean nearest"] = np.where(number > 0, np.bincount(patch, distance, n) / np.maximum(number, 1), 1.0)
    pairs = directional_pairs(statistics, fold)
    for a in range(1, len(patches.classes) + 1):
        for b in range(a, len(patches.classes) + 1):
            some = pairs[(pairs["class_a"] == a) & (pairs["class_b"] == b)]
            columns[f"alike {a}-{b}"] = np.bincount(some["patch"], some["weight"] * some["likeness"], n)
    return pd.DataFrame(columns)


def judge(real: Described, simulated: Mapping[str, Described], fold: int, rng: np.random.Generator) -> pd.DataFrame:
    """One row per sampler, and a first one for real masks of half of the micrographs against the other half.

    Returns
    -------
    Table with sampler; wasserstein_<statistic> (1-Wasserstein distance in standard deviations of the real
    values) for count (per mask), major, aspect, area, neighbour (see `_neighbour_distance`); g_rmse (root mean
    square difference of the pair correlation); coherence (see `spatial.coherence`); empty and cut (shares of masks
    and instances); auc with its 95 % interval auc_low, auc_high (0.5: a classifier cannot tell the masks from real
    ones). The first row says what real masks of other micrographs would get: no sampler can be asked for less.
    """
    halves = _halves(real, rng)
    against = [(REAL, halves[0], halves[1])] if halves else []
    against += [(name, real, other) for name, other in simulated.items()]
    rows, seed = [], int(rng.integers(2**62))  # the same folds for all, so that samplers differ by their masks alone
    for name, truth, other in against:
        auc, low, high = two_sample_auc(truth, other, np.random.default_rng(seed))
        rows.append({
            "sampler": name, **distances(truth, other), "coherence": coherence(other.statistics, fold),
            "empty": (other.per_patch == 0).mean(), "cut": other.statistics["touches_border"].mean(),
            "auc": auc, "auc_low": low, "auc_high": high,
        })  # fmt: skip
    return pd.DataFrame(rows)


def contenders(judged: pd.DataFrame) -> tuple[pd.Series, pd.Series, pd.Series]:
    """Rows of `judge`: the paper's sampler, the single repair with the AUC nearest to 0.5, and the nearest of all
    whole samplers."""
    simulated = judged[judged["sampler"] != REAL]
    departure = (simulated["auc"] - 0.5).abs().fillna(np.inf)
    single = simulated["sampler"].str.startswith("+ ")
    authors = simulated[simulated["sampler"] == "authors"].iloc[0]
    return authors, simulated.loc[departure[single].idxmin()], simulated.loc[departure[~single].idxmin()]


def distances(real: Described, simulated: Described) -> dict[str, float]:
    """Wasserstein distances of one-dimensional statistics, in standard deviations of the real values, and g_rmse."""

    def values(d: Described) -> dict[str, NDArray]:
        table = d.statistics
        return {
            "count": d.per_patch, "major": np.log(table["major_px"]),
            "aspect": np.log(table["major_px"] / table["minor_px"]), "area": np.log(table["area_px"]),
        }  # fmt: skip

    found = {}
    for (name, a), b in zip(values(real).items(), values(simulated).values(), strict=True):
        spread = np.std(a) if len(a) and np.std(a) > 0 else 1.0
        found[f"wasserstein_{name}"] = wasserstein_distance(a, b) / spread if len(a) and len(b) else np.nan
    found["wasserstein_neighbour"] = _neighbour_distance(real, simulated)
    edges = np.linspace(0, real.size / 2, G_BINS + 1)
    g = [pair_correlation(d.statistics, d.size, edges)["g"].to_numpy() for d in (real, simulated)]
    found["g_rmse"] = float(np.sqrt(np.mean((g[0] - g[1]) ** 2)))
    return found


def _neighbour_distance(real: Described, simulated: Described) -> float:
    """1-Wasserstein distance of nearest-neighbour distances, longer ones set to R = S/4, by the reduced-sample G(r).

    The integral of the difference of the two G(r) from 0 to R, in standard deviations of the real min(d, R), whose
    moments are integrals of 1 - G. Beyond R less than a quarter of the masks is so far from its border.
    """
    r = np.linspace(0, real.size / 4, NEIGHBOUR_STEPS + 1)[1:]
    shares = []
    for d in (real, simulated):
        found = nearest_neighbours(d.statistics, d.size)
        shares.append(nearest_share(found["distance_px"].to_numpy(), found["border_px"].to_numpy(), r))
    left, step = 1 - shares[0], r[0]
    spread = np.sqrt(max(0.0, (2 * r * left).sum() * step - (left.sum() * step) ** 2))
    return float(np.abs(shares[0] - shares[1]).sum() * step / (spread if spread > 0 else 1.0))


def two_sample_auc(
    real: Described, simulated: Described, rng: np.random.Generator, resamples: int = 200
) -> tuple[float, float, float]:
    """Classifier two-sample test (Lopez-Paz and Oquab 2017): can real and simulated masks be told apart?

    A ridge-penalised logistic regression on the features of `mask_features`, their squares and products is
    cross-validated. Masks of one micrograph stay in one fold, and with them the simulated masks that were drawn
    after them: a copy among the training masks would otherwise mark its original as simulated, and a sampler
    would look the better the more it copies.

    Returns
    -------
    Area under the ROC curve of the held-out predictions (within folds, see `_auc`), and its 95 % interval from a
    bootstrap of the groups (micrographs of real masks); nan where there are not two groups on a side.
    """
    x = np.vstack([real.features.to_numpy(float), simulated.features.to_numpy(float)])
    y = np.repeat([0.0, 1.0], [len(real.features), len(simulated.features)])
    sides = [pd.factorize(d.groups)[0] for d in (real, simulated)]
    if min(side.max(initial=-1) for side in sides) < 1:
        return np.nan, np.nan, np.nan
    names = pd.unique(real.groups), pd.unique(simulated.groups[~np.isin(simulated.groups, real.groups)])
    fold_of = {name: k % FOLDS for some in names for k, name in enumerate(rng.permutation(some))}
    groups = np.concatenate([real.groups, simulated.groups])
    fold = pd.Series(groups).map(fold_of).to_numpy()
    score = np.full(len(y), np.nan)
    for k in np.unique(fold):
        train = fold != k
        if len(np.unique(y[train])) == 2:
            score[~train] = _logistic(x[train], y[train], x[~train])
    known = np.isfinite(score)
    draws = [_auc(score[known], y[known], fold[known])]
    members = [pd.Series(np.arange(len(side))).groupby(side).indices for side in sides]
    offsets = (0, len(sides[0]))
    for _ in range(resamples):
        chosen = np.concatenate([
            offset + np.concatenate([own[g] for g in rng.integers(len(own), size=len(own))])
            for own, offset in zip(members, offsets, strict=True)
        ])  # fmt: skip
        chosen = chosen[known[chosen]]
        draws.append(_auc(score[chosen], y[chosen], fold[chosen]))
    return draws[0], *np.nanquantile(draws[1:], [0.025, 0.975])


def _halves(real: Described, rng: np.random.Generator) -> tuple[Described, Described] | None:
    """Real masks of half of the groups, and of the other half; None where there are fewer than four groups."""
    code, names = pd.factorize(real.groups)
    if len(names) < 4:
        return None
    first = np.isin(code, rng.permutation(len(names))[: len(names) // 2])
    parts = []
    for chosen in (first, ~first):
        number = np.cumsum(chosen) - 1
        table = real.statistics[chosen[real.statistics["patch"].to_numpy()]]
        table = table.assign(patch=number[table["patch"].to_numpy()])
        part = Described(real.size, table, real.per_patch[chosen], real.features[chosen], real.groups[chosen])
        parts.append(part)
    return parts[0], parts[1]


def _logistic(x: Floats, y: Floats, new: Floats) -> Floats:
    """Log odds of class 1 at `new`, from a quadratic logistic regression on `x`; both classes weigh the same."""
    middle, spread = x.mean(axis=0), x.std(axis=0)
    varying = spread > 1e-9

    def expand(values: Floats) -> Floats:
        z = np.clip((values - middle)[:, varying] / spread[varying], -4, 4)
        i, j = np.triu_indices(z.shape[1])
        return np.hstack([z, z[:, i] * z[:, j] / 2])

    design = expand(x)
    centre, scale = design.mean(axis=0), design.std(axis=0) + 1e-9
    design = (design - centre) / scale
    sign, weight = 2 * y - 1, np.where(y > 0, 0.5 / y.mean(), 0.5 / (1 - y.mean())) / len(y)

    def loss(b: Floats) -> tuple[float, Floats]:
        margin = sign * (design @ b[1:] + b[0])
        slope = -weight * sign * expit(-margin)
        value = (weight * np.logaddexp(0, -margin)).sum() + RIDGE * (b[1:] @ b[1:]) / 2
        return value, np.concatenate([[slope.sum()], design.T @ slope + RIDGE * b[1:]])

    b = minimize(loss, np.zeros(design.shape[1] + 1), jac=True, method="L-BFGS-B", options={"maxiter": 200}).x
    return (expand(new) - centre) / scale @ b[1:] + b[0]


def _auc(score: Floats, y: Floats, fold: NDArray) -> float:
    """Share of pairs (one of each class, held out together) in the right order.

    Scores of different folds come from different models and are not compared: what one fold lacks the others have
    too much of, which would push the pooled area below 0.5 for equal masks.
    """
    right, pairs = 0.0, 0
    for k in np.unique(fold):
        ones, zeros = score[(fold == k) & (y == 1)], score[(fold == k) & (y == 0)]
        if len(ones) and len(zeros):
            right += mannwhitneyu(ones, zeros).statistic
            pairs += len(ones) * len(zeros)
    return float(right / pairs) if pairs else np.nan

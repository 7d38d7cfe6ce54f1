"""How far simulated masks are from real ones: distances of distributions, and a classifier that tries to tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import wasserstein_distance
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from companion.masks.spatial import coherence, directional_pairs, nearest_neighbours, nearest_share, pair_correlation
from companion.masks.statistics import measure
from companion.micrographs.patches import Patches
from companion.stats import c2st_auc

G_BINS, GRID = 8, 64
HALVINGS = 5
PENALTY = 50.0  # inverse strength of the classifier's L2 penalty, times masks: about as many features as masks
REAL = "real, other half"


@dataclass(frozen=True)
class Described:
    """Masks with everything that is compared.

    Attributes
    ----------
    size : side of a mask, px
    statistics : see `statistics.measure`
    features : one row per mask, see `mask_features`
    groups : what masks belong together [P]: real ones and those drawn after them by micrograph
    """

    size: int
    statistics: pd.DataFrame
    features: pd.DataFrame
    groups: NDArray

    @property
    def per_patch(self) -> NDArray[np.int64]:
        """Instances per mask [P]."""
        return np.bincount(self.statistics["patch"], minlength=len(self.features))

    def only(self, chosen: NDArray[np.bool_]) -> Described:
        """The masks that are `chosen` [P]."""
        table = self.statistics[chosen[self.statistics["patch"].to_numpy()]]
        table = table.assign(patch=(np.cumsum(chosen) - 1)[table["patch"].to_numpy()])
        return Described(self.size, table, self.features[chosen], self.groups[chosen])


def describe(patches: Patches, fold: int, groups: NDArray | None = None) -> Described:
    """Measure masks for the comparison.

    Parameters
    ----------
    fold : symmetry of directions, see `spatial.find_crystals`
    groups : see `Described`; for simulated masks ``Simulation.origin``, for real ones their micrographs (the default)
    """
    statistics = measure(patches)
    groups = patches.index["image"].to_numpy() if groups is None else groups
    return Described(patches.size, statistics, mask_features(patches, statistics, fold), groups)


def mask_features(patches: Patches, statistics: pd.DataFrame, fold: int) -> pd.DataFrame:
    """Numbers that describe a mask as a whole, none of which changes when the mask is turned or mirrored.

    Per class: number, share of the area, sums over instances of log major axis, log aspect and border contact,
    departure from an ellipse, likeness of directions; over all: nearest-neighbour distance (smallest and mean), spread
    of sizes; and the pixel size. [P, F], without undefined values.
    """
    n, size, codes = len(patches), patches.size, range(1, len(patches.classes) + 1)
    area, major, minor = (statistics[column] for column in ("area_px", "major_px", "minor_px"))
    near = np.minimum(nearest_neighbours(statistics, size)["distance_px"].to_numpy(), size) / size
    table = statistics[["patch", "class"]].assign(
        number=1, area=area / size**2, log_major=np.log(major / (size / 8)), log_aspect=np.log(major / minor),
        cut=statistics["touches_border"], raggedness=np.log(area / (np.pi / 4 * (major + 1) * (minor + 1))), near=near,
    )  # fmt: skip
    pairs = directional_pairs(statistics, fold)
    alike = (pairs["weight"] * pairs["likeness"]).groupby([pairs["patch"], pairs["class"]]).sum()
    per_class = table.drop(columns="near").groupby(["patch", "class"]).sum().assign(alike=alike)
    cells = pd.MultiIndex.from_product([range(n), codes], names=["patch", "class"])
    found = per_class.astype(float).fillna(0).reindex(cells, fill_value=0).unstack()
    found.columns = [f"{what} {patches.classes[code - 1]}" for what, code in found.columns]
    by_patch = table.groupby("patch")
    found["size spread"] = by_patch["log_major"].std(ddof=0)
    found["nearest"], found["mean nearest"] = by_patch["near"].min(), by_patch["near"].mean()
    found = found.fillna({"size spread": 0.0, "nearest": 1.0, "mean nearest": 1.0})
    return found.assign(log_pixel_size=np.log(patches.index["pixel_size_nm"].to_numpy(float)))


def compare(real: Described, simulated: Mapping[str, Described], fold: int, rng: np.random.Generator) -> pd.DataFrame:
    """One row per sampler, and a first one for real masks of half of the micrographs against the other half.

    Returns
    -------
    Table with sampler; the columns of `distances`; coherence (see `spatial.coherence`); empty and cut (shares of
    masks and instances); auc (0.5: a classifier cannot tell the masks from real ones). The first row (mean of
    `HALVINGS` random halvings) says what real masks of other micrographs would get: no sampler can be asked for less.
    It is missing where there are fewer than four micrographs.
    """
    names, rows, seed = np.unique(real.groups), [], int(rng.integers(2**62))

    def row(truth: Described, other: Described) -> dict[str, float]:
        # The same folds for all, so that samplers differ by their masks alone.
        return {**distances(truth, other), "coherence": coherence(other.statistics, fold),
                "empty": (other.per_patch == 0).mean(), "cut": other.statistics["touches_border"].mean(),
                "auc": mask_auc(truth, other, np.random.default_rng(seed))}  # fmt: skip

    if len(names) >= 4:
        halves = [np.isin(real.groups, rng.permutation(names)[: len(names) // 2]) for _ in range(HALVINGS)]
        mean = pd.DataFrame([row(real.only(half), real.only(~half)) for half in halves]).mean()
        rows.append({"sampler": REAL, **mean})
    rows.extend({"sampler": name, **row(real, other)} for name, other in simulated.items())
    return pd.DataFrame(rows)


def distances(real: Described, simulated: Described) -> dict[str, float]:
    """Distances between distributions.

    Returns
    -------
    count (per mask), major, aspect, area (logarithms): 1-Wasserstein distances in standard deviations of the real
    values; neighbour: mean difference of the two nearest-neighbour distributions G(r) up to R = S/4 (1-Wasserstein
    distance of min(r, R), in R; beyond R less than a quarter of the masks is so far from its border); g_rmse: root
    mean square difference of the pair correlations up to S/2. Undefined (nan) without instances.
    """

    def values(d: Described) -> dict[str, NDArray]:
        major, minor, area = (d.statistics[column] for column in ("major_px", "minor_px", "area_px"))
        return {"count": d.per_patch, "major": np.log(major), "aspect": np.log(major / minor), "area": np.log(area)}

    found, pairs = {}, zip(values(real).items(), values(simulated).values(), strict=True)
    for (name, a), b in pairs:
        spread = np.std(a) if len(a) and np.std(a) > 0 else 1.0
        found[name] = wasserstein_distance(a, b) / spread if len(a) and len(b) else np.nan
    grid = np.linspace(0, real.size / 4, GRID + 1)[1:]
    edges = np.linspace(0, real.size / 2, G_BINS + 1)
    near = [nearest_share(d.statistics, d.size, grid) for d in (real, simulated)]
    g = [pair_correlation(d.statistics, d.size, edges)["g"].to_numpy() for d in (real, simulated)]
    found["neighbour"] = float(np.abs(near[0] - near[1]).mean())
    found["g_rmse"] = float(np.sqrt(np.mean((g[0] - g[1]) ** 2)))
    return found


def mask_auc(real: Described, simulated: Described, rng: np.random.Generator) -> float:
    """Classifier two-sample test of masks: `stats.c2st_auc` of their features, with squares and products of these.

    Masks of one micrograph stay in one fold, and with them the simulated masks that were drawn after them: a copy
    among the training masks would otherwise mark its original as simulated, and a sampler would look the better the
    more it copies. NaN where there are not two micrographs on a side.
    """
    both = np.clip(StandardScaler().fit_transform(np.vstack([real.features, simulated.features])), -4, 4)
    both = PolynomialFeatures(2, include_bias=False).fit_transform(both)
    n = len(real.features)
    return c2st_auc(both[:n], both[n:], real.groups, simulated.groups, rng, penalty=PENALTY / len(both))

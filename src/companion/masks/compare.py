"""How far simulated masks are from labelled ones: distances of distributions, and a classifier that tries to tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import wasserstein_distance
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from companion.masks.spatial import coherence, directional_pairs, nearest_neighbours
from companion.masks.statistics import cells, measure
from companion.micrographs.patches import Patches
from companion.stats import c2st_auc

HALVINGS = 5
PENALTY = 50.0  # inverse strength of the classifier's L2 penalty, times masks: about as many features as masks
OTHER_HALF = "labelled, other half"


@dataclass(frozen=True)
class Described:
    """Masks with everything that is compared."""

    size: int  # side of a mask, px
    statistics: pd.DataFrame  # see `statistics.measure`
    features: pd.DataFrame  # one row per mask, see `mask_features`
    groups: NDArray  # what masks belong together [P]: labelled ones and those drawn after them, by micrograph

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
    """Measure masks; `fold`: see `spatial.find_crystals`; `groups` of simulated masks: ``Simulation.origin``."""
    statistics = measure(patches)
    groups = patches.index["image"].to_numpy() if groups is None else groups
    return Described(patches.size, statistics, mask_features(patches, statistics, fold), groups)


def mask_features(patches: Patches, statistics: pd.DataFrame, fold: int) -> pd.DataFrame:
    """Numbers that describe a mask as a whole, none of which changes when the mask is turned or mirrored.

    Per class: number, share of the area, sums over instances of log major axis, log aspect, border contact, departure
    from an ellipse, likeness of directions; over all: nearest neighbour, spread of sizes; and the pixel size. [P, F]
    """
    size, area, major, minor = patches.size, *(statistics[column] for column in ("area_px", "major_px", "minor_px"))
    near = np.minimum(nearest_neighbours(statistics, size)["distance_px"].to_numpy(), size) / size
    table = statistics[["patch", "class"]].assign(
        number=1, area=area / size**2, log_major=np.log(major / (size / 8)), log_aspect=np.log(major / minor),
        cut=statistics["touches_border"], raggedness=np.log(area / (np.pi / 4 * (major + 1) * (minor + 1))), near=near,
    )  # fmt: skip
    pairs = directional_pairs(statistics, fold)
    alike = (pairs["weight"] * pairs["likeness"]).groupby([pairs["patch"], pairs["class"]]).sum()
    per_class = table.drop(columns="near").groupby(["patch", "class"]).sum().assign(alike=alike)
    found = per_class.astype(float).fillna(0).reindex(cells(patches), fill_value=0).unstack()
    found.columns = [f"{what} {patches.classes[code - 1]}" for what, code in found.columns]
    by_patch = table.groupby("patch")
    found["size spread"] = by_patch["log_major"].std(ddof=0)
    found["nearest"], found["mean nearest"] = by_patch["near"].min(), by_patch["near"].mean()
    found = found.fillna({"size spread": 0.0, "nearest": 1.0, "mean nearest": 1.0})
    return found.assign(log_pixel_size=np.log(patches.index["pixel_size_nm"].to_numpy(float)))


def compare(real: Described, simulated: Mapping[str, Described], fold: int, rng: np.random.Generator) -> pd.DataFrame:
    """One row per sampler, and a first one for labelled masks of half of the micrographs against the other half.

    Columns sampler; those of `distances`; coherence (see `spatial.coherence`); empty and cut (shares of masks and
    instances); auc (see `mask_auc`). The first row (mean of `HALVINGS` halvings, where there are four micrographs)
    says what labelled masks of other micrographs would get: no sampler can be asked for less.
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
        rows.append({"sampler": OTHER_HALF, **mean})
    rows.extend({"sampler": name, **row(real, other)} for name, other in simulated.items())
    return pd.DataFrame(rows)


def distances(real: Described, simulated: Described) -> dict[str, float]:
    """1-Wasserstein distances in standard deviations of the labelled values; NaN without instances.

    Of the count per mask, the logarithms of major axis, aspect and area, and the distance to the nearest neighbour (a
    quarter of the side where it is farther): borders hide neighbours of both alike.
    """

    def values(d: Described) -> dict[str, NDArray]:
        major, minor, area = (d.statistics[column] for column in ("major_px", "minor_px", "area_px"))
        near = nearest_neighbours(d.statistics, d.size)["distance_px"].clip(upper=d.size / 4)
        return {"count": d.per_patch, "major": np.log(major), "aspect": np.log(major / minor), "area": np.log(area),
                "neighbour": near}  # fmt: skip

    def distance(a: NDArray, b: NDArray) -> float:
        return wasserstein_distance(a, b) / (np.std(a) or 1.0) if len(a) and len(b) else np.nan

    other = values(simulated)
    return {name: distance(own, other[name]) for name, own in values(real).items()}


def mask_auc(real: Described, simulated: Described, rng: np.random.Generator) -> float:
    """Classifier two-sample test of masks: `stats.c2st_auc` of their features, with squares and products of these.

    Masks of one micrograph are held out together, and with them the simulated ones drawn after them: otherwise a
    sampler would look the better the more it copies. 0.5: cannot tell; NaN where a side has fewer than two micrographs.
    """
    both = np.clip(StandardScaler().fit_transform(np.vstack([real.features, simulated.features])), -4, 4)
    both = PolynomialFeatures(2, include_bias=False).fit_transform(both)
    n = len(real.features)
    return c2st_auc(both[:n], both[n:], real.groups, simulated.groups, rng, penalty=PENALTY / len(both))

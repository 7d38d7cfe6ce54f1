"""Spatial statistics of defects: neighbours, directions, and what a border hides.

Tables are those of `statistics.measure`; lengths in px, angles in degrees counter-clockwise as displayed.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.spatial import cKDTree

Floats = NDArray[np.float64]


def pairs_within(patch: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows (i, j), i < j, of every pair of instances of one patch; `patch` [M] in any order."""
    rows = pd.DataFrame({"patch": patch, "row": np.arange(len(patch))})
    both = rows.merge(rows, on="patch").query("row_x < row_y")
    return both["row_x"].to_numpy(), both["row_y"].to_numpy()


def box_sides(table: pd.DataFrame) -> Floats:
    """Width and height [M, 2] of the axis-aligned boxes of ellipses, px."""
    t, a, b = np.deg2rad(table["angle_deg"].to_numpy()), table["major_px"].to_numpy(), table["minor_px"].to_numpy()
    return np.stack([np.hypot(a * np.cos(t), b * np.sin(t)), np.hypot(a * np.sin(t), b * np.cos(t))], axis=1)


def inclusion_weights(table: pd.DataFrame, size: int) -> Floats:
    """Weights [M] that make the uncut instances of square windows represent all instances.

    An instance with a box of w x h px lies strictly inside a randomly placed window of side S with probability
    proportional to (S - 1 - w)(S - 1 - h), so large ones are missed more often. The inverse is its
    Horvitz-Thompson weight (minus-sampling with the correction of Miles and Lantuéjoul); cut instances weigh 0.
    The mean weight of uncut instances is 1. `size` is S in px.
    """
    room = np.clip(size - 1 - box_sides(table), 1, None).prod(axis=1)
    weights = np.where(table["touches_border"].to_numpy(), 0.0, 1 / room)
    return weights / weights[weights > 0].mean() if weights.any() else weights


def nearest_neighbours(table: pd.DataFrame, size: int) -> pd.DataFrame:
    """Distance from each instance's centre to the nearest other one in its patch (distance_px, inf where it is alone)
    and to the border (border_px, 0 where it lies outside).

    A nearer one may lie beyond the border. The reduced-sample estimator (Ripley 1988; Baddeley et al. 2015, chapter 8)
    of the distribution G(r) counts, at r, only those at least r from it: of them all neighbours within r are seen.
    """
    centre, apart = table[["x", "y"]].to_numpy(), 100 * size  # patches are put apart, so that none is near another
    points = np.column_stack([centre, table["patch"].to_numpy() * apart])
    distance = cKDTree(points).query(points, k=2, distance_upper_bound=apart)[0][:, 1] if len(points) else []
    border = np.minimum(centre, size - centre).min(axis=1, initial=np.inf)
    return pd.DataFrame({"distance_px": distance, "border_px": np.maximum(border, 0)})


def elongation(table: pd.DataFrame) -> Floats:
    """1 - minor/major, [M]: how much an instance's angle says."""
    return 1 - table["minor_px"].to_numpy() / table["major_px"].to_numpy()


def find_crystals(table: pd.DataFrame, fold: int) -> pd.DataFrame:
    """Azimuth of every image in `table` from its uncut instances, weighted by their elongation.

    Each class has its own direction relative to the crystal: the phase between classes is estimated from all
    images together, then each image's azimuth from all its classes. `fold` is the rotational symmetry of directions
    about the beam: 4 for [001], 2 for [110], 6 for [111]. A row per image: azimuth_deg, in [0, 360 / fold), whose zero
    is arbitrary but common to all images, and resultant, the length of the mean direction vector, 0 (no shared
    orientation, or nothing elongated) to 1.
    """
    weight = elongation(table) * ~table["touches_border"].to_numpy()
    vector = weight * np.exp(1j * fold * np.deg2rad(table["angle_deg"].to_numpy()))
    image, images = pd.factorize(table["image"])
    vectors = np.zeros((len(images), int(table["class"].max()) + 1 if len(table) else 1), dtype=complex)  # [I, classes]
    np.add.at(vectors, (image, table["class"].to_numpy()), vector)
    reference = vectors[:, [np.abs(vectors).sum(axis=0).argmax()]]
    phase = np.angle((vectors * reference.conj()).sum(axis=0))
    total = (vectors * np.exp(-1j * phase)).sum(axis=1)
    weights = np.bincount(image, weight, minlength=len(images))
    resultant = np.divide(np.abs(total), weights, out=np.zeros(len(total)), where=weights > 0)
    azimuth = np.degrees(np.angle(total)) / fold % (360 / fold)
    return pd.DataFrame({"azimuth_deg": azimuth, "resultant": resultant}, index=images)


def directional_pairs(table: pd.DataFrame, fold: int) -> pd.DataFrame:
    """Every pair of uncut instances of one class in one patch: patch, class, weight, likeness.

    `likeness` is cos(fold x difference of angles), `weight` the product of the elongations: a circle has no direction.
    """
    whole = table[~table["touches_border"]]
    i, j = pairs_within(whole.groupby(["patch", "class"]).ngroup().to_numpy())
    weight, angle = elongation(whole), np.deg2rad(whole["angle_deg"].to_numpy())
    likeness = np.cos(fold * (angle[i] - angle[j]))
    return whole[["patch", "class"]].iloc[i].assign(weight=weight[i] * weight[j], likeness=likeness)


def coherence(table: pd.DataFrame, fold: int) -> float:
    """Do uncut defects of one class in one patch point alike? Mean likeness of `directional_pairs`.

    0: directions are independent; 1: all alike up to the crystal's symmetry. Undefined (nan) without such pairs.
    """
    pairs = directional_pairs(table, fold)
    return float(np.average(pairs["likeness"], weights=pairs["weight"])) if pairs["weight"].sum() > 0 else np.nan

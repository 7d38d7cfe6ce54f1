"""What patches give back of the true distributions: once from the truth itself, once from what was labelled.

On the phantom every defect is known with its exact ellipse. Patches cut from the truth err by what borders and pixels
do to a measurement; patches cut from the labels err by the annotator on top of that.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from companion.data.cutting import cut_patches
from companion.data.dataset import DataSet
from companion.data.patches import Patches
from companion.masks.spatial import Floats, nearest_neighbours, nearest_share, plane_weights
from companion.masks.statistics import CONTOUR_PX, measure

SOURCES = ("truth", "labels")
ANGLES = np.arange(1, 181, dtype=float)  # degrees
NEIGHBOUR_STEPS = 64


def exact_defects(truth: DataSet, files: list[str]) -> pd.DataFrame:
    """Every defect of a phantom whose centre lies in its micrograph, as it was drawn.

    Returns
    -------
    Table with image, patch (number of the micrograph), class, x, y, major_px, minor_px, angle_deg, pixel_size_nm
    """
    columns = ["image", "patch", "class", "x", "y", "major_px", "minor_px", "angle_deg", "pixel_size_nm"]
    rows = []
    for number, name in enumerate(files):
        m = truth.micrograph(name)
        for drawn in (a["defect"] for a in m.annotations):
            if 0 <= drawn["x"] < m.width and 0 <= drawn["y"] < m.height:
                shape = (drawn[key] for key in ("x", "y", "major_px", "minor_px", "angle_deg"))
                rows.append((name, number, drawn["code"], *shape, m.pixel_size_nm))
    return pd.DataFrame(rows, columns=columns)


def recovered(labels: Patches, truth: DataSet, stride: int, min_visible: float) -> pd.DataFrame:
    """Errors of what patches say of each class, against the exact defects of the same micrographs.

    Parameters
    ----------
    labels : patches cut from the labelled micrographs
    truth : the same data set with the true defects (``truth.json``)
    stride, min_visible : as `labels` was cut, see `cut_patches`

    Returns
    -------
    One row per source ("truth", "labels") and class: source, class, defects (exact number, centre in a micrograph);
    relative errors of the density (count), of the mean major axis in nm, of the mean aspect and of the mean
    nearest-neighbour distance (of any class, px, longer ones set to S/4); and angle, the Kuiper distance between
    the distributions of angles (0: equal, 1: apart; it does not depend on where angles start). Cut instances are left
    out and the others weighted by `plane_weights`. Undefined (nan) where a class has no defect.
    """
    files = list(labels.index["image"].unique())
    exact = exact_defects(truth, files)
    sides = [(truth.micrograph(name).width, truth.micrograph(name).height) for name in files]
    side, area = min(map(min, sides)), sum(width * height for width, height in sides)
    grid = np.linspace(0, labels.size / 4, NEIGHBOUR_STEPS + 1)[1:]
    reference = _neighbours(exact, side, grid)
    cut, _ = cut_patches(truth, files, labels.size, stride, min_visible)
    rows = []
    for source, patches in zip(SOURCES, (cut, labels), strict=True):
        table = measure(patches)
        table[["major_px", "minor_px"]] += CONTOUR_PX
        weights = plane_weights(table, patches.size)
        neighbours = _neighbours(table, patches.size, grid)
        for code, name in enumerate(truth.classes, start=1):
            true, own = exact[exact["class"] == code], (table["class"] == code).to_numpy()
            values = {key: _means(t, w) for key, t, w in (
                ("true", true, np.ones(len(true))), ("found", table[own], weights[own]))}  # fmt: skip
            # A weight is S^2 over the area in which the instance lies uncut, so weights sum to S^2 times the density.
            density = weights[own].sum() / patches.size**2 / len(patches)
            rows.append({
                "source": source, "class": name, "defects": len(true),
                "count": _error(density, len(true) / area),
                **{what: _error(values["found"][what], values["true"][what]) for what in ("major", "aspect")},
                "angle": _kuiper(true["angle_deg"].to_numpy(), np.ones(len(true)),
                                 table["angle_deg"].to_numpy()[own], weights[own]),
                "neighbour": _error(neighbours.get(code, np.nan), reference.get(code, np.nan)),
            })  # fmt: skip
    return pd.DataFrame(rows)


def _means(table: pd.DataFrame, weights: Floats) -> dict[str, float]:
    if weights.sum() == 0:
        return {"major": np.nan, "aspect": np.nan}
    major = table["major_px"] * table["pixel_size_nm"]
    aspect = table["major_px"] / table["minor_px"]
    return {"major": float(np.average(major, weights=weights)), "aspect": float(np.average(aspect, weights=weights))}


def _neighbours(table: pd.DataFrame, size: int, grid: Floats) -> dict[int, float]:
    """Class -> mean nearest-neighbour distance, longer ones set to the last of `grid` (the integral of 1 - G)."""
    found = nearest_neighbours(table, size)
    means = {}
    for code in sorted(table["class"].unique()):
        own = (table["class"] == code).to_numpy()
        share = nearest_share(found["distance_px"].to_numpy()[own], found["border_px"].to_numpy()[own], grid)
        means[int(code)] = float((1 - share).sum() * (grid[1] - grid[0]))
    return means


def _kuiper(first: Floats, first_weights: Floats, second: Floats, second_weights: Floats) -> float:
    """Largest plus and minus difference of two weighted cumulative distributions of angles in [0, 180)."""
    if first_weights.sum() == 0 or second_weights.sum() == 0:
        return np.nan
    curves = [
        ((angles[:, None] < ANGLES) * weights[:, None]).sum(axis=0) / weights.sum()
        for angles, weights in ((first, first_weights), (second, second_weights))
    ]
    difference = curves[1] - curves[0]
    return float(max(difference.max(), 0) - min(difference.min(), 0))


def _error(found: float, true: float) -> float:
    return found / true - 1 if true > 0 else np.nan

"""Distributions of defects with bands that say how well a few micrographs know them.

Defects of one micrograph share density, size and orientation, so resampling defects would make a band far too narrow:
whole groups (micrographs) are resampled. Bands are pointwise percentiles of the bootstrap (Davison and Hinkley 1997).
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from companion.masks.spatial import Floats, inclusion_weights, nearest_neighbours

RESAMPLES, LEVEL = 500, 0.95
GRID = 61  # points of a curve


def distribution_band(
    values: Floats, groups: NDArray, weights: Floats, grid: Floats, rng: np.random.Generator
) -> pd.DataFrame:
    """Weighted cumulative distribution of `values` [M] with `weights` [M], at `grid` [G].

    Returns
    -------
    Table with value (`grid`), share (of the weight at or below it), low, high; share is undefined without weight.
    """
    codes, names = pd.factorize(groups)
    below = np.zeros((len(names), len(grid) + 1))
    np.add.at(below, (codes, np.searchsorted(grid, values, side="left")), weights)
    cumulative = below.cumsum(axis=1)  # [groups, G + 1]; the last column is the group's weight
    return _ratio(cumulative[:, :-1], np.repeat(cumulative[:, -1:], len(grid), axis=1), grid, rng)


def nearest_band(
    distance: Floats, border: Floats, groups: NDArray, grid: Floats, rng: np.random.Generator
) -> pd.DataFrame:
    """`spatial.nearest_share` of distances [M] and distances to the border [M], at `grid` [G], in one unit.

    Returns
    -------
    Table with value (`grid`), share, low, high; undefined where no instance is so far from the border.
    """
    codes, names = pd.factorize(groups)
    inside = np.asarray(border)[:, None] >= grid  # [M, G]
    near, known = np.zeros((2, len(names), len(grid)))
    np.add.at(near, codes, inside & (np.asarray(distance)[:, None] <= grid))
    np.add.at(known, codes, inside)
    return _ratio(near, known, grid, rng)


def count_band(number: NDArray[np.integer], groups: NDArray, rng: np.random.Generator) -> pd.DataFrame:
    """Share of the patches that hold 0, 1, 2, ... defects, from the `number` [P] of each patch.

    Returns
    -------
    Table with value (0 to the largest number), share, low, high.
    """
    codes, names = pd.factorize(groups)
    grid = np.arange(int(np.max(np.asarray(number), initial=0)) + 1)
    table = np.zeros((len(names), len(grid)))
    np.add.at(table, (codes, np.asarray(number)), 1)
    return _ratio(table, np.repeat(table.sum(axis=1, keepdims=True), len(grid), axis=1), grid, rng)


def by_pixel_size(measured: pd.DataFrame, size: int, rng: np.random.Generator) -> dict[str, dict[str, pd.DataFrame]]:
    """Nearest neighbours in px and in nm, and directions of uncut defects, for every pixel size.

    Parameters
    ----------
    measured : see `statistics.measure`
    size : side of a patch, px; distances are followed to a quarter of it, where a quarter of the area is left

    Returns
    -------
    Label with unit -> "0.88 nm/px" -> table with value, share, low, high (bands over micrographs)
    """
    found = nearest_neighbours(measured, size)
    near, nm, angle = labels = ("nearest defect [px]", "nearest defect [nm]", "angle [°]")
    bands: dict[str, dict[str, pd.DataFrame]] = {label: {} for label in labels}
    farthest = size / 4 * measured["pixel_size_nm"].max()
    uncut = inclusion_weights(measured, size)
    for scale in sorted(measured["pixel_size_nm"].unique()):
        own, name = (measured["pixel_size_nm"] == scale).to_numpy(), f"{scale:g} nm/px"
        groups = measured["image"].to_numpy()[own]
        distance, border = (found[column].to_numpy()[own] for column in ("distance_px", "border_px"))
        grid = np.linspace(0, 1, GRID)
        bands[near][name] = nearest_band(distance, border, groups, grid * size / 4, rng)
        reach = grid[grid * farthest <= size / 4 * scale] * farthest
        bands[nm][name] = nearest_band(distance * scale, border * scale, groups, reach, rng)
        angles = measured["angle_deg"].to_numpy()[own]
        bands[angle][name] = distribution_band(angles, groups, uncut[own], grid * 180, rng)
    return bands


def _ratio(above: Floats, below: Floats, grid: Floats, rng: np.random.Generator) -> pd.DataFrame:
    """Sum over groups of `above` [groups, G] by that of `below` [groups, G], and the same for resampled groups."""
    groups, band = len(above), pd.DataFrame({"value": grid, "share": np.nan, "low": np.nan, "high": np.nan})
    known = below.sum(axis=0) > 0
    if not known.any():
        return band
    chosen = rng.multinomial(groups, np.full(groups, 1 / max(1, groups)), size=RESAMPLES)
    above, below = (np.vstack([part.sum(axis=0), chosen @ part]) for part in (above, below))
    curves = np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)  # a resample may hold nothing
    low, high = np.nanquantile(curves[1:, known], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    band.loc[known, ["share", "low", "high"]] = np.column_stack([curves[0, known], low, high])
    return band

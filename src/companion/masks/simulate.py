"""Masks drawn from the statistics of real ones: the paper's sampler (FACTS 3, mask simulation).

The number of instances of a patch comes from the non-empty real patches, classes from their frequencies,
shapes jointly (major axis, minor axis, angle) from one real instance of the class, centres are uniform, and
an ellipse whose axis-aligned box comes too near to one already drawn is placed anew.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from companion.data.patches import Patches, instance_table
from companion.errors import CompanionError
from companion.geometry import ellipse_radius, symmetry_angle
from companion.masks.statistics import CONTOUR_PX, ELLIPSE_COLUMNS, merge_touching
from companion.params import Masks

DRAWN_COLUMNS = ["patch", "instance", "class", *ELLIPSE_COLUMNS, "forced"]


@dataclass(frozen=True)
class Simulation:
    """Simulated masks and how they were drawn.

    Attributes
    ----------
    patches : masks in the layout of real patches, without images
    drawn : one row per ellipse: patch, instance, class, x, y, major_px, minor_px, angle_deg, and forced
        (placed although it overlapped, because every try had failed); axes are those of the filled region, ids those
        before touching instances merge
    """

    patches: Patches
    drawn: pd.DataFrame

    @property
    def forced(self) -> int:
        """Instances placed in spite of an overlap."""
        return int(self.drawn["forced"].sum())


def simulate(
    statistics: pd.DataFrame,
    counts: pd.DataFrame,
    real: Patches,
    masks: Masks,
    rng: np.random.Generator,
    condition: str,
    rare: bool = False,
) -> Simulation:
    """Draw masks.

    Parameters
    ----------
    statistics, counts : of the real training patches, see `statistics.measure` and `statistics.counts`
    real : the training patches: size, classes, pixel sizes, and the symmetries that training applies to them
    masks : number of masks and the sampler's settings
    rng : where every draw comes from
    condition : what ``index["image"]`` says of every simulated patch
    rare : multiply the frequency of the rarest class by ``masks.rare_class_weight`` (the imbalance trial)

    Raises
    ------
    CompanionError
        When there is nothing to draw from, or `rare` is asked of data with one class.
    """
    share = class_shares(counts, len(real.classes), masks.rare_class_weight if rare else None)
    parents = _parents(counts, masks.n_patches, rng)
    number = counts.groupby("patch")["count"].sum().to_numpy()[parents]
    patch = np.repeat(np.arange(masks.n_patches), number)
    code = rng.choice(len(share), size=len(patch), p=share) + 1
    shape = statistics.iloc[_instances_of_class(statistics["class"].to_numpy(), code, rng)]
    # The paper measures patches that were already turned and mirrored, so an angle brings its own symmetry.
    turn = rng.choice(real.symmetries, size=len(patch))
    angle = np.empty(len(patch))
    for symmetry in real.symmetries:
        angle[turn == symmetry] = symmetry_angle(shape["angle_deg"].to_numpy()[turn == symmetry], symmetry)
    drawn = pd.DataFrame({
        "patch": patch, "instance": _rank(patch) + 1, "class": code, "x": 0.0, "y": 0.0,
        "major_px": shape["major_px"].to_numpy() + CONTOUR_PX, "minor_px": shape["minor_px"].to_numpy() + CONTOUR_PX,
        "angle_deg": angle, "forced": False,
    })  # fmt: skip
    centres, forced = place(drawn, masks.n_patches, real.size, masks.overlap_buffer_px, masks.overlap_tries, rng)
    drawn = drawn.assign(x=centres[:, 0], y=centres[:, 1], forced=forced)[DRAWN_COLUMNS]
    index = pd.DataFrame({
        "patch": np.arange(masks.n_patches), "image": condition, "x0": 0, "y0": 0, "symmetry": 0,
        "pixel_size_nm": real.index["pixel_size_nm"].to_numpy()[parents],
    })  # fmt: skip
    instances = draw_ellipses(drawn, masks.n_patches, real.size)
    table = instance_table(instances, drawn)
    return Simulation(merge_touching(Patches(None, instances, index, table, real.classes)), drawn)


def class_shares(counts: pd.DataFrame, n_classes: int, rare_weight: float | None = None) -> NDArray[np.float64]:
    """Probability of each class, [n_classes], sum 1; the rarest class that occurs multiplied by `rare_weight`."""
    total = counts.groupby("class")["count"].sum().reindex(range(1, n_classes + 1), fill_value=0).to_numpy(float)
    if total.sum() == 0:
        raise CompanionError("no instance in the training patches: there is nothing to simulate masks from")
    if rare_weight is not None:
        if (total > 0).sum() < 2:
            raise CompanionError(
                "masks 'rare' makes the rarest class more frequent, which needs two classes or more; the training "
                f"patches have instances of one class (of {n_classes} declared). Use masks 'plain'."
            )
        total[np.where(total > 0, total, np.inf).argmin()] *= rare_weight
    return total / total.sum()


def place(
    drawn: pd.DataFrame, n_patches: int, size: int, buffer: float, tries: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Uniform centres, redrawn while the box comes within `buffer` px of one placed before in the same patch.

    Boxes are major_px wide and minor_px high whatever the angle, as in the paper. All patches are filled at
    once: first instances, then second ones, and so on, so the draws per patch are those of the plain loop.

    Returns
    -------
    centres : [M, 2] x, y in px, in [0, size)
    forced : [M], True where `tries` draws all overlapped and the last was kept
    """
    patch, rank = drawn["patch"].to_numpy(), drawn["instance"].to_numpy() - 1
    half = drawn[["major_px", "minor_px"]].to_numpy() / 2  # [M, 2]
    centres, forced = np.zeros((len(drawn), 2)), np.zeros(len(drawn), dtype=bool)
    placed = np.full((n_patches, int(rank.max(initial=-1)) + 1, 4), np.nan)  # comparisons with nan are False
    for k in range(placed.shape[1]):
        waiting = np.flatnonzero(rank == k)
        for attempt in range(tries):
            proposal = rng.uniform(0, size, (len(waiting), 2))
            low, high = proposal - half[waiting], proposal + half[waiting]
            before = placed[patch[waiting], :k]  # [n, k, 4]
            near = (low[:, None] < before[..., 2:] + buffer) & (high[:, None] > before[..., :2] - buffer)
            overlaps = near.all(axis=2).any(axis=1)
            settled = ~overlaps | (attempt == tries - 1)
            centres[waiting[settled]] = proposal[settled]
            forced[waiting[settled & overlaps]] = True
            placed[patch[waiting[settled]], k] = np.concatenate([low[settled], high[settled]], axis=1)
            waiting = waiting[~settled]
            if len(waiting) == 0:
                break
    return centres, forced


def draw_ellipses(drawn: pd.DataFrame, n_patches: int, size: int) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Instance maps [n_patches, size, size] of filled ellipses, the later on top; at least the centre's pixel each."""
    dtype = np.uint8 if drawn["instance"].max() <= np.iinfo(np.uint8).max else np.uint16
    instances = np.zeros((n_patches, size, size), dtype=dtype)
    for patch, instance, x, y, *shape in drawn[["patch", "instance", *ELLIPSE_COLUMNS]].itertuples(
        index=False, name=None
    ):
        radius, window = ellipse_radius((size, size), x, y, *shape)
        instances[patch][window][radius <= 1] = instance
        instances[patch, int(y), int(x)] = instance
    return instances


def _parents(counts: pd.DataFrame, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """The real patches, non-empty ones only, that lend their number of instances."""
    per_patch = counts.groupby("patch")["count"].sum()
    return rng.choice(per_patch.index[per_patch > 0].to_numpy(), size=n)


def _instances_of_class(
    classes: NDArray[np.integer], wanted: NDArray[np.integer], rng: np.random.Generator
) -> NDArray[np.int64]:
    """For each wanted class code the row of one real instance of that class."""
    rows = np.empty(len(wanted), dtype=np.int64)
    for code in np.unique(wanted):
        rows[wanted == code] = rng.choice(np.flatnonzero(classes == code), size=int((wanted == code).sum()))
    return rows


def _rank(patch: NDArray[np.integer]) -> NDArray[np.int64]:
    """Position of each row within its patch, from 0; `patch` is sorted."""
    starts = np.flatnonzero(np.diff(patch, prepend=-1))
    return np.arange(len(patch)) - np.repeat(starts, np.diff(np.append(starts, len(patch))))

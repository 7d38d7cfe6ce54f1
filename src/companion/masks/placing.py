"""Places for drawn ellipses: by rejection of overlaps, as in the paper, or by the interaction seen in real patches.

All patches are filled at once, first instances first, then second ones, and so on, so the draws of a patch are
those of a plain loop. An overlap rule and an interaction are functions of (i, j, offset): rows of the ellipses and
the vector [..., 2] in px from the centre of j to that of i.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from companion.masks.spatial import Floats, contact, pairs_within, shape_matrices
from companion.masks.statistics import CONTOUR_PX

Rows = NDArray[np.int64]
Rule = Callable[[Rows, Rows, Floats], NDArray]
CONTACT_EDGES = np.array([0.0, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 6.0, np.inf])
TOUCHING = CONTACT_EDGES[1:] <= 1.0  # bins in which ellipses overlap
# Expected pairs added to the bins of overlaps, so that few data do not invite to them: solid defects seldom overlap.
PRIOR_PAIRS = 3.0
PRIOR_G = np.where(CONTACT_EDGES[1:] <= 0.9, 0.1, 1.0)
FORBIDDEN = 1e-9  # weight of an overlap that no real pair shows: where no place is free, the fewest are made
VISIBILITY_POINTS = 61  # of a sunflower lattice: places of the unit disc at which visibility is tested


@dataclass(frozen=True)
class Window:
    """The square [0, size) and how much of an ellipse must lie in it.

    Attributes
    ----------
    size : px
    min_visible : share of the ellipse's area; None: the centre must lie inside, as in the paper
    margin_px : how far outside the centre of the largest ellipse can lie
    """

    size: int
    min_visible: float | None = None
    margin_px: float = 0.0

    def propose(self, shapes: pd.DataFrame, rng: np.random.Generator) -> Floats:
        """One uniform centre [M, 2] for each ellipse of `shapes` that keeps the window's rule."""
        if self.min_visible is None:
            return rng.uniform(0, self.size, (len(shapes), 2))
        centres = np.empty((len(shapes), 2))
        margin = shapes["major_px"].to_numpy()[:, None] / 2
        waiting = np.arange(len(shapes))
        while len(waiting):
            centres[waiting] = rng.uniform(-margin[waiting], self.size + margin[waiting], (len(waiting), 2))
            waiting = waiting[~self.sees(shapes.iloc[waiting], centres[waiting])]
        return centres

    def anywhere(self, n: int, rng: np.random.Generator) -> Floats:
        """Uniform centres [n, 2] in the window and its margin."""
        return rng.uniform(-self.margin_px, self.size + self.margin_px, (n, 2))

    def sees(self, shapes: pd.DataFrame, centres: Floats) -> NDArray[np.bool_]:
        """Whether `min_visible` of each ellipse's area lies in the window at these centres [M, 2]."""
        t, a, b = (np.deg2rad(shapes["angle_deg"]), shapes["major_px"] / 2, shapes["minor_px"] / 2)
        half = np.stack([np.hypot(a * np.cos(t), b * np.sin(t)), np.hypot(a * np.sin(t), b * np.cos(t))], axis=1)
        seen = ((centres >= half) & (centres <= self.size - half)).all(axis=1)
        part = np.flatnonzero(~seen & ((centres > -half) & (centres < self.size + half)).all(axis=1))
        k = np.arange(VISIBILITY_POINTS) + 0.5
        radius, turn = np.sqrt(k / VISIBILITY_POINTS), k * np.pi * (3 - np.sqrt(5))
        t, a, b = (value.to_numpy()[part, None] for value in (t, a, b))
        u, v = a * radius * np.cos(turn), b * radius * np.sin(turn)
        x, y = centres[part, :1] + u * np.cos(t) + v * np.sin(t), centres[part, 1:] - u * np.sin(t) + v * np.cos(t)
        inside = (x >= 0) & (x < self.size) & (y >= 0) & (y < self.size)
        seen[part] = inside.mean(axis=1) >= self.min_visible
        return seen


def boxes_near(shapes: pd.DataFrame, buffer_px: float) -> Rule:
    """The paper's rule: boxes major_px wide and minor_px high, whatever the angle, come within `buffer_px`."""
    half = shapes[["major_px", "minor_px"]].to_numpy() / 2
    return lambda i, j, offset: (np.abs(offset) < half[i] + half[j] + buffer_px).all(axis=-1)


def ellipses_near(shapes: pd.DataFrame, buffer_px: float) -> Rule:
    """The exact rule: the ellipses, each widened by half of `buffer_px` all around, overlap."""
    matrices = _matrices(shapes, buffer_px)
    return lambda i, j, offset: contact(offset, matrices[i], matrices[j]) < 1


def place_by_rejection(
    shapes: pd.DataFrame, near: Rule, window: Window, tries: int, rng: np.random.Generator
) -> tuple[Floats, NDArray[np.bool_]]:
    """Uniform centres, redrawn while the ellipse is near one placed before in the same patch.

    Parameters
    ----------
    shapes : patch (sorted), instance (1, 2, ... within the patch), major_px, minor_px, angle_deg

    Returns
    -------
    centres : [M, 2] x, y in px
    forced : [M], True where `tries` draws were all near another ellipse and the last was kept
    """
    centres, forced = np.zeros((len(shapes), 2)), np.zeros(len(shapes), dtype=bool)
    for waiting, before in _in_turns(shapes):
        for attempt in range(tries):
            proposal = window.propose(shapes.iloc[waiting], rng)
            offset = proposal[:, None] - centres[before]  # [n, k, 2]
            overlaps = near(waiting[:, None], before, offset).any(axis=1)
            settled = ~overlaps | (attempt == tries - 1)
            centres[waiting[settled]] = proposal[settled]
            forced[waiting[settled & overlaps]] = True
            waiting, before = waiting[~settled], before[~settled]
            if len(waiting) == 0:
                break
    return centres, forced


def place_by_interaction(
    shapes: pd.DataFrame, interaction: Rule, window: Window, candidates: int, tries: int, rng: np.random.Generator
) -> tuple[Floats, NDArray[np.bool_]]:
    """Centres drawn in proportion to the product of the interaction with the ellipses placed before.

    Each is chosen among `candidates` uniform places (sampling-importance-resampling of a pairwise interaction
    process); where all of them are forbidden, `candidates` others are tried, until `tries` places have been.

    Returns
    -------
    centres : [M, 2] x, y in px
    forced : [M], True where every place tried was forbidden and the least bad of the last was kept
    """
    centres, forced = np.zeros((len(shapes), 2)), np.zeros(len(shapes), dtype=bool)
    rounds = max(1, -(-tries // candidates))
    for waiting, before in _in_turns(shapes):
        for attempt in range(rounds):
            repeated = shapes.iloc[np.repeat(waiting, candidates)]
            proposal = window.propose(repeated, rng).reshape(len(waiting), candidates, 2)
            offset = proposal[:, :, None] - centres[before][:, None]  # [n, candidates, k, 2]
            weight = interaction(waiting[:, None, None], before[:, None], offset)
            # Gumbel's trick draws from the weights' distribution without normalising them.
            log_weight = np.log(weight).sum(axis=2)
            chosen = (log_weight + rng.gumbel(size=log_weight.shape)).argmax(axis=1)
            rows = np.arange(len(waiting))
            bad = (weight[rows, chosen] <= FORBIDDEN).any(axis=1)
            centres[waiting] = proposal[rows, chosen]
            forced[waiting] = bad
            waiting, before = waiting[bad], before[bad]
            if len(waiting) == 0 or attempt == rounds - 1:
                break
    return centres, forced


def real_interaction(table: pd.DataFrame, size: int, rng: np.random.Generator, repeats: int = 10) -> pd.DataFrame:
    """Pair correlation of real defects as a function of their `contact` distance.

    The pairs of uncut instances of each patch are compared with the same ellipses at independent uniform places
    (`repeats` times) where they are uncut too.

    Returns
    -------
    Table with low, high (contact distance, 1: the ellipses touch), pairs, expected and g.

    Notes
    -----
    g is pairs / expected where there are many. Overlaps closer than any that a real pair shows are `FORBIDDEN`;
    other overlaps are shrunk towards `PRIOR_G`, and never favoured. Apart from each other, defects are independent
    unless the data say otherwise: g is shrunk towards 1 by an empirical Bayes weight, the variance of g between bins
    beyond that of Poisson counts (moment estimator of DerSimonian and Laird 1986). A sampler that follows the noise
    of g is farther from real masks than one that does not know it.
    """
    whole = table[~table["touches_border"]]
    i, j = pairs_within(whole["patch"].to_numpy())
    # The axes of the filled regions, as those of the ellipses that are placed.
    matrices, centre = _matrices(whole, CONTOUR_PX), whole[["x", "y"]].to_numpy()
    half = np.minimum(np.sqrt(matrices[:, :2]), size / 2)  # a box's half sides are the roots of xx and yy
    observed = np.histogram(contact(centre[i] - centre[j], matrices[i], matrices[j]), CONTACT_EDGES)[0]
    expected = np.zeros(len(observed))
    for _ in range(repeats):
        free = half + rng.uniform(size=half.shape) * (size - 2 * half)
        expected += np.histogram(contact(free[i] - free[j], matrices[i], matrices[j]), CONTACT_EDGES)[0] / repeats
    g = np.where(TOUCHING, (observed + PRIOR_PAIRS * PRIOR_G) / (expected + PRIOR_PAIRS), 1.0)
    # Of two that overlap the lower one is measured from what is visible, which ends where the upper one begins:
    # overlaps pile up just short of contact, and more of them than at independent places are no attraction.
    g = np.minimum(g, 1.0)
    g[TOUCHING & (np.cumsum(observed) == 0)] = FORBIDDEN
    apart = ~TOUCHING & (expected > 0)
    o, e = observed[apart], expected[apart]
    excess = ((o - e) ** 2 / e).sum() - len(e)
    if excess > 0:
        prior = e.sum() / excess  # expected pairs that weigh as much as the prior: 1 / variance of g
        g[apart] = (o + prior) / (e + prior)
    return pd.DataFrame({"low": CONTACT_EDGES[:-1], "high": CONTACT_EDGES[1:], "pairs": observed, "expected": expected,
                         "g": g})  # fmt: skip


def interaction_of(shapes: pd.DataFrame, measured: pd.DataFrame) -> Rule:
    """The interaction that `real_interaction` measured, for the ellipses of `shapes`."""
    matrices, g = _matrices(shapes, 0.0), measured["g"].to_numpy()
    inner = CONTACT_EDGES[1:-1]
    return lambda i, j, offset: g[np.searchsorted(inner, contact(offset, matrices[i], matrices[j]), side="right")]


def _matrices(shapes: pd.DataFrame, buffer_px: float) -> Floats:
    axes = shapes[["major_px", "minor_px"]].to_numpy() + buffer_px
    return shape_matrices(axes[:, 0], axes[:, 1], shapes["angle_deg"].to_numpy())


def _in_turns(shapes: pd.DataFrame) -> list[tuple[Rows, Rows]]:
    """For k = 0, 1, ...: rows [n] of the k-th instances, and rows [n, k] of those before them in their patches."""
    rank = shapes["instance"].to_numpy() - 1
    turns = [np.flatnonzero(rank == k) for k in range(int(rank.max(initial=-1)) + 1)]
    return [(rows, rows[:, None] - np.arange(k, 0, -1)[None, :]) for k, rows in enumerate(turns)]

"""Masks drawn from the statistics of real ones.

`authors` is the paper's sampler (FACTS 3, mask simulation): the number of instances of a patch comes from the
non-empty real patches, classes from their frequencies, shapes jointly (major axis, minor axis, angle) from one real
instance of the class, centres are uniform, and an ellipse whose axis-aligned box comes too near to one already drawn
is placed anew (sequential placement). Each of its simplifications can be put right alone (`REPAIRS`); `companion` puts
all of them right; `learned` replaces the tables by a small generative model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import brentq

from companion.config.sections import Masks, Repair
from companion.errors import CompanionError
from companion.geometry import symmetry_angle
from companion.masks.outlines import draw_instances
from companion.masks.spatial import Floats, box_sides, contact, find_crystals, inclusion_weights, shape_matrices
from companion.masks.statistics import CONTOUR_PX, ELLIPSE_COLUMNS, merge_touching
from companion.micrographs.patches import Patches, instance_table

Rows = NDArray[np.int64]
Near = Callable[[Rows, Rows, Floats], NDArray[np.bool_]]
REPAIRS: tuple[Repair, ...] = get_args(Repair)
DRAWN_COLUMNS = ["patch", "instance", "class", *ELLIPSE_COLUMNS, "forced", "source"]


@dataclass(frozen=True)
class Simulation:
    """Simulated masks and how they were drawn.

    Attributes
    ----------
    patches : masks in the layout of real patches, without images
    drawn : one row per ellipse: patch, instance, class, x, y, major_px, minor_px, angle_deg, forced (placed although
        it overlapped, because every try had failed) and source (row of the real instance in the statistics, -1 for
        none); axes are those of the filled region, ids those before touching instances merge
    origin : for every mask the micrograph of the real patch that lent it its number of defects or its pixel size
    """

    patches: Patches
    drawn: pd.DataFrame
    origin: NDArray


def simulate(
    statistics: pd.DataFrame, counts: pd.DataFrame, real: Patches, settings: Masks, rng: np.random.Generator,
    image: str, rare_weight: float = 1.0, min_visible: float = 0.25,
) -> Simulation:  # fmt: skip
    """Draw masks.

    Parameters
    ----------
    statistics, counts : of the real training patches, see `statistics.measure` and `statistics.counts`
    real : the training patches: size, classes, pixel sizes, and the symmetries that training applies to them
    settings : which sampler, and its numbers
    rng : where every draw comes from
    image : what ``index["image"]`` says of every simulated patch
    rare_weight : factor on the frequency of the rarest class (the imbalance trial)
    min_visible : share of a defect that must lie in a patch to be labelled, as the real patches were cut

    Raises
    ------
    CompanionError
        When there is nothing to draw from, or a rarest class is asked of data with one class or of sampler 'learned'.
    """
    share = class_shares(counts, len(real.classes))
    wanted = class_shares(counts, len(real.classes), rare_weight)
    if settings.sampler == "learned":
        from companion.masks.learned import draw_learned

        if rare_weight != 1:
            raise CompanionError("masks 'rare': sampler 'learned' cannot weigh classes; use 'authors' or 'companion'")
        parents, drawn = draw_learned(statistics, real, settings, rng)
    else:
        sampler = _Sampler(statistics, counts, real, settings, min_visible, rng)
        parents = sampler.parents(settings.n_patches)
        drawn = sampler.place(sampler.shapes(parents, share, wanted))
    index = pd.DataFrame({
        "patch": np.arange(settings.n_patches), "image": image, "x0": 0, "y0": 0, "symmetry": 0,
        "pixel_size_nm": real.index["pixel_size_nm"].to_numpy()[parents],
    })  # fmt: skip
    traced = (real, statistics) if settings.outlines == "instance" else ()
    instances = draw_instances(drawn, settings.n_patches, real.size, *traced)
    patches = Patches(None, instances, index, instance_table(instances, drawn), real.classes)
    if settings.sampler == "authors" and "merging" not in settings.repairs:
        patches = merge_touching(patches)
    return Simulation(patches, drawn[DRAWN_COLUMNS], real.index["image"].to_numpy()[parents])


def variants(settings: Masks) -> dict[str, Masks]:
    """The samplers that are compared: the paper's, it with one repair each, and those of ``settings.compare``.

    Returns
    -------
    Name -> settings; "authors", "+ <repair>", "companion", "companion, real outlines", "learned".
    """
    plain = settings.model_copy(update={"sampler": "authors", "repairs": [], "outlines": "ellipse"})
    found = {"authors": plain, **{f"+ {repair}": plain.model_copy(update={"repairs": [repair]}) for repair in REPAIRS}}
    for name in settings.compare:
        found[name] = plain.model_copy(update={"sampler": name})
    if "companion" in settings.compare:
        found["companion, real outlines"] = found["companion"].model_copy(update={"outlines": "instance"})
    return found


def class_shares(counts: pd.DataFrame, n_classes: int, rare_weight: float = 1.0) -> Floats:
    """Probability of each class, [n_classes], sum 1; the rarest class that occurs multiplied by `rare_weight`."""
    total = counts.groupby("class")["count"].sum().reindex(range(1, n_classes + 1), fill_value=0).to_numpy(float)
    if total.sum() == 0:
        raise CompanionError("no instance in the training patches: there is nothing to simulate masks from")
    if rare_weight != 1:
        if (total > 0).sum() < 2:
            raise CompanionError(
                "masks 'rare' makes the rarest class more frequent, which needs two classes or more; the training "
                f"patches have instances of one class (of {n_classes} declared). Use masks 'plain'."
            )
        total[np.where(total > 0, total, np.inf).argmin()] *= rare_weight
    return total / total.sum()


class _Sampler:
    """Real patches as a source of simulated ones, with the repairs that the settings name."""

    def __init__(
        self, statistics: pd.DataFrame, counts: pd.DataFrame, real: Patches, settings: Masks, min_visible: float,
        rng: np.random.Generator,
    ) -> None:  # fmt: skip
        self.statistics, self.real, self.settings, self.rng = statistics, real, settings, rng
        self.repairs = frozenset(REPAIRS if settings.sampler == "companion" else settings.repairs)
        self.composition = counts.pivot(index="patch", columns="class", values="count").to_numpy()  # [P, C]
        self.azimuth = find_crystals(statistics, settings.crystal_fold)["azimuth_deg"]
        # Pixel sizes as codes; pooled, as in the paper, they are all one.
        sizes = real.index["pixel_size_nm"].round(6) if "magnification" in self.repairs else real.index["patch"] * 0
        self.magnification = pd.factorize(sizes)[0]  # [P]
        # How far outside the patch a centre may lie, in half boxes: None keeps it inside, as the paper does.
        self.reach = _reach(min_visible) if "borders" in self.repairs else None
        self.weights = np.ones(len(statistics))
        if self.reach is not None:  # as often as it lies uncut in a patch, times the places where a patch shows it
            self.weights = inclusion_weights(statistics, real.size) * self._room(statistics).prod(axis=1)

    def parents(self, n: int) -> Rows:
        """The real patches [n] that lend their number of instances; the paper leaves empty ones out."""
        eligible = np.arange(len(self.composition))
        if "empty-patches" not in self.repairs:
            eligible = eligible[self.composition.sum(axis=1) > 0]
        return self.rng.choice(eligible, size=n)

    def shapes(self, parents: Rows, share: Floats, wanted: Floats) -> pd.DataFrame:
        """Classes and ellipses for every mask, not yet placed; in each mask in random order."""
        number = self.composition[parents].sum(axis=1)
        patch = np.repeat(np.arange(len(parents)), number)
        group = self.magnification[parents][patch]
        code = self._classes(parents, patch, group)
        # Turning a share q of the others into the rarest class raises its share from p to p + (1 - p) q.
        rarest = int((wanted - share).argmax())
        if wanted[rarest] > share[rarest]:
            q = (wanted[rarest] - share[rarest]) / (1 - share[rarest])
            code[self.rng.random(len(code)) < q] = rarest + 1
        rows = self._rows(code, group)
        first = np.repeat(np.cumsum(number) - number, number)
        return self._ellipses(rows, patch, parents).assign(**{
            "class": code, "instance": np.arange(len(patch)) - first + 1, "source": rows,
        })  # fmt: skip

    def place(self, shapes: pd.DataFrame) -> pd.DataFrame:
        """Sequential placement: uniform centres, redrawn while the ellipse is near one placed before in its patch.

        All patches are filled at once, first instances first, then second ones, and so on, so the draws of a patch
        are those of a plain loop. Adds x, y and forced (every try was near another; the last was kept).
        """
        near = (ellipses_near if "overlap" in self.repairs else boxes_near)(shapes, self.settings.overlap_buffer_px)
        room, rank = self._room(shapes), shapes["instance"].to_numpy() - 1
        centres, forced = np.zeros((len(shapes), 2)), np.zeros(len(shapes), dtype=bool)
        for k in range(int(rank.max(initial=-1)) + 1):
            waiting = np.flatnonzero(rank == k)  # [n]
            for attempt in range(self.settings.overlap_tries):
                before = waiting[:, None] - np.arange(k, 0, -1)  # [n, k]
                proposal = self.real.size / 2 + room[waiting] * self.rng.uniform(-0.5, 0.5, (len(waiting), 2))
                overlaps = near(waiting[:, None], before, proposal[:, None] - centres[before]).any(axis=1)
                settled = ~overlaps | (attempt == self.settings.overlap_tries - 1)
                centres[waiting[settled]] = proposal[settled]
                forced[waiting[settled & overlaps]] = True
                waiting = waiting[~settled]
                if len(waiting) == 0:
                    break
        return shapes.assign(x=centres[:, 0], y=centres[:, 1], forced=forced)

    def _room(self, shapes: pd.DataFrame) -> Floats:
        """Width and height [M, 2] of the rectangle around the patch's middle in which centres are drawn, px."""
        sides = 0.0 if self.reach is None else self.reach * (box_sides(shapes) + CONTOUR_PX)
        return np.maximum(1.0, self.real.size + np.broadcast_to(sides, (len(shapes), 2)))

    def _classes(self, parents: Rows, patch: Rows, group: Rows) -> Rows:
        classes = np.arange(1, self.composition.shape[1] + 1)
        if "composition" in self.repairs:
            code = np.repeat(np.tile(classes, len(parents)), self.composition[parents].ravel())
            return code[np.lexsort([self.rng.random(len(code)), patch])]
        code = np.empty(len(patch), dtype=np.int64)
        for g in np.unique(group):
            total = self.composition[self.magnification == g].sum(axis=0)
            code[group == g] = self.rng.choice(classes, size=int((group == g).sum()), p=total / total.sum())
        return code

    def _rows(self, code: Rows, group: Rows) -> Rows:
        """For each wanted instance the row of a real one of its class, and of its magnification where there is one."""
        rows = np.empty(len(code), dtype=np.int64)
        classes, groups = self.statistics["class"].to_numpy(), self.magnification[self.statistics["patch"].to_numpy()]
        for c, g in {*zip(code.tolist(), group.tolist(), strict=True)}:
            # Small weights: another magnification, and instances that a border cuts, where there is nothing else.
            weight = (classes == c) * np.where(groups == g, 1.0, 1e-6) * (self.weights + 1e-9)
            here = (code == c) & (group == g)
            rows[here] = self.rng.choice(len(weight), size=int(here.sum()), p=weight / weight.sum())
        return rows

    def _ellipses(self, rows: Rows, patch: Rows, parents: Rows) -> pd.DataFrame:
        """The ellipses of real instances, turned into their masks and brought to their magnification."""
        real, shape = self.real, self.statistics.iloc[rows]
        angle, scale = shape["angle_deg"].to_numpy(), 1.0
        if "azimuth" in self.repairs:  # one azimuth and one symmetry per mask
            azimuth = azimuths(real.index["image"].iloc[parents], self.azimuth, self.settings.crystal_fold, self.rng)
            angle = angle - shape["image"].map(self.azimuth).to_numpy() + azimuth[patch]
            symmetry = self.rng.choice(real.symmetries, size=len(parents))[patch]
        else:  # the paper measures patches that were already turned and mirrored: an angle brings its own symmetry
            symmetry = self.rng.choice(real.symmetries, size=len(patch))
        if "magnification" in self.repairs:
            scale = shape["pixel_size_nm"].to_numpy() / real.index["pixel_size_nm"].to_numpy()[parents][patch]
        return pd.DataFrame({
            "patch": patch, "major_px": (shape["major_px"].to_numpy() + CONTOUR_PX) * scale,
            "minor_px": (shape["minor_px"].to_numpy() + CONTOUR_PX) * scale, "angle_deg": turned(angle, symmetry),
        })  # fmt: skip


def azimuths(images: pd.Series, known: pd.Series, fold: int, rng: np.random.Generator) -> Floats:
    """Crystal azimuths [n] in degrees of micrographs [n]; uniform where a micrograph has no instance."""
    found = np.array(images.map(known), dtype=float)
    return np.where(np.isnan(found), rng.uniform(0, 360 / fold, len(found)), found)


def turned(angle_deg: Floats, symmetry: Rows) -> Floats:
    """Angles [M], in [0, 180), after the symmetry of the square of each [M]."""
    found = np.empty(len(angle_deg))
    for code in np.unique(symmetry):
        found[symmetry == code] = symmetry_angle(angle_deg[symmetry == code], int(code))
    return found


def boxes_near(shapes: pd.DataFrame, buffer_px: float) -> Near:
    """The paper's test: boxes major_px wide and minor_px high, whatever the angle, come within `buffer_px`.

    Returns
    -------
    Function of rows i and j of `shapes` and the vector [..., 2] from the centre of j to that of i, px -> bool [...]
    """
    half = shapes[["major_px", "minor_px"]].to_numpy() / 2
    return lambda i, j, offset: (np.abs(offset) < half[i] + half[j] + buffer_px).all(axis=-1)


def ellipses_near(shapes: pd.DataFrame, buffer_px: float) -> Near:
    """The exact test, as `boxes_near`: the ellipses, each widened by half of `buffer_px` all around, overlap."""
    major, minor, angle = shapes[["major_px", "minor_px", "angle_deg"]].to_numpy().T
    matrices = shape_matrices(major + buffer_px, minor + buffer_px, angle)
    return lambda i, j, offset: contact(offset, matrices[i], matrices[j]) < 1


def _reach(min_visible: float) -> float:
    """How far beyond a straight border the centre of an ellipse may lie, in half widths, for this share to be seen.

    A line at c half widths from the centre cuts the share (arccos c - c sqrt(1 - c^2)) / pi off a disc, and so off an
    ellipse. At a corner less is seen; those places are few.
    """
    return float(brentq(lambda c: (np.arccos(c) - c * np.sqrt(1 - c * c)) / np.pi - min_visible, -1, 1))

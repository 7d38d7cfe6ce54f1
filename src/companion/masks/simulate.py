"""Masks drawn from the statistics of real ones.

`authors` is the paper's sampler (FACTS 3, mask simulation): the number of instances of a patch comes from the
non-empty real patches, classes from their frequencies, shapes jointly (major axis, minor axis, angle) from one real
instance of the class, centres are uniform, and an ellipse whose axis-aligned box comes too near to one already drawn
is placed anew. Each of its simplifications can be put right alone (`REPAIRS`); `companion` puts all of them right;
`learned` replaces the tables by a small generative model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from companion.micrographs.patches import Patches
from companion.errors import CompanionError
from companion.geometry import symmetry_angle
from companion.masks import placing
from companion.masks.outlines import draw_ellipses, draw_instances, visible_table
from companion.masks.spatial import find_crystals, inclusion_weights
from companion.masks.statistics import CONTOUR_PX, ELLIPSE_COLUMNS, merge_touching
from companion.config.profile import Masks, Repair

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
    min_visible: float = 0.25,
) -> Simulation:
    """Draw masks.

    Parameters
    ----------
    statistics, counts : of the real training patches, see `statistics.measure` and `statistics.counts`
    real : the training patches: size, classes, pixel sizes, and the symmetries that training applies to them
    masks : which sampler, and its settings
    rng : where every draw comes from
    condition : what ``index["image"]`` says of every simulated patch
    rare : multiply the frequency of the rarest class by ``masks.rare_class_weight`` (the imbalance trial)
    min_visible : share of a defect that must lie in a patch to be labelled, as the real patches were cut

    Raises
    ------
    CompanionError
        When there is nothing to draw from, or `rare` is asked of data with one class.
    """
    share = class_shares(counts, len(real.classes))
    wanted = class_shares(counts, len(real.classes), masks.rare_class_weight if rare else None)
    if masks.sampler == "learned":
        from companion.masks.learned import draw_learned

        parents, drawn = draw_learned(statistics, real, masks, rng)
    else:
        source = _Source(statistics, counts, real, masks, rng, min_visible)
        parents = source.parents(masks.n_patches)
        drawn = source.shapes(parents, share, wanted)
        drawn = source.places(drawn)
    index = pd.DataFrame({
        "patch": np.arange(masks.n_patches), "image": condition, "x0": 0, "y0": 0, "symmetry": 0,
        "pixel_size_nm": real.index["pixel_size_nm"].to_numpy()[parents],
    })  # fmt: skip
    draw = draw_ellipses if masks.outlines == "ellipse" else draw_instances(real, statistics)
    instances, windows = draw(drawn, masks.n_patches, real.size)
    simulated = Patches(None, instances, index, visible_table(instances, windows, drawn), real.classes)
    merges = masks.sampler == "authors" and "merging" not in masks.repairs
    origin = real.index["image"].to_numpy()[parents]
    merged = merge_touching(simulated, out=instances) if merges else simulated
    return Simulation(merged, drawn[DRAWN_COLUMNS], origin)


def variants(masks: Masks) -> dict[str, Masks]:
    """The samplers that are judged side by side: the paper's, it with one repair each, and those of ``masks.compare``.

    Returns
    -------
    Name -> settings; "authors", "+ <repair>", "companion", "companion, real outlines", "learned".
    """
    plain = masks.model_copy(update={"sampler": "authors", "repairs": [], "outlines": "ellipse"})
    found = {"authors": plain, **{f"+ {repair}": plain.model_copy(update={"repairs": [repair]}) for repair in REPAIRS}}
    for name in masks.compare:
        found[name] = plain.model_copy(update={"sampler": name})
    if "companion" in masks.compare:
        found["companion, real outlines"] = found["companion"].model_copy(update={"outlines": "instance"})
    return found


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


class _Source:
    """Real patches as a source of simulated ones, with the repairs that the settings name."""

    def __init__(
        self, statistics: pd.DataFrame, counts: pd.DataFrame, real: Patches, masks: Masks, rng: np.random.Generator,
        min_visible: float,
    ) -> None:  # fmt: skip
        self.statistics, self.real, self.masks, self.rng = statistics, real, masks, rng
        self.repairs = frozenset(REPAIRS if masks.sampler == "companion" else masks.repairs)
        table = counts.pivot(index="patch", columns="class", values="count").sort_index()
        self.composition = table.to_numpy()  # [P, C]
        borders = "borders" in self.repairs
        margin = statistics["major_px"].max() / 2 + CONTOUR_PX
        self.window = placing.Window(real.size, min_visible, margin) if borders else placing.Window(real.size)
        self.weights = inclusion_weights(statistics, real.size) if borders else np.ones(len(statistics))
        self.crystal = find_crystals(statistics, masks.crystal_fold)
        # Pixel sizes as codes; pooled, as in the paper, they are all one.
        sizes = real.index["pixel_size_nm"].round(6) if "magnification" in self.repairs else real.index["patch"] * 0
        self.magnification = pd.factorize(sizes)[0]  # [P]

    def parents(self, n: int) -> NDArray[np.int64]:
        """The real patches [n] that lend their number of instances; the paper leaves empty ones out."""
        eligible = np.arange(len(self.composition))
        if "empty-patches" not in self.repairs:
            eligible = eligible[self.composition.sum(axis=1) > 0]
        return self.rng.choice(eligible, size=n)

    def shapes(self, parents: NDArray[np.int64], share: NDArray, wanted: NDArray) -> pd.DataFrame:
        """Classes and ellipses for every mask, not yet placed; in each mask in random order."""
        number = self.composition[parents].sum(axis=1)
        patch = np.repeat(np.arange(len(parents)), number)
        group = self.magnification[parents][patch]
        code = self._classes(parents, patch, group, share, wanted)
        turn = self._turns(parents, patch)
        rows = self._rows(code, group)
        shapes = self._ellipses(rows, patch, parents, turn)
        if self.window.min_visible is not None:
            # Large defects reach into the window from farther away: shape and place are accepted together.
            waiting = np.arange(len(rows))
            while len(waiting):
                centres = self.window.anywhere(len(waiting), self.rng)
                waiting = waiting[~self.window.sees(shapes.iloc[waiting], centres)]
                rows[waiting] = self._rows(code[waiting], group[waiting])
                shapes = self._ellipses(rows, patch, parents, turn)
        return shapes.assign(**{"class": code, "instance": _rank(patch) + 1, "source": rows})

    def places(self, shapes: pd.DataFrame) -> pd.DataFrame:
        """The same with x, y and forced."""
        buffer, tries = self.masks.overlap_buffer_px, self.masks.overlap_tries
        if "positions" in self.repairs:
            measured = placing.real_interaction(self.statistics, self.real.size, self.rng)
            rule = placing.interaction_of(shapes, measured)
            among = self.masks.candidates
            centres, forced = placing.place_by_interaction(shapes, rule, self.window, among, tries, self.rng)
        else:
            near = placing.ellipses_near if "overlap" in self.repairs else placing.boxes_near
            rule = near(shapes, buffer)
            centres, forced = placing.place_by_rejection(shapes, rule, self.window, tries, self.rng)
        return shapes.assign(x=centres[:, 0], y=centres[:, 1], forced=forced)

    def _classes(
        self, parents: NDArray, patch: NDArray, group: NDArray, share: NDArray, wanted: NDArray
    ) -> NDArray[np.int64]:
        classes = np.arange(1, len(share) + 1)
        if "composition" in self.repairs:
            code = np.repeat(np.tile(classes, len(parents)), self.composition[parents].ravel())
            code = code[np.lexsort([self.rng.random(len(code)), patch])]
        else:
            code = np.empty(len(patch), dtype=np.int64)
            for g in np.unique(group):
                total = self.composition[self.magnification == g].sum(axis=0)
                code[group == g] = self.rng.choice(classes, size=int((group == g).sum()), p=total / total.sum())
        # Turning a share q of the others into the rarest class raises its share from p to p + (1 - p) q.
        rarest = int((wanted - share).argmax())
        if wanted[rarest] > share[rarest]:
            q = (wanted[rarest] - share[rarest]) / (1 - share[rarest])
            code[(code != rarest + 1) & (self.rng.random(len(code)) < q)] = rarest + 1
        return code

    def _rows(self, code: NDArray[np.integer], group: NDArray[np.integer]) -> NDArray[np.int64]:
        """For each wanted instance the row of a real one of its class, and of its magnification where there is one."""
        rows = np.empty(len(code), dtype=np.int64)
        classes = self.statistics["class"].to_numpy()
        groups = self.magnification[self.statistics["patch"].to_numpy()]
        for c, g in {*zip(code.tolist(), group.tolist(), strict=True)}:
            weight = self.weights * (classes == c)
            if (weight * (groups == g)).any():
                weight = weight * (groups == g)
            elif not weight.any():  # every instance of the class is cut by a border
                weight = (classes == c).astype(float)
            here = (code == c) & (group == g)
            rows[here] = self.rng.choice(len(weight), size=int(here.sum()), p=weight / weight.sum())
        return rows

    def _turns(self, parents: NDArray[np.int64], patch: NDArray[np.int64]) -> pd.DataFrame:
        """For every instance the azimuth of its mask's crystal, in degrees, and the symmetry applied to it."""
        # The paper measures patches that were already turned and mirrored, so an angle brings its own symmetry.
        if "azimuth" not in self.repairs:
            return pd.DataFrame({"azimuth": 0.0, "symmetry": self.rng.choice(self.real.symmetries, size=len(patch))})
        azimuth = np.array(self.real.index["image"].iloc[parents].map(self.crystal.azimuth_deg), dtype=float)  # [masks]
        unknown = np.isnan(azimuth)  # no instance in the whole micrograph
        azimuth[unknown] = self.rng.uniform(0, 360 / self.crystal.fold, int(unknown.sum()))
        symmetry = self.rng.choice(self.real.symmetries, size=len(parents))
        return pd.DataFrame({"azimuth": azimuth[patch], "symmetry": symmetry[patch]})

    def _ellipses(self, rows: NDArray, patch: NDArray, parents: NDArray, turns: pd.DataFrame) -> pd.DataFrame:
        """The ellipses of real instances, turned into their masks and brought to their magnification."""
        shape = self.statistics.iloc[rows]
        angle = shape["angle_deg"].to_numpy() + turns["azimuth"].to_numpy()
        if "azimuth" in self.repairs:
            angle = angle - shape["image"].map(self.crystal.azimuth_deg).to_numpy()
        turned = np.empty(len(rows))
        for symmetry in self.real.symmetries:
            some = turns["symmetry"].to_numpy() == symmetry
            turned[some] = symmetry_angle(angle[some], symmetry) % 180
        scale = 1.0
        if "magnification" in self.repairs:
            own = self.real.index["pixel_size_nm"].to_numpy()[parents][patch]
            scale = shape["pixel_size_nm"].to_numpy() / own
        return pd.DataFrame({
            "patch": patch, "major_px": (shape["major_px"].to_numpy() + CONTOUR_PX) * scale,
            "minor_px": (shape["minor_px"].to_numpy() + CONTOUR_PX) * scale, "angle_deg": turned,
        })  # fmt: skip


def _rank(patch: NDArray[np.integer]) -> NDArray[np.int64]:
    """Position of each row within its patch, from 0; `patch` is sorted."""
    starts = np.flatnonzero(np.diff(patch, prepend=-1))
    return np.arange(len(patch)) - np.repeat(starts, np.diff(np.append(starts, len(patch))))

"""Masks drawn from the statistics of labelled ones.

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

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import brentq

from companion.config.sections import Masks, Repair
from companion.errors import CompanionError
from companion.geometry import ellipse_radius, symmetry_angle
from companion.masks.spatial import Floats, box_sides, find_crystals, inclusion_weights
from companion.masks.statistics import CONTOUR_PX, ELLIPSE_COLUMNS, merge_touching
from companion.micrographs.patches import Patches, instance_table

Rows = NDArray[np.int64]
Near = Callable[[Rows, Rows, Floats], NDArray[np.bool_]]  # of rows i, j and the vector [..., 2] from j to i, px
REPAIRS: tuple[Repair, ...] = get_args(Repair)
OUTLINE_POINTS = 24  # of ellipses tested for overlap; what lies between them reaches 1 % of an axis deep
DRAWN_COLUMNS = ["patch", "instance", "class", *ELLIPSE_COLUMNS, "forced", "source"]


@dataclass(frozen=True)
class Simulation:
    """Simulated masks and how they were drawn.

    `drawn` has a row per ellipse with `DRAWN_COLUMNS`: forced (placed although every try overlapped), source (row of
    the real instance in the statistics, -1 for none); axes are those of the filled region, ids those before merging.
    """

    patches: Patches  # in the layout of real patches, without images
    drawn: pd.DataFrame
    origin: NDArray  # [P] micrograph of the real patch that lent a mask its number of defects or its pixel size


def simulate(
    statistics: pd.DataFrame, counts: pd.DataFrame, real: Patches, settings: Masks, rng: np.random.Generator,
    image: str, rare_weight: float = 1.0, min_visible: float = 0.25,
) -> Simulation:  # fmt: skip
    """Draw masks.

    Parameters
    ----------
    statistics, counts : of the training patches `real`, see `statistics.measure` and `statistics.counts`
    image : what ``index["image"]`` says of every simulated patch
    rare_weight : factor on the frequency of the rarest class (the imbalance trial)
    min_visible : share of a defect that must lie in a patch to be labelled, as the real patches were cut
    """
    shares = [class_shares(counts, len(real.classes), weight) for weight in (1.0, rare_weight)]
    if settings.sampler == "learned":
        if rare_weight != 1:
            raise CompanionError("masks 'rare': sampler 'learned' cannot weigh classes; use 'authors' or 'companion'")
        from companion.masks.learned import draw_learned

        parents, drawn = draw_learned(statistics, real, settings, rng)
    else:
        parents, drawn = _draw_from_tables(statistics, counts, real, settings, *shares, min_visible, rng)
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
    """Settings of the samplers that are compared, by name: the paper's, it with one repair each, and others."""
    changes = {"authors": {}, **{f"+ {repair}": {"repairs": [repair]} for repair in REPAIRS}}
    changes |= {name: {"sampler": name} for name in settings.compare}
    if "companion" in settings.compare:
        changes["companion, labelled outlines"] = {"sampler": "companion", "outlines": "instance"}
    plain = {"sampler": "authors", "repairs": [], "outlines": "ellipse"}
    return {name: settings.model_copy(update=plain | change) for name, change in changes.items()}


def class_shares(counts: pd.DataFrame, n_classes: int, rare_weight: float = 1.0) -> Floats:
    """Probability of each class, [n_classes], sum 1; the rarest class that occurs multiplied by `rare_weight`."""
    total = counts.groupby("class")["count"].sum().reindex(range(1, n_classes + 1), fill_value=0).to_numpy(float)
    if total.sum() == 0:
        raise CompanionError("no instance in the training patches: there is nothing to simulate masks from")
    if rare_weight != 1 and (total > 0).sum() < 2:
        raise CompanionError("masks 'rare' needs two classes or more, and the training patches have one; use 'plain'")
    total[np.where(total > 0, total, np.inf).argmin()] *= rare_weight
    return total / total.sum()


def _draw_from_tables(
    statistics: pd.DataFrame, counts: pd.DataFrame, real: Patches, settings: Masks, share: Floats, wanted: Floats,
    min_visible: float, rng: np.random.Generator,
) -> tuple[Rows, pd.DataFrame]:  # fmt: skip
    """Parents [n] and `Simulation.drawn` of the paper's sampler, with the repairs that the settings name."""
    repairs = frozenset(REPAIRS if settings.sampler == "companion" else settings.repairs)
    composition = counts.pivot(index="patch", columns="class", values="count").to_numpy()  # [P, C]
    # Number: that of a real patch, the mask's parent; the paper leaves empty ones out.
    number = composition.sum(axis=1)
    parents = rng.choice(np.flatnonzero((number > 0) | ("empty-patches" in repairs)), settings.n_patches)
    patch = np.repeat(np.arange(len(parents)), number[parents])  # [M], of every defect
    first = np.repeat(np.cumsum(number[parents]) - number[parents], number[parents])
    # Classes: by frequency, of all patches or of the parent's pixel size; or those of the parent.
    size_nm = real.index["pixel_size_nm"].to_numpy()
    magnification = pd.factorize(size_nm.round(6))[0] if "magnification" in repairs else np.zeros(len(real), np.int64)
    group = magnification[parents][patch]
    if "composition" in repairs:
        code = np.repeat(np.tile(np.arange(1, len(share) + 1), len(parents)), composition[parents].ravel())
        code = code[np.lexsort([rng.random(len(code)), patch])]
    else:
        frequency = np.array([composition[magnification == g].sum(axis=0) for g in range(magnification.max() + 1)])
        cumulative = (frequency / np.maximum(1, frequency.sum(axis=1, keepdims=True))).cumsum(axis=1)
        code = 1 + (rng.random((len(patch), 1)) >= cumulative[group, :-1]).sum(axis=1)
    # Turning a share q of the others into the rarest class raises its share from p to p + (1 - p) q.
    rarest = int((wanted - share).argmax())
    if wanted[rarest] > share[rarest]:
        code[rng.random(len(code)) < (wanted[rarest] - share[rarest]) / (1 - share[rarest])] = rarest + 1
    # Shapes: of real defects; how often one lies uncut in a patch, and where a patch shows it, make up for the border.
    reach, weights = 0.0, np.ones(len(statistics))
    if "borders" in repairs:
        reach = _reach(min_visible)
        weights = inclusion_weights(statistics, real.size) * _room(statistics, real.size, reach).prod(axis=1)
    rows, own = np.empty(len(code), dtype=np.int64), magnification[statistics["patch"].to_numpy()]
    for c, g in {*zip(code.tolist(), group.tolist(), strict=True)}:
        # Small weights: another magnification, and instances that a border cuts, where there is nothing else.
        weight = (statistics["class"].to_numpy() == c) * np.where(own == g, 1.0, 1e-6) * (weights + 1e-9)
        here = (code == c) & (group == g)
        rows[here] = rng.choice(len(weight), size=int(here.sum()), p=weight / weight.sum())
    shape = statistics.iloc[rows]
    angle, axes = shape["angle_deg"].to_numpy(), shape[["major_px", "minor_px"]].to_numpy() + CONTOUR_PX
    if "magnification" in repairs:
        axes = axes * (shape["pixel_size_nm"].to_numpy() / size_nm[parents][patch])[:, None]
    # The paper measures patches that were already turned and mirrored: an angle brings its own symmetry.
    symmetry = rng.choice(real.symmetries, size=len(patch))
    if "azimuth" in repairs:  # one azimuth and one symmetry per mask
        known = find_crystals(statistics, settings.crystal_fold)["azimuth_deg"]
        azimuth = azimuths(real.index["image"].iloc[parents], known, settings.crystal_fold, rng)
        angle = angle - shape["image"].map(known).to_numpy() + azimuth[patch]
        symmetry = rng.choice(real.symmetries, size=len(parents))[patch]
    shapes = pd.DataFrame({
        "patch": patch, "instance": np.arange(len(patch)) - first + 1, "class": code, "major_px": axes[:, 0],
        "minor_px": axes[:, 1], "angle_deg": symmetry_angle(angle, symmetry), "source": rows,
    })  # fmt: skip
    near = (ellipses_near if "overlap" in repairs else boxes_near)(shapes, settings.overlap_buffer_px)
    return parents, place(shapes, near, real.size, _room(shapes, real.size, reach), settings.overlap_tries, rng)


def place(
    shapes: pd.DataFrame, near: Near, size: int, room: Floats, tries: int, rng: np.random.Generator
) -> pd.DataFrame:
    """Sequential placement: uniform centres, redrawn while the ellipse is near one placed before in its patch.

    All patches are filled at once, first instances first, then second ones, and so on, as a plain loop would fill each.
    `shapes` have patch (sorted), instance (1, 2, ... within the patch), and what `near` needs; `room` is the width and
    height [M, 2] of the rectangle around the middle of the patch [0, size)^2 for the centres, px.
    """
    rank, centres, forced = shapes["instance"].to_numpy() - 1, np.zeros((len(shapes), 2)), np.zeros(len(shapes), bool)
    for k in range(int(rank.max(initial=-1)) + 1):
        waiting = np.flatnonzero(rank == k)  # [n]
        for attempt in range(tries):
            before = waiting[:, None] - np.arange(k, 0, -1)  # [n, k]
            proposal = size / 2 + room[waiting] * rng.uniform(-0.5, 0.5, (len(waiting), 2))
            overlaps = near(waiting[:, None], before, proposal[:, None] - centres[before]).any(axis=1)
            settled = ~overlaps | (attempt == tries - 1)
            centres[waiting[settled]] = proposal[settled]
            forced[waiting[settled & overlaps]] = True
            waiting = waiting[~settled]
            if len(waiting) == 0:
                break
    return shapes.assign(x=centres[:, 0], y=centres[:, 1], forced=forced)


def azimuths(images: pd.Series, known: pd.Series, fold: int, rng: np.random.Generator) -> Floats:
    """Crystal azimuths [n] in degrees of micrographs [n]; uniform where a micrograph has no instance."""
    found = np.array(images.map(known), dtype=float)
    return np.where(np.isnan(found), rng.uniform(0, 360 / fold, len(found)), found)


def boxes_near(shapes: pd.DataFrame, buffer_px: float) -> Near:
    """The paper's test: boxes major_px wide and minor_px high, whatever the angle, come within `buffer_px`."""
    half = shapes[["major_px", "minor_px"]].to_numpy() / 2
    return lambda i, j, offset: (np.abs(offset) < half[i] + half[j] + buffer_px).all(axis=-1)


def ellipses_near(shapes: pd.DataFrame, buffer_px: float) -> Near:
    """As `boxes_near` for the ellipses themselves, widened by half of `buffer_px`: a point of one lies in the other."""
    t, around = np.deg2rad(shapes["angle_deg"].to_numpy()), np.linspace(0, 2 * np.pi, OUTLINE_POINTS, endpoint=False)
    a, b = (shapes[["major_px", "minor_px"]].to_numpy().T + buffer_px) / 2
    to = np.moveaxis(np.array([[a * np.cos(t), b * np.sin(t)], [-a * np.sin(t), b * np.cos(t)]]), 2, 0)
    back, outlines = np.linalg.inv(to), to @ [np.cos(around), np.sin(around)]  # ellipse to disc; [M, 2, points]

    def near(i: Rows, j: Rows, offset: Floats) -> NDArray[np.bool_]:
        first = back[j] @ (outlines[i] + offset[..., None]), back[i] @ (outlines[j] - offset[..., None])
        return np.min([np.square(points).sum(axis=-2).min(axis=-1) for points in first], axis=0) < 1

    return near


def draw_instances(
    drawn: pd.DataFrame, n_patches: int, size: int, real: Patches | None = None, statistics: pd.DataFrame | None = None
) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Instance ids [n_patches, size, size], the later on top; where a centre lies in the patch, at least its pixel.

    `drawn` has patch, instance (id), x, y, major_px, minor_px, angle_deg, source (row of `statistics`, -1 for none).
    With `real` patches and their `statistics` an instance has the outline of the real one that its ellipse was fitted
    to, moved, turned and scaled as its ellipse was; the ellipse itself where the real one is cut by a border.
    """
    maps = np.zeros((n_patches, size, size), np.uint16 if drawn["instance"].max() > 255 else np.uint8)
    traced = np.zeros(len(drawn), bool)
    if statistics is not None:  # its rows are in the order of the table's
        boxes = real.table[["patch", "instance", "x1", "y1", "x2", "y2"]].to_numpy().astype(int)
        ellipses, cut = statistics[ELLIPSE_COLUMNS].to_numpy(), statistics["touches_border"].to_numpy()
        traced = (drawn["source"] >= 0).to_numpy() & ~cut[drawn["source"]]
    rows = drawn[["patch", "instance", "source", *ELLIPSE_COLUMNS]].itertuples(index=False, name=None)
    for (patch, instance, source, x, y, major, minor, angle), real_outline in zip(rows, traced, strict=True):
        if real_outline:
            home, number, x1, y1, x2, y2 = boxes[source]
            outline = np.asarray(real.instances[home, y1:y2, x1:x2]) == number
            cx, cy, real_major, _, real_angle = ellipses[source] - [x1, y1, 0, 0, 0]
            # OpenCV turns counter-clockwise as displayed, and puts pixel centres at whole numbers.
            scale = major / (real_major + CONTOUR_PX)
            moved = cv2.getRotationMatrix2D((cx - 0.5, cy - 0.5), angle - real_angle, scale)
            moved[:, 2] += x - cx, y - cy
            maps[patch][cv2.warpAffine(outline.astype(np.uint8) * 255, moved, (size, size)) > 127] = instance
        else:
            radius, window = ellipse_radius((size, size), x, y, major, minor, angle)
            maps[patch][window][radius <= 1] = instance
        if 0 <= x < size and 0 <= y < size:
            maps[patch, int(y), int(x)] = instance
    return maps


def _room(shapes: pd.DataFrame, size: int, reach: float) -> Floats:
    """Width and height [M, 2] of the rectangle for centres, px: the patch, and `reach` half boxes on each side."""
    return np.maximum(1.0, size + reach * (box_sides(shapes) + CONTOUR_PX))


def _reach(min_visible: float) -> float:
    """How far beyond a straight border the centre of an ellipse may lie, in half widths, for this share to be seen.

    A line at c half widths from the centre cuts the share (arccos c - c sqrt(1 - c^2)) / pi off a disc or an ellipse.
    """
    return float(brentq(lambda c: (np.arccos(c) - c * np.sqrt(1 - c * c)) / np.pi - min_visible, -1, 1))

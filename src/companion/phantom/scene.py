"""What is in a simulated micrograph: one crystal, its loops and dots, and what else crosses the field.

One in-plane crystal azimuth per image ties all orientations together; with the aspect ratio it
is what tells the classes apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from companion.config.phantom import Phantom
from companion.geometry import ellipse_radius
from companion.phantom.crystal import BLACK_DOT, random_loop, zone_axis
from companion.seeds import Seeds

CLASSES = ("<100> loop", "<111> loop", "black dot")
Look = Literal["rim", "filled", "edge-on", "dot"]
Window = tuple[slice, slice]  # (rows, columns)
Ellipse = tuple[float, float, float, float, float]  # x, y, major_px, minor_px, angle_deg

EDGE_ON_RATIO = 0.25  # below this minor/major a loop looks like a bar
SMALL_NM = 11.0  # loops below this diameter have no room for a rim
PLACEMENT_TRIES = 40
VISIBLE_PX = 12  # an instance with fewer pixels in the image is not an instance


@dataclass(frozen=True)
class Defect:
    """One loop or dot."""

    code: int  # class
    look: Look
    x: float  # the ellipse, px
    y: float
    major_px: float
    minor_px: float
    angle_deg: float
    rim_px: float  # width of the rim
    inner: float  # contrast inside the rim, share of the rim's
    amplitude: float  # loss of signal at its strongest, share of the local mean
    blur_px: float
    unevenness: float  # share of the contrast that is lost along one direction
    uneven_deg: float  # that direction

    @property
    def mean_radius_px(self) -> float:
        """Radius of the circle of equal area."""
        return float(np.sqrt(self.major_px * self.minor_px) / 2)


@dataclass(frozen=True)
class Line:
    """An unlabelled curve: points float [n, 2] (x, y) in px, width in px, amplitude of each segment [n - 1]."""

    points: NDArray[np.float64]
    width_px: float
    amplitudes: NDArray[np.float64]


@dataclass(frozen=True)
class Scene:
    """Truth of one micrograph, and the conditions under which it was recorded, which the frames of one grain share."""

    size_px: int
    pixel_size_nm: float
    beam: NDArray[np.float64]  # vector [3] along the beam, crystal axes
    azimuth_deg: float  # displayed angle of the in-plane reference direction of the zone axis
    dose_electrons: float  # per px
    contrast: float  # factor on the amplitude of all defects
    defocus_px: float  # blur
    magnification: str = ""  # name of the pixel size
    grain: int = 0  # number of the crystal that it shows, shared by neighbouring frames
    defects: tuple[Defect, ...] = ()
    lines: tuple[Line, ...] = ()

    def mask(self, defect: Defect) -> tuple[NDArray[np.bool_], Window]:
        """Pixels of a defect [h, w] and their window in the image."""
        radius, window = ellipse_radius(
            (self.size_px, self.size_px), defect.x, defect.y, defect.major_px, defect.minor_px, defect.angle_deg
        )
        return radius <= 1, window


def draw_scene(phantom: Phantom, seeds: Seeds, number: int) -> Scene:
    """Draw the content of micrograph `number` (1, 2, ...) of a data set.

    The density is per px, not per nm: microscopists choose the magnification by what they want to see.
    """
    p, rng = phantom, seeds.rng("scene", number)
    names = sorted(p.magnifications)
    name = names[rng.choice(len(names), p=[p.magnifications[n][1] for n in names])]
    grain = 1 + (number - 1) // p.frames_per_grain
    empty = _crystal(p, p.magnifications[name][0], seeds.rng("grain", grain), seeds.rng("session", grain))
    empty = replace(empty, magnification=name, grain=grain)
    return replace(empty, defects=_place_defects(empty, p, rng), lines=_draw_lines(empty, p, rng))


def empty_scene(phantom: Phantom, pixel_size_nm: float, rng: np.random.Generator) -> Scene:
    """A micrograph of a crystal of its own with the unlabelled lines, but without a defect."""
    empty = _crystal(phantom, pixel_size_nm, rng, rng)
    return replace(empty, lines=_draw_lines(empty, phantom, rng))


def _crystal(p: Phantom, pixel_size_nm: float, crystal: np.random.Generator, rng: np.random.Generator) -> Scene:
    """A scene with nothing in it: orientation drawn from `crystal`, recording conditions from `rng`."""
    beam, azimuth = zone_axis(p.beam, p.zone_error_deg, crystal), float(crystal.uniform(0, 360))
    return Scene(
        p.size_px, pixel_size_nm, beam, azimuth,
        dose_electrons=float(p.dose_electrons * np.exp(p.dose_spread * rng.standard_normal())),
        contrast=float(np.exp(p.contrast_spread * rng.standard_normal())),
        defocus_px=float(rng.uniform(0, p.defocus_nm)) / pixel_size_nm,
    )  # fmt: skip


def _place_defects(scene: Scene, p: Phantom, rng: np.random.Generator) -> tuple[Defect, ...]:
    margin = p.loop100_nm[2] / scene.pixel_size_nm / 2  # centres outside the frame make defects that its border cuts
    area = (scene.size_px + 2 * margin) ** 2 / 2**20
    density = p.defects_per_megapixel * np.exp(p.density_spread * rng.standard_normal())
    codes = 1 + rng.choice(3, size=rng.poisson(density * area), p=np.array(p.class_shares) / sum(p.class_shares))
    defects: list[Defect] = []
    taken = np.zeros((0, 3))  # x, y, mean radius
    for code in codes:
        shape = _draw_defect(int(code), scene, p, rng)
        # The first of many centres whose circle of equal area keeps its distance from the others; none: left out.
        places = rng.uniform(-margin, scene.size_px + margin, size=(PLACEMENT_TRIES, 2))
        gaps = ((places[:, None] - taken[:, :2]) ** 2).sum(axis=2)
        free = (gaps >= ((1 - p.crowding) * (taken[:, 2] + shape.mean_radius_px)) ** 2).all(axis=1)
        if free.any():
            x, y = places[free.argmax()].tolist()
            defects.append(replace(shape, x=x, y=y))
            taken = np.vstack([taken, (x, y, shape.mean_radius_px)])
    return tuple(defect for defect in defects if scene.mask(defect)[0].sum() >= VISIBLE_PX)


def _draw_defect(code: int, scene: Scene, p: Phantom, rng: np.random.Generator) -> Defect:
    low, median, high = (p.loop100_nm, p.loop111_nm, p.black_dot_nm)[code - 1]
    sigma = np.log(high / low) / 4
    diameter = float(np.clip(median * np.exp(sigma * rng.standard_normal()), low, high))
    *looks, width, uneven = (float(u) for u in rng.uniform(size=7))
    if code == BLACK_DOT:
        ratio, angle = float(rng.uniform(0.75, 1.0)), float(rng.uniform(0, 180))
        minor = ratio * diameter
    else:
        ratio, angle = random_loop(code, p.beam, scene.beam, p.tilt_jitter_deg, rng)
        # Seen along its plane a loop is as wide as its strain contrast, but no wider than it is long.
        minor = min(max(ratio * diameter, _between(p.edge_on_nm, width)), diameter)
    ellipse = (0.0, 0.0, diameter / scene.pixel_size_nm, minor / scene.pixel_size_nm, angle + scene.azimuth_deg)
    return dressed(code, ellipse, ratio < EDGE_ON_RATIO, (*looks, uneven), scene, p)


def dressed(code: int, ellipse: Ellipse, edge_on: bool, draws: Sequence[float], scene: Scene, p: Phantom) -> Defect:
    """A defect of given outline with everything else that decides how it looks.

    Parameters
    ----------
    edge_on : whether a loop is seen along its plane
    draws : six uniform numbers in 0-1, for depth (0: top face), strength, rim, inside, look and unevenness
    """
    x, y, major_px, minor_px, angle_deg = ellipse
    depth, strength, rim, inner, pick, uneven = draws
    filled = major_px * scene.pixel_size_nm < SMALL_NM or pick > 1 - p.filled_share
    look: Look = "dot" if code == BLACK_DOT else "edge-on" if edge_on else "filled" if filled else "rim"
    amplitude = scene.contrast * p.contrast[0] * (p.contrast[1] / p.contrast[0]) ** strength
    amplitude *= 1 - p.depth_fade * depth
    return Defect(
        code, look, x, y, major_px, minor_px, angle_deg % 180, rim_px=_between(p.rim_nm, rim) / scene.pixel_size_nm,
        inner=_between(p.inner_contrast, inner), amplitude=min(amplitude, 0.9),
        blur_px=_between(p.depth_blur_nm, depth) / scene.pixel_size_nm, unevenness=uneven * p.rim_unevenness,
        uneven_deg=scene.azimuth_deg % 180,
    )  # fmt: skip


def _between(limits: tuple[float, float], share: float) -> float:
    return limits[0] + (limits[1] - limits[0]) * share


def _draw_lines(scene: Scene, p: Phantom, rng: np.random.Generator) -> tuple[Line, ...]:
    size, scale = scene.size_px, scene.pixel_size_nm
    megapixels = size * size / 2**20
    lines: list[Line] = []
    for _ in range(rng.poisson(p.dislocations_per_megapixel * megapixels)):
        # Half of the lines start on another one: dislocations meet in networks.
        if lines and rng.uniform() < 0.5:
            start = lines[rng.integers(len(lines))].points[rng.integers(12)]
        else:
            start = rng.uniform(0, size, 2)
        heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.12, 60)) + rng.normal(0, 0.03) * np.arange(60)
        step = rng.uniform(0.4, 1.2) * size / 60
        points = start + np.cumsum(step * np.stack([np.cos(heading), np.sin(heading)], axis=1), axis=0)
        lines.append(Line(points, rng.uniform(1.5, 4.0) / scale, _uneven(59, scene, p, rng)))
    for _ in range(rng.poisson(p.large_loops_per_megapixel * megapixels)):
        code = int(rng.integers(1, 3))
        ratio, angle = random_loop(code, p.beam, scene.beam, p.tilt_jitter_deg, rng)
        major = rng.uniform(*p.large_loop_nm) / scale / 2
        turn, t = np.deg2rad(angle + scene.azimuth_deg), np.linspace(0, 2 * np.pi, 73)
        wobble = major * (1 + 0.05 * np.cos(3 * t + rng.uniform(0, 6)))
        along, across = wobble * np.cos(t), ratio * wobble * np.sin(t)
        turned = [along * np.cos(turn) + across * np.sin(turn), across * np.cos(turn) - along * np.sin(turn)]
        outline = rng.uniform(0, size, 2) + np.stack(turned, axis=1)
        lines.append(Line(outline, rng.uniform(1.5, 3.5) / scale, _uneven(72, scene, p, rng)))
    return tuple(lines)


def _uneven(n: int, scene: Scene, p: Phantom, rng: np.random.Generator) -> NDArray[np.float64]:
    """Amplitudes along a line that runs through the foil: its contrast oscillates with depth."""
    phase = rng.uniform(0, 2 * np.pi) + np.arange(n) * rng.uniform(0.05, 0.9)
    return scene.contrast * rng.uniform(*p.contrast) * (0.7 + 0.3 * np.cos(phase)) * 0.8
